// SPDX-License-Identifier: Apache-2.0
//! Addresses where something went wrong that is no crash.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use isthmus_cni_kit::error::code;
use isthmus_kernel::PodLinks;
use isthmus_node_agent::addresses::{AttachmentKey, inspect};
use isthmus_testkit::{Lab, Namespace, within};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::node::{Agent, Answer, Caller, Node, addresses, directory};
use super::runtime::{Call, Runtime};

use Call::{Add, Del, Keep};

const SOON: Duration = Duration::from_secs(10);
/// Calls that race are made so many times.
const RACES: usize = 20;

fn start(lab: &Lab) -> (Node, Runtime, Agent, Caller) {
    let node = Node::new(lab);
    let (agent, caller) = (node.started_agent(), node.caller());
    (node, Runtime::new([lab.namespace("one"), lab.namespace("two")]), agent, caller)
}

/// The next agent, after this one was killed.
fn restart(node: &Node, agent: Agent) -> Agent {
    agent.kill();
    node.started_agent()
}

/// Makes two calls at once.
fn both(runtime: &Runtime, calls: [Call; 2], caller: &Caller) -> [(Call, Answer); 2] {
    let prepared = calls.map(|call| (call, runtime.prepare(call, caller)));
    thread::scope(|scope| {
        let made = prepared.map(|(call, make)| (call, scope.spawn(make)));
        made.map(|(call, made)| (call, made.join().unwrap()))
    })
}

#[test]
fn what_a_container_held_whose_del_was_lost_is_free_after_the_next_gc() {
    let Some(lab) = Lab::new("lost-del") else { return };
    let (node, mut runtime, mut agent, caller) = start(&lab);
    runtime.must(Add(0), &caller).unwrap();
    runtime.must(Add(1), &caller).unwrap();
    agent = restart(&node, agent);
    runtime.must(Keep(1), &caller).unwrap();
    runtime.agrees(&node, &mut agent).unwrap();
    runtime.serves(&caller).unwrap();
    assert_eq!(runtime.held().len(), 1);
}

#[test]
fn what_is_read_beside_the_agent_agrees_and_frees_only_what_has_no_link() {
    let Some(lab) = Lab::new("ipam-dump") else { return };
    let (node, mut runtime, mut agent, caller) = start(&lab);
    runtime.must(Add(0), &caller).unwrap();
    let given = agent.ledger().unwrap().held.into_values().next().unwrap();
    let (journal, socket) = (node.path("state/journal/addresses"), node.path("run/cni.sock"));
    let dump = |journal: PathBuf| {
        node.namespace.run(move || inspect::dump(&journal, &PodLinks::open().unwrap()).unwrap())
    };
    let seen = dump(journal.clone());
    let [held] = &seen.held[..] else { panic!("{seen:?}") };
    let texts = |of: &[IpAddr]| of.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&held.addresses), given);
    assert!(seen.links.contains(&held.link), "{seen:?}");
    let routed: Vec<IpAddr> = seen.routes.keys().map(ipnet::IpNet::addr).collect();
    assert_eq!(texts(&routed), given, "each address has its route: {seen:?}");
    let key = AttachmentKey { container: held.container.clone(), ifname: held.ifname.clone() };
    let release = |key: AttachmentKey, journal: PathBuf, socket: PathBuf| {
        let links = move || PodLinks::open().unwrap();
        node.namespace.run(move || {
            inspect::release(&journal, &links(), &key, &socket).map_err(|error| format!("{error:#}"))
        })
    };
    let refused = release(key.clone(), journal.clone(), socket.clone()).unwrap_err();
    assert!(refused.contains("may be alive"), "{refused}");
    node.namespace.sh(&format!("ip link del {}", held.link));
    release(key, journal.clone(), socket).unwrap();
    let after = dump(journal);
    assert!(after.held.is_empty() && after.routes.is_empty(), "{after:?}");
    assert!(agent.ledger().unwrap().held.is_empty());
}

#[test]
fn what_a_container_held_that_vanished_while_no_agent_ran_is_free_when_one_starts() {
    let Some(lab) = Lab::new("vanished") else { return };
    let (node, _, agent, caller) = start(&lab);
    let mut runtime = Runtime::new([lab.namespace("pod")]);
    runtime.must(Add(0), &caller).unwrap();
    agent.kill();
    drop(runtime);
    within(SOON, || if node.links().is_empty() { Ok(()) } else { Err(format!("{:?}", node.links())) });
    let ledger = node.started_agent().ledger().unwrap();
    assert_eq!((ledger.held.len(), ledger.in_use), (0, 0), "{ledger:?}");
    assert!(node.journal().unwrap().is_empty());
}

#[test]
fn a_node_that_was_rebooted_holds_nothing_of_what_its_journal_says() {
    let Some(lab) = Lab::new("reboot") else { return };
    let (node, mut runtime, agent, caller) = start(&lab);
    runtime.must(Add(0), &caller).unwrap();
    runtime.must(Add(1), &caller).unwrap();
    agent.kill();
    assert_eq!(node.journal().unwrap().len(), 2);

    let node = Node::on(&lab, node.power_off(), |_| {});
    let mut agent = node.started_agent();
    let mut runtime = Runtime::new([lab.namespace("one"), lab.namespace("two")]);
    runtime.agrees(&node, &mut agent).unwrap();
    let caller = node.caller();
    runtime.must(Add(0), &caller).unwrap();
    runtime.must(Add(1), &caller).unwrap();
    runtime.agrees(&node, &mut agent).unwrap();
    runtime.serves(&caller).unwrap();
}

#[test]
fn of_two_adds_of_one_container_at_once_one_gives_it_addresses_and_the_other_is_refused() {
    let Some(lab) = Lab::new("two-adds") else { return };
    let (node, mut runtime, mut agent, caller) = start(&lab);
    for _ in 0..RACES {
        runtime.rename_all();
        let [one, two] = both(&runtime, [Add(0), Add(0)], &caller);
        let (first, second) = if one.1.is_ok() { (one, two) } else { (two, one) };
        let refusal = second.1.unwrap_err();
        assert!(refusal["msg"].as_str().unwrap().contains("DEL it first"), "{refusal}");
        runtime.learn(&[vec![first]]).unwrap();
        runtime.agrees(&node, &mut agent).unwrap();
        runtime.serves(&caller).unwrap();
        runtime.must(Del(0), &caller).unwrap();
    }
    runtime.agrees(&node, &mut agent).unwrap();
}

#[test]
fn an_add_whose_result_nobody_printed_is_answered_again_and_one_that_was_printed_is_not() {
    let Some(lab) = Lab::new("lost-answer") else { return };
    let (node, _, mut agent, caller) = start(&lab);
    let pod = lab.namespace("pod");
    let lost = caller.add_unprinted("c", &pod.path());
    let again = caller.add("c", &pod.path()).unwrap();
    assert_eq!(addresses(&lost), addresses(&again));
    let index = || pod.sh("cat /sys/class/net/eth0/ifindex 2>/dev/null || ip -o link show eth0");
    let before = index();
    let refused = caller.add("c", &pod.path()).unwrap_err();
    assert_eq!(refused["code"], code::INVALID_ENVIRONMENT, "{refused}");
    assert_eq!(index(), before, "the link that is in use stays");
    assert_eq!(agent.ledger().unwrap().held["c"], addresses(&again));
    // An agent that has just started was told nothing.
    agent = restart(&node, agent);
    assert_eq!(addresses(&caller.add("c", &pod.path()).unwrap()), addresses(&again));
    caller.del("c").unwrap();
    assert_eq!(agent.ledger().unwrap().in_use, 0);
}

#[test]
fn a_del_that_comes_before_its_add_ended_leaves_nothing_after_the_next_one() {
    let Some(lab) = Lab::new("early-del") else { return };
    let (node, mut runtime, mut agent, caller) = start(&lab);
    for _ in 0..RACES {
        runtime.rename_all();
        let [add, del] = both(&runtime, [Add(0), Del(0)], &caller);
        assert!(add.1.is_ok() && del.1.is_ok(), "{add:?}, {del:?}");
        runtime.learn(&[vec![add], vec![del]]).unwrap();
        runtime.agrees(&node, &mut agent).unwrap();
        runtime.must(Del(0), &caller).unwrap();
        runtime.agrees(&node, &mut agent).unwrap();
        runtime.serves(&caller).unwrap();
    }
}

#[test]
fn a_full_disk_costs_no_address_and_gives_none_twice() {
    let Some(lab) = Lab::new("full-disk") else { return };
    let directory = directory();
    let state = directory.path().join("state");
    // A disk of a few pages, which only the node sees.
    let disk = state.clone();
    let node = Node::on(&lab, directory, move |namespace| {
        namespace.run(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("disk"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        });
    });
    let (mut agent, caller) = (node.started_agent(), node.caller());
    let mut runtime = Runtime::new([lab.namespace("one"), lab.namespace("two")]);
    runtime.must(Add(0), &caller).unwrap();
    let kept = runtime.held();

    let filler = state.join("filler");
    fill(&node.namespace, filler.clone());
    // The last page of the journal still takes some records.
    let refused = within(SOON, || {
        runtime.rename(1);
        match runtime.prepare(Add(1), &caller)() {
            Err(printed) => Ok(printed),
            Ok(result) => runtime.prepare(Del(1), &caller)().map_or_else(
                |printed| panic!("DEL failed: {printed}"),
                |_| Err(format!("{} were given {:?}", 1, addresses(&result))),
            ),
        }
    });
    assert_eq!(refused["code"], code::IO, "{refused}");
    assert!(refused["msg"].as_str().unwrap().contains("neither full nor read-only"), "{refused}");
    assert_eq!(caller.status().unwrap_err()["code"], code::UNAVAILABLE);
    runtime.agrees(&node, &mut agent).unwrap();

    agent = restart(&node, agent);
    runtime.agrees(&node, &mut agent).unwrap();
    runtime.serves(&caller).unwrap();
    assert_eq!(agent.ledger().unwrap().held, kept);
    runtime.must(Del(0), &caller).unwrap();
    let ledger = agent.ledger().unwrap();
    assert_eq!((ledger.held.len(), ledger.in_use), (0, 0), "a pod goes whatever the disk takes: {ledger:?}");

    agent = restart(&node, agent);
    let ledger = agent.ledger().unwrap();
    assert_eq!((ledger.held.len(), ledger.in_use), (0, 0), "{ledger:?}");
    node.namespace.run(move || fs::remove_file(filler)).unwrap();
    runtime.rename_all();
    for call in [Add(0), Add(1)] {
        runtime.must(call, &caller).unwrap();
    }
    agent = restart(&node, agent);
    runtime.agrees(&node, &mut agent).unwrap();
    runtime.serves(&caller).unwrap();
    runtime.delete_all(&caller).unwrap();
    runtime.agrees(&node, &mut agent).unwrap();
}

/// Writes until the disk takes no more.
fn fill(namespace: &Namespace, file: std::path::PathBuf) {
    let full = namespace.run(move || fs::write(file, [0; 1 << 20])).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
}
