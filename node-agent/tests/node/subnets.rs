// SPDX-License-Identifier: Apache-2.0
//! Nodes that share no link.

use std::time::Duration;

use isthmus_api::v1alpha1::{NodeNetwork, NodeNetworkSpec, NodeNetworkStatus};
use isthmus_compiler::vxlan_mac;
use isthmus_intake::node::NodeObjects;
use isthmus_testkit::{Lab, within};

use crate::agent::{TestNode, add_pool, api_node};

const SOON: Duration = Duration::from_secs(5);

fn know(objects: &mut NodeObjects) {
    for (name, addresses) in [("n1", ["172.18.0.1", "fd18::1"]), ("n2", ["172.19.0.2", "fd19::2"])] {
        objects.nodes.insert(name.into(), api_node(&addresses));
        let mac = vxlan_mac(&name.parse().unwrap()).map(|byte| format!("{byte:02x}")).join(":");
        let mut network = NodeNetwork::new(name, NodeNetworkSpec::default());
        network.status = Some(NodeNetworkStatus { vxlan_mac: Some(mac), ..Default::default() });
        objects.networks.insert(name.into(), network);
    }
    add_pool(objects, "four", "10.1.0.0/16", &[("10.1.0.0/26", "n1"), ("10.1.0.64/26", "n2")]);
    add_pool(objects, "six", "fd00:1::/64", &[("fd00:1::/122", "n1"), ("fd00:1::40/122", "n2")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_behind_a_router_that_knows_no_pods_reach_each_other_in_vxlan_with_large_packets_too() {
    let Some(lab) = Lab::new("vxlan") else { return };
    let (one, router, two) = (lab.namespace("n1"), lab.namespace("router"), lab.namespace("n2"));
    lab.cable(
        (&one, "eth0", &["172.18.0.1/24", "fd18::1/64"]),
        (&router, "left", &["172.18.0.254/24", "fd18::254/64"]),
    );
    lab.cable(
        (&two, "eth0", &["172.19.0.2/24", "fd19::2/64"]),
        (&router, "right", &["172.19.0.254/24", "fd19::254/64"]),
    );
    router.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    one.sh("ip route add default via 172.18.0.254");
    two.sh("ip route add default via 172.19.0.254");
    let (one, two) = (TestNode::start("n1", one), TestNode::start("n2", two));
    one.know(know);
    two.know(know);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    one.add("a", &a);
    for target in two.add("b", &b) {
        within(SOON, || a.ping(&target).map_err(|error| error.to_string()));
        // Without fragmentation: the route says what fits, and the pod learns it.
        within(SOON, || {
            a.try_sh(&format!("ping -n -c 1 -W 1 -s 1400 {target}")).map_err(|error| error.to_string())
        });
    }
}
