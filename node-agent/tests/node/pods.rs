// SPDX-License-Identifier: Apache-2.0
//! Pods of one cluster.

use std::time::{Duration, Instant};

use isthmus_testkit::{Lab, within};
use serde_json::{Value, json};

use crate::agent::{CONFIG, cluster, two_nodes};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_one_node_and_of_two_reach_each_other_over_both_families() {
    let Some(lab) = Lab::new("agent-pods") else { return };
    let [one, two] = two_nodes(&lab);
    one.know(cluster);
    two.know(cluster);
    let pods = [lab.namespace("a"), lab.namespace("b"), lab.namespace("c")];
    let addresses = [one.add("a", &pods[0]), one.add("b", &pods[1]), two.add("c", &pods[2])];
    assert_eq!(addresses[0], ["10.1.0.1", "fd00:1::1"]);
    for target in &addresses[1] {
        pods[0].ping(target).unwrap();
    }
    // The cable between the nodes is new: the kernel still makes sure of its own link-local addresses.
    for target in &addresses[2] {
        within(SOON, || pods[0].ping(target).map_err(|error| error.to_string()));
    }
    for target in &addresses[0] {
        pods[2].ping(target).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_knows_nothing_yet_says_try_again_and_writes_no_configuration() {
    let Some(lab) = Lab::new("agent-early") else { return };
    let [one, _two] = two_nodes(&lab);
    let pod = lab.namespace("pod");
    let (_, printed) = one.call("ADD", "a", Some(&pod), CONFIG);
    assert_eq!(printed["code"], 11, "{printed}");
    let (_, printed) = one.call("STATUS", "", None, CONFIG);
    assert_eq!(printed["code"], 50, "{printed}");
    assert!(!one.path("05-isthmus.conflist").exists());
    one.know(cluster);
    one.add("a", &pod);
    within(
        SOON,
        || if one.path("05-isthmus.conflist").exists() { Ok(()) } else { Err("no configuration yet") },
    );
    assert_eq!(one.call("STATUS", "", None, CONFIG).0.exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_finds_its_pods_and_not_one_packet_is_lost_meanwhile() {
    let Some(lab) = Lab::new("agent-restart") else { return };
    let [mut one, two] = two_nodes(&lab);
    one.know(cluster);
    two.know(cluster);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    let addresses = one.add("a", &a);
    two.add("b", &b);
    let mut ping = b.spawn("ping", &["-n", "-q", "-i", "0.01", "-c", "200", &addresses[0]]).unwrap();
    for _ in 0..3 {
        one.kill_agent().await;
        one.start_agent();
        within(SOON, || match one.call("STATUS", "", None, CONFIG) {
            (outcome, _) if outcome.exit_code == 0 => Ok(()),
            (_, printed) => Err(printed),
        });
    }
    let status = ping.wait().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(ping.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert!(status.success() && text.contains("200 received, 0% packet loss"), "{text}");
    let c = lab.namespace("c");
    assert_ne!(one.add("c", &c), addresses, "an address that is in use is not given again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_while_the_api_server_is_silent_goes_on_with_what_the_node_knew() {
    let Some(lab) = Lab::new("agent-memory") else { return };
    let [mut one, two] = two_nodes(&lab);
    one.know(cluster);
    two.know(cluster);
    let (a, b, c) = (lab.namespace("a"), lab.namespace("b"), lab.namespace("c"));
    one.add("a", &a);
    let addresses = two.add("b", &b);
    within(SOON, || if one.path("intent").exists() { Ok(()) } else { Err("nothing is remembered yet") });

    one.kill_agent().await;
    one.silence();
    // As after a restart of the node: but for pods' links, nothing of ours is there.
    one.namespace.sh("for f in -4 -6; do ip $f route flush proto 73 table all; done");
    one.start_agent();

    let patient = Duration::from_secs(20);
    within(patient, || match one.call("ADD", "c", Some(&c), CONFIG) {
        (outcome, _) if outcome.exit_code == 0 => Ok(()),
        (_, printed) => Err(printed),
    });
    let turns = one.metrics.get("turns_total");
    assert!(turns < 1000.0, "while nothing was listed the event loop made {turns} turns");
    for target in &addresses {
        within(SOON, || a.ping(target).map_err(|error| error.to_string()));
        c.ping(target).unwrap();
    }
    // What it does not know to be unwanted stays; the API server's word takes it away.
    one.namespace.sh("ip route add blackhole 10.77.0.0/16 proto 73");
    one.namespace.sh("ip route del blackhole 10.1.0.0/29");
    let routes = || one.namespace.sh("ip route show proto 73");
    within(SOON, || if routes().contains("10.1.0.0/29") { Ok(()) } else { Err(routes()) });
    assert!(routes().contains("10.77.0.0/16"), "{}", routes());
    one.know(cluster);
    within(SOON, || if routes().contains("10.77.0.0/16") { Err(routes()) } else { Ok(()) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_leaves_nothing_and_deleting_again_is_fine() {
    let Some(lab) = Lab::new("agent-del") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(cluster);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    one.add("a", &a);
    one.add("b", &b);
    for _ in 0..2 {
        let (outcome, printed) = one.call("DEL", "a", None, CONFIG);
        assert_eq!((outcome.exit_code, outcome.stdout.len()), (0, 0), "{printed}");
    }
    let kept =
        json!({ "cniVersion": "1.1.0", "name": "isthmus", "cni.dev/valid-attachments": [] }).to_string();
    assert_eq!(one.call("GC", "", None, &kept).0.exit_code, 0);
    let left = one.namespace.sh("ip -br link | grep -c ^ist || true; ip route | grep -c 'dev ist' || true");
    assert_eq!(left.split_whitespace().collect::<Vec<_>>(), ["0", "0"]);
    assert!(!one.namespace.sh("nft list table inet isthmus").contains("10.1.0.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_another_network_is_refused_and_its_gc_leaves_the_pods_alone() {
    let Some(lab) = Lab::new("agent-other") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(cluster);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    one.add("a", &a);
    let targets = one.add("b", &b);
    let other =
        json!({ "cniVersion": "1.1.0", "name": "other", "cni.dev/valid-attachments": [] }).to_string();
    for (command, pod) in [("GC", None), ("STATUS", None), ("CHECK", Some(&a)), ("ADD", Some(&a))] {
        let (_, printed) = one.call(command, "a", pod, &other);
        assert_eq!(printed["code"], 7, "{command}: {printed}");
        let message = printed["msg"].as_str().unwrap();
        assert!(message.contains("\"other\"") && message.contains("\"isthmus\""), "{command}: {message}");
    }
    for target in &targets {
        a.ping(target).unwrap();
    }
    assert_eq!(one.call("DEL", "b", None, &other).0.exit_code, 0, "what goes, goes");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_a_route_that_somebody_took_out_of_the_pod() {
    let Some(lab) = Lab::new("agent-check") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(cluster);
    let pod = lab.namespace("pod");
    let previous = within(SOON, || match one.call("ADD", "a", Some(&pod), CONFIG) {
        (outcome, printed) if outcome.exit_code == 0 => Ok(printed),
        (_, printed) => Err(printed),
    });
    assert_eq!(previous["cniVersion"], "1.1.0");
    let check = json!({ "cniVersion": "1.1.0", "name": "isthmus", "prevResult": previous }).to_string();
    let (outcome, printed) = one.call("CHECK", "a", Some(&pod), &check);
    assert_eq!(outcome.exit_code, 0, "{printed}");
    pod.sh("ip route del default");
    let (outcome, printed) = one.call("CHECK", "a", Some(&pod), &check);
    assert_eq!(outcome.exit_code, 1, "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_blocks_are_named_and_a_full_node_says_so_in_its_status() {
    let Some(lab) = Lab::new("agent-full") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(cluster);
    let pods: Vec<_> = (0..7).map(|_| lab.namespace("pod")).collect();
    for (number, pod) in pods.iter().enumerate() {
        one.add(&format!("c{number}"), pod);
    }
    let (_, printed) = one.call("ADD", "more", Some(&lab.namespace("more")), CONFIG);
    assert_eq!(printed["code"], 11);
    assert!(printed["msg"].as_str().unwrap().contains("IPPool four are in use"), "{printed}");
    assert_eq!(one.call("STATUS", "", None, CONFIG).1["code"], 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_route_and_a_foreign_flush_are_repaired_within_a_second() {
    let Some(lab) = Lab::new("agent-repair") else { return };
    let [one, two] = two_nodes(&lab);
    one.know(cluster);
    two.know(cluster);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    let target = one.add("a", &a).remove(0);
    two.add("b", &b);
    let node = &one.namespace;
    node.sh(&format!("nft flush ruleset; ip route del {target}; ip route del 10.1.0.64/29"));
    let began = Instant::now();
    within(SOON, || b.try_sh(&format!("ping -n -c 1 -W 0.2 {target}")).map_err(|error| format!("{error:#}")));
    assert!(began.elapsed() < Duration::from_secs(1), "took {:?}", began.elapsed());
    assert!(node.sh("nft list table inet isthmus").contains(&target));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_link_that_somebody_took_down_is_up_again_within_a_second() {
    let Some(lab) = Lab::new("agent-down") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(cluster);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    let targets = one.add("a", &a);
    one.add("b", &b);
    one.namespace.sh("for link in $(ip -br link | grep -o '^ist[0-9a-f]*'); do ip link set $link down; done");
    let began = Instant::now();
    for target in targets {
        within(SOON, || {
            b.try_sh(&format!("ping -n -c 1 -W 0.2 {target}")).map_err(|error| format!("{error:#}"))
        });
    }
    assert!(began.elapsed() < Duration::from_secs(1), "took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_adds_at_once_are_fast_and_get_thirty_addresses() {
    let Some(lab) = Lab::new("agent-burst") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(|objects| {
        cluster(objects);
        crate::agent::add_pool(objects, "large", "10.3.0.0/16", &[("10.3.0.0/24", "n1")]);
        objects.pools.remove("four");
        objects.pools.remove("six");
    });
    let first = lab.namespace("first");
    one.add("first", &first);
    let pods: Vec<_> = (0..30).map(|_| lab.namespace("pod")).collect();
    let began = Instant::now();
    let one = &one;
    let printed: Vec<Value> = std::thread::scope(|scope| {
        let adding: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| {
                scope.spawn(move || one.call("ADD", &format!("c{number}"), Some(pod), CONFIG).1)
            })
            .collect();
        adding.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let took = began.elapsed();
    let mut addresses: Vec<String> =
        printed.iter().map(|printed| printed["ips"][0]["address"].to_string()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 30, "{printed:?}");
    assert!(took < Duration::from_secs(5), "thirty took {took:?}");
    eprintln!("30 parallel ADDs: {took:?}");
}
