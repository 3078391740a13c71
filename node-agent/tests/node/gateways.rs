// SPDX-License-Identifier: Apache-2.0
//! Two gateways in one cluster: both carry, and one goes.

use std::time::{Duration, Instant};

use isthmus_intake::node::NodeObjects;
use isthmus_testkit::{Lab, Namespace, within};

use crate::agent::{TestNode, add_pool, api_node};
use crate::peers::{Gateway, key_of, peering, tunnels_up};

const SOON: Duration = Duration::from_secs(10);

/// Nodes on one switch: n1 is the cluster east; n2 and n3 are west, both gateways.
fn nodes(lab: &Lab, switch: &Namespace) -> [TestNode; 3] {
    switch.sh("ip link add br0 type bridge; ip link set br0 up");
    [("n1", 1), ("n2", 2), ("n3", 3)].map(|(name, number)| {
        let namespace = lab.namespace(name);
        let (four, six) = (format!("172.18.0.{number}/24"), format!("fd18::{number}/64"));
        lab.cable((switch, name, &[]), (&namespace, "eth0", &[&four, &six]));
        switch.sh(&format!("ip link set {name} master br0"));
        TestNode::start(name, namespace)
    })
}

fn east(objects: &mut NodeObjects) {
    objects.nodes.insert("n1".into(), api_node(&["172.18.0.1", "fd18::1"]));
    add_pool(objects, "four", "10.1.0.0/16", &[("10.1.0.0/26", "n1")]);
}

fn west(objects: &mut NodeObjects) {
    objects.nodes.insert("n2".into(), api_node(&["172.18.0.2", "fd18::2"]));
    objects.nodes.insert("n3".into(), api_node(&["172.18.0.3", "fd18::3"]));
    add_pool(objects, "four", "10.2.0.0/16", &[("10.2.0.0/26", "n2"), ("10.2.0.64/26", "n3")]);
}

fn join(nodes: &[TestNode; 3]) {
    let [n1, n2, n3] = nodes;
    n1.know(east);
    n2.know(west);
    n3.know(west);
    let keys = [n1, n2, n3].map(key_of);
    let gateway = |name, number: usize, mesh| Gateway {
        name,
        key: &keys[number - 1],
        endpoint: format!("172.18.0.{number}:51820"),
        mesh: vec![mesh],
    };
    let to_west = peering(
        "west",
        &["10.2.0.0/16"],
        &[gateway("n2", 2, "10.2.0.0"), gateway("n3", 3, "10.2.0.64")],
        &["n1"],
    );
    n1.store.change(|objects| drop(objects.peerings.insert("west".into(), to_west)));
    let to_east = peering("east", &["10.1.0.0/16"], &[gateway("n1", 1, "10.1.0.0")], &["n2", "n3"]);
    for node in [n2, n3] {
        let to_east = to_east.clone();
        node.store.change(|objects| drop(objects.peerings.insert("east".into(), to_east)));
    }
    tunnels_up(n1, 2);
    tunnels_up(n2, 1);
    tunnels_up(n3, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_goes_on_through_the_other_gateway_within_two_seconds_after_one_is_cut_off() {
    let Some(lab) = Lab::new("failover") else { return };
    let switch = lab.namespace("switch");
    let nodes = nodes(&lab, &switch);
    join(&nodes);
    let [n1, n2, n3] = &nodes;
    let from = lab.namespace("from");
    n1.add("from", &from);
    let pods: Vec<Namespace> = (0..6).map(|_| lab.namespace("to")).collect();
    let to: Vec<String> =
        pods.iter().enumerate().map(|(number, pod)| n2.add(&format!("to{number}"), pod).remove(0)).collect();
    let reach_all = |patience: &str| {
        let pings: Vec<String> = to.iter().map(|to| format!("ping -n -c 1 -W {patience} {to}")).collect();
        from.try_sh(&pings.join(" && ")).map_err(|error| error.to_string())
    };
    within(SOON, || reach_all("1"));
    let both = n1.namespace.sh("ip route show 10.2.0.0/16 | grep -c 'dev iw-'");
    assert_eq!(both.trim(), "2", "both tunnels carry");
    n3.namespace.sh("ip link set eth0 down");
    let cut = Instant::now();
    within(SOON, || reach_all("0.2"));
    let took = cut.elapsed();
    assert!(took < Duration::from_secs(2), "took {took:?}");
    n3.namespace.sh("ip link set eth0 up");
    tunnels_up(n1, 2);
}
