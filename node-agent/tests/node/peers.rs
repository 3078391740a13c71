// SPDX-License-Identifier: Apache-2.0
//! Pods of two clusters, each of one node that is its gateway.

use std::time::Duration;

use isthmus_api::v1alpha1::{ClusterPeering, ClusterPeeringSpec, ClusterPeeringStatus, RemoteGateway};
use isthmus_intake::node::NodeObjects;
use isthmus_testkit::{Lab, within};

use crate::agent::{TestNode, add_pool, api_node, two_nodes};

const SOON: Duration = Duration::from_secs(10);

/// A node's WireGuard key, once its data plane process said it.
pub(crate) fn key_of(node: &TestNode) -> String {
    within(SOON, || {
        let report = node.report.borrow();
        report.as_ref().and_then(|report| report.status().public_key.clone()).ok_or("no key yet")
    })
}

/// A gateway as its cluster announces it.
pub(crate) struct Gateway<'a> {
    pub(crate) name: &'a str,
    pub(crate) key: &'a str,
    pub(crate) endpoint: String,
    pub(crate) mesh: Vec<&'a str>,
}

/// A peering that grants and has in force the same CIDRs.
pub(crate) fn peering(
    name: &str,
    cidrs: &[&str],
    gateways: &[Gateway<'_>],
    local: &[&str],
) -> ClusterPeering {
    let list = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut object =
        ClusterPeering::new(name, ClusterPeeringSpec { allowed_cidrs: list(cidrs), ..Default::default() });
    let gateway = |gateway: &Gateway<'_>| RemoteGateway {
        name: gateway.name.into(),
        public_key: gateway.key.into(),
        endpoints: vec![gateway.endpoint.clone()],
        mesh_addresses: list(&gateway.mesh),
        ports: Vec::new(),
        lanes: Vec::new(),
    };
    object.status = Some(ClusterPeeringStatus {
        remote_cidrs: list(cidrs),
        remote_gateways: gateways.iter().map(gateway).collect(),
        local_gateways: list(local),
        ..Default::default()
    });
    object
}

fn join(east: &TestNode, west: &TestNode) {
    let know = |objects: &mut NodeObjects| {
        objects.nodes.insert("n1".into(), api_node(&["172.18.0.1", "fd18::1"]));
        add_pool(objects, "four", "10.1.0.0/16", &[("10.1.0.0/26", "n1")]);
        add_pool(objects, "six", "fd00:1::/64", &[("fd00:1::/122", "n1")]);
    };
    join_as(east, west, know, ["10.1.0.0", "fd00:1::"], ["10.1.0.0/16", "fd00:1::/64"]);
}

/// The same with other addresses of east: its objects, its gateway's addresses in the tunnel, its pods' CIDRs.
pub(crate) fn join_as(
    east: &TestNode,
    west: &TestNode,
    know: impl FnOnce(&mut NodeObjects),
    mesh: [&str; 2],
    cidrs: [&str; 2],
) {
    east.know(know);
    west.know(|objects| {
        objects.nodes.insert("n2".into(), api_node(&["172.18.0.2", "fd18::2"]));
        add_pool(objects, "four", "10.2.0.0/16", &[("10.2.0.0/26", "n2")]);
        add_pool(objects, "six", "fd00:2::/64", &[("fd00:2::/122", "n2")]);
    });
    let (east_key, west_key) = (key_of(east), key_of(west));
    let gateway =
        |key, endpoint: &str, mesh| Gateway { name: "gateway", key, endpoint: endpoint.to_owned(), mesh };
    let remote = gateway(&west_key, "172.18.0.2:51820", vec!["10.2.0.0", "fd00:2::"]);
    let peer = peering("west", &["10.2.0.0/16", "fd00:2::/64"], &[remote], &["n1"]);
    east.store.change(|objects| drop(objects.peerings.insert("west".into(), peer)));
    let remote = gateway(&east_key, "172.18.0.1:51820", mesh.to_vec());
    let peer = peering("east", &cidrs, &[remote], &["n2"]);
    west.store.change(|objects| drop(objects.peerings.insert("east".into(), peer)));
}

pub(crate) fn tunnels_up(node: &TestNode, count: usize) {
    within(SOON, || {
        let report = node.report.borrow();
        let tunnels = report.as_ref().map(|report| report.status().tunnels.clone()).unwrap_or_default();
        let up = tunnels.iter().filter(|tunnel| tunnel.up).count();
        if up == count { Ok(()) } else { Err(format!("{tunnels:?}")) }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_two_clusters_reach_each_other_through_the_tunnel_with_their_own_addresses() {
    let Some(lab) = Lab::new("agent-peers") else { return };
    let [east, west] = two_nodes(&lab);
    join(&east, &west);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    let from = east.add("a", &a);
    let to = west.add("b", &b);
    tunnels_up(&east, 1);
    tunnels_up(&west, 1);
    for target in &to {
        within(SOON, || {
            a.ping(target)
                .map_err(|error| format!("{error:#}\n{}", east.namespace.sh("ip -d route; ip -6 route")))
        });
    }
    for source in &from {
        within(SOON, || b.ping(source).map_err(|error| format!("{error:#}")));
    }
    // Nothing of it leaves the node in the open.
    let routes = east.namespace.sh("ip route show 10.2.0.0/16");
    assert!(routes.contains("dev iw-") && routes.contains("unreachable"), "{routes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_peering_leaves_no_route_device_or_rule() {
    let Some(lab) = Lab::new("agent-unpeer") else { return };
    let [east, west] = two_nodes(&lab);
    join(&east, &west);
    tunnels_up(&east, 1);
    east.store.change(|objects| objects.peerings.clear());
    within(SOON, || {
        let left = east.namespace.sh("ip route; ip -6 route; ip -br link; nft list table inet isthmus");
        let traces = ["10.2.0", "fd00:2::", "iw-"]
            .map(|trace| left.lines().filter(|line| line.contains(trace)).count());
        // The chains name the prefix of tunnel devices, whether there are any or not.
        if traces[..2] == [0, 0] && !east.namespace.sh("ip -br link").contains("iw-") {
            Ok(())
        } else {
            Err(left)
        }
    });
}
