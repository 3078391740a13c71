// SPDX-License-Identifier: Apache-2.0
//! Our nftables table belongs to one socket and outlives it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use isthmus_kernel::{InSync, Kernel, Nft};
use isthmus_testkit::{Lab, within};

use super::node::{Node, base, open_nft};

const HOLD: &str = "ISTHMUS_TEST_HOLD_NAMESPACE";

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_flush_or_delete_changes_nothing() {
    let Some(lab) = Lab::new("flush") else { return };
    let (mut node, one, two) = (Node::new(&lab, "node"), lab.namespace("one"), lab.namespace("two"));
    node.add_pod(&one, 1).await;
    node.add_pod(&two, 2).await;
    let before = node.namespace.sh("nft -s list ruleset");
    assert!(before.contains("antispoof") && before.contains("10.9.0.1"), "{before}");
    node.namespace.sh("nft flush ruleset");
    assert!(node.namespace.try_sh("nft delete table inet isthmus").is_err());
    assert!(node.namespace.try_sh("nft flush chain inet isthmus antispoof").is_err());
    assert!(node.namespace.try_sh("nft flush set inet isthmus pods4").is_err());
    assert_eq!(node.namespace.sh("nft -s list ruleset"), before);
    one.ping("10.9.0.2").unwrap();
}

/// Not a claim of its own: the process that the next test kills.
#[tokio::test(flavor = "multi_thread")]
async fn holder() {
    let Ok(path) = std::env::var(HOLD) else { return };
    let path = Path::new(&path);
    let nft = isthmus_kernel::netns::run(path, Nft::open).unwrap().unwrap();
    let mut kernel = Kernel::open_in(path, nft).unwrap();
    kernel.arm(&base()).await.unwrap();
    println!("armed");
    let _ = std::io::stdin().read(&mut [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_outlives_a_killed_owner_and_the_next_one_takes_it_over() {
    let Some(lab) = Lab::new("killed") else { return };
    let node = Node::new(&lab, "node");
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "proofs::owner::holder", "--nocapture"])
        .env(HOLD, node.namespace.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("armed")), "the owner never armed");

    let mut rival = Kernel::open_in(&node.namespace.path(), open_nft(&node.namespace)).unwrap();
    let error = rival.arm(&base()).await.unwrap_err().to_string();
    assert!(error.contains("another process owns"), "{error}");

    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(node.namespace.sh("nft list table inet isthmus").contains("antispoof"));
    let mut heir = Kernel::open_in(&node.namespace.path(), open_nft(&node.namespace)).unwrap();
    within(Duration::from_secs(1), || {
        let done =
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(heir.arm(&base())));
        done.map_err(|error| error.to_string())
    });
    node.namespace.sh("nft flush ruleset");
    assert!(node.namespace.sh("nft list table inet isthmus").contains("antispoof"));
}

#[tokio::test(flavor = "multi_thread")]
async fn arming_keeps_a_table_that_is_there_and_its_pods() {
    let Some(lab) = Lab::new("arm") else { return };
    let (mut node, one, two) = (Node::new(&lab, "node"), lab.namespace("one"), lab.namespace("two"));
    node.add_pod(&one, 1).await;
    node.add_pod(&two, 2).await;
    let Node { namespace, want, kernel, .. } = node;
    drop(kernel);
    let mut kernel = Kernel::open_in(&namespace.path(), open_nft(&namespace)).unwrap();
    within(Duration::from_secs(1), || {
        let done =
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(kernel.arm(&base())));
        done.map_err(|error| error.to_string())
    });
    one.ping("10.9.0.2").unwrap();
    let outcomes = kernel.converge(want.clone(), InSync::all_listed()).await;
    assert!(outcomes.is_clean(), "{outcomes:?}");
    one.ping("10.9.0.2").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_was_passed_on_keeps_the_table_owned_when_its_opener_closes_it() {
    let Some(lab) = Lab::new("passed") else { return };
    let node = Node::new(&lab, "node");
    let opened = open_nft(&node.namespace);
    let passed = Nft::from_fd(opened.fd().try_clone_to_owned().unwrap()).unwrap();
    let mut first = Kernel::open_in(&node.namespace.path(), opened).unwrap();
    first.arm(&base()).await.unwrap();
    let mut second = Kernel::open_in(&node.namespace.path(), passed).unwrap();
    drop(first);
    node.namespace.sh("nft flush ruleset");
    second.arm(&base()).await.unwrap();
    let outcomes = second.converge(node.want.clone(), InSync::all_listed()).await;
    assert!(outcomes.is_clean(), "{outcomes:?}");
    assert!(node.namespace.sh("nft list table inet isthmus").contains("antispoof"));
}

/// The chain hangs elsewhere from then on: it is taken out and put in again.
fn chain_moves(node: &mut Node, round: i32) {
    node.want.nft.chains.get_mut("antispoof").unwrap().priority = -400 + round;
}

/// The answer of each of 3,000 packets is counted while rules are rebuilt: a moment without them would let some pass.
#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_moment_without_rules_while_they_are_replaced() {
    let Some(lab) = Lab::new("no-gap") else { return };
    let (mut node, known, unknown) =
        (Node::new(&lab, "node"), lab.namespace("known"), lab.namespace("unknown"));
    node.add_pod(&known, 1).await;
    node.links.add(&super::node::pod_link(&unknown, 2)).unwrap();
    node.namespace.sh("ip route add 10.9.0.2 dev ist000000000002");
    let flood =
        unknown.spawn("ping", &["-q", "-n", "-i", "0.001", "-c", "3000", "-W", "1", "10.9.0.1"]).unwrap();
    for round in 0..50 {
        let chain = node.want.nft.chains.get_mut("antispoof").unwrap();
        chain.rules[0].comment = format!("round {round}");
        if round % 2 == 0 {
            // As after a restart: nothing is remembered, everything is replaced.
            let socket = node.kernel.nft_fd().try_clone_to_owned().unwrap();
            node.kernel.replace_nft(Nft::from_fd(socket).unwrap()).await.unwrap();
        }
        if round % 7 == 0 {
            chain_moves(&mut node, round);
        }
        node.converge().await;
    }
    let output = flood.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(" 0 received"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_packet_is_lost_while_the_agent_is_replaced_and_the_rules_are_flushed_by_others() {
    let Some(lab) = Lab::new("restarts") else { return };
    let (mut node, one, two) = (Node::new(&lab, "node"), lab.namespace("one"), lab.namespace("two"));
    node.add_pod(&one, 1).await;
    node.add_pod(&two, 2).await;
    let ping = one.spawn("ping", &["-q", "-n", "-i", "0.002", "-c", "1000", "-W", "1", "10.9.0.2"]).unwrap();
    let Node { namespace, want, mut kernel, .. } = node;
    for _ in 0..20 {
        let socket = kernel.nft_fd().try_clone_to_owned().unwrap();
        kernel = Kernel::open_in(&namespace.path(), Nft::from_fd(socket).unwrap()).unwrap();
        kernel.arm(&base()).await.unwrap();
        let outcomes = kernel.converge(want.clone(), InSync::all_listed()).await;
        assert!(outcomes.is_clean(), "{outcomes:?}");
        namespace.sh("nft flush ruleset");
    }
    let output = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("1000 received"), "{text}");
}
