// SPDX-License-Identifier: Apache-2.0
//! Convergence: what is wanted is made, what is ours and not wanted is swept, what is not ours stays.

use std::time::Duration;

use isthmus_kernel::{InSync, Kernel};
use isthmus_model::kernel::{Link, LinkKind, Route, RouteKey, RouteKind, Rule};
use isthmus_testkit::{Lab, Namespace, within_async};

use super::node::{Node, key, leads_to, net, open_nft};

fn refuse(kind: RouteKind) -> Route {
    Route { kind, mtu: None, source: None }
}

/// A node with two TUN devices, as the data plane process makes them.
fn node_with_tunnels(lab: &Lab) -> Node {
    let node = Node::new(lab, "node");
    for link in ["iw-000000000001", "iw-000000000002"] {
        node.namespace.sh(&format!("ip tuntap add mode tun {link}"));
    }
    let mut node = node;
    for link in ["iw-000000000001", "iw-000000000002"] {
        let wanted = Link { kind: LinkKind::Tunnel, mtu: 1380, mac: None };
        node.want.links.insert(link.parse().unwrap(), wanted);
    }
    node
}

fn vxlan(local: &str, mac: [u8; 6]) -> Link {
    let kind = LinkKind::Vxlan { vni: 7300, port: 4789, local: local.parse().unwrap() };
    Link { kind, mtu: 1450, mac: Some(mac) }
}

/// A second pass finds nothing to do: what was written is read back as what was wanted.
async fn settles(node: &mut Node) {
    node.converge().await;
    let again = node.converge().await;
    assert_eq!(again.changed, 0, "a second pass changed something");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_entry_is_made_once_and_then_left_alone() {
    let Some(lab) = Lab::new("settles") else { return };
    let mut node = node_with_tunnels(&lab);
    let tunnels = [("iw-000000000001", None), ("iw-000000000002", None)];
    let want = &mut node.want;
    let vxlan_name = "vxlan-isthmus".parse().unwrap();
    want.links.insert("vxlan-isthmus".parse().unwrap(), vxlan("127.0.0.1", [2, 0, 0, 0, 0, 1]));
    want.addresses.insert(("vxlan-isthmus".parse().unwrap(), net("10.9.1.0/32")));
    want.addresses.insert(("iw-000000000001".parse().unwrap(), net("fd09:1::/128")));
    want.routes.insert(key(net("10.20.0.0/16")), Route { mtu: Some(1300), ..leads_to(&tunnels) });
    want.routes.insert(key(net("fd20::/48")), Route { mtu: Some(1300), ..leads_to(&tunnels) });
    for destination in ["10.20.0.0/16", "fd20::/48"] {
        let last = RouteKey { metric: 1 << 31, ..key(net(destination)) };
        want.routes.insert(last, refuse(RouteKind::Unreachable));
    }
    want.routes.insert(key(net("10.21.0.0/16")), refuse(RouteKind::Blackhole));
    want.routes.insert(key(net("fd21::/48")), refuse(RouteKind::Blackhole));
    let mut by_vxlan = leads_to(&[("vxlan-isthmus", Some("10.9.2.0"))]);
    if let RouteKind::Unicast(hops) = &mut by_vxlan.kind {
        hops[0].onlink = true;
    }
    by_vxlan.source = Some([10, 9, 1, 0].into());
    want.routes.insert(key(net("10.9.2.0/26")), by_vxlan.clone());
    want.routes.insert(RouteKey { table: 7300, ..key(net("0.0.0.0/0")) }, by_vxlan);
    want.neighbours.insert((vxlan_name, [10, 9, 2, 0].into()), [2, 0, 0, 0, 0, 2]);
    want.fdb.insert(("vxlan-isthmus".parse().unwrap(), [2, 0, 0, 0, 0, 2]), [192, 0, 2, 2].into());
    for v6 in [false, true] {
        want.rules.insert(Rule { priority: 7300, v6, mark: (0x8000_0000, 0xff00_0000), table: 7300 });
    }
    want.sysctls.insert("net/ipv4/fib_multipath_hash_policy".into(), "1".into());
    settles(&mut node).await;
    let shown =
        node.namespace.sh("ip -d route show table all proto 73; ip -6 -d route show table all proto 73");
    for text in ["10.20.0.0/16", "nexthop dev iw-000000000001", "fd20::/48", "table 7300", "mtu 1300"] {
        assert!(shown.contains(text), "{text} is missing in:\n{shown}");
    }
    assert!(node.namespace.sh("ip rule; ip -6 rule").matches("lookup 7300").count() == 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_follows_every_change_of_its_kind_in_both_families() {
    let Some(lab) = Lab::new("kinds") else { return };
    let mut node = node_with_tunnels(&lab);
    let (one, two) = (("iw-000000000001", None), ("iw-000000000002", None));
    let steps = [
        leads_to(&[one]),
        leads_to(&[one, two]),
        leads_to(&[two]),
        refuse(RouteKind::Unreachable),
        leads_to(&[one, two]),
        refuse(RouteKind::Blackhole),
        leads_to(&[one]),
    ];
    for step in steps {
        for destination in ["10.20.0.0/16", "fd20::/48"] {
            node.want.routes.insert(key(net(destination)), step.clone());
        }
        settles(&mut node).await;
    }
    node.want.routes.clear();
    settles(&mut node).await;
    assert_eq!(node.namespace.sh("ip route show proto 73; ip -6 route show proto 73"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_put_back_and_hold_for_a_link_that_was_made_anew() {
    let Some(lab) = Lab::new("settings") else { return };
    let mut node = node_with_tunnels(&lab);
    let settings = ["net/ipv4/fib_multipath_hash_policy", "net/ipv4/conf/vxlan-isthmus/rp_filter"];
    let value =
        |node: &Node, setting: &str| node.namespace.sh(&format!("cat /proc/sys/{setting}")).trim().to_owned();
    let of_number = |vni| {
        let mut link = vxlan("127.0.0.1", [2, 0, 0, 0, 0, 1]);
        link.kind = LinkKind::Vxlan { vni, port: 4789, local: [127, 0, 0, 1].into() };
        link
    };
    node.want.links.insert("vxlan-isthmus".parse().unwrap(), of_number(7300));
    for (setting, wanted) in settings.into_iter().zip(["1", "2"]) {
        node.want.sysctls.insert(setting.into(), wanted.into());
    }
    settles(&mut node).await;
    node.namespace.sh("sysctl -qw net.ipv4.fib_multipath_hash_policy=0");
    settles(&mut node).await;
    assert_eq!(value(&node, settings[0]), "1");

    // It is made anew, by a step from what is remembered.
    node.want.links.insert("vxlan-isthmus".parse().unwrap(), of_number(7301));
    let outcomes = node.kernel.advance(node.want.clone(), InSync::all_listed()).await;
    assert!(outcomes.is_clean(), "{outcomes:?}");
    assert_eq!(value(&node, settings[1]), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_route_rule_and_link_are_back_after_the_next_pass() {
    let Some(lab) = Lab::new("repair") else { return };
    let mut node = Node::new(&lab, "node");
    node.want.links.insert("vxlan-isthmus".parse().unwrap(), vxlan("127.0.0.1", [2, 0, 0, 0, 0, 1]));
    node.want.routes.insert(key(net("10.21.0.0/16")), refuse(RouteKind::Unreachable));
    node.want.rules.insert(Rule { priority: 7301, v6: false, mark: (1 << 31, 0xff00_0000), table: 7301 });
    node.want.fdb.insert(("vxlan-isthmus".parse().unwrap(), [2, 0, 0, 0, 0, 2]), [192, 0, 2, 2].into());
    settles(&mut node).await;
    node.namespace
        .sh("ip route del unreachable 10.21.0.0/16; ip rule del priority 7301; ip link del vxlan-isthmus");
    settles(&mut node).await;
    node.namespace.sh("ip route show 10.21.0.0/16 | grep -q unreachable");
    node.namespace.sh("ip rule | grep -q 7301; bridge fdb show dev vxlan-isthmus | grep -q 192.0.2.2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vxlan_device_that_was_changed_is_made_anew() {
    let Some(lab) = Lab::new("vxlan") else { return };
    let mut node = Node::new(&lab, "node");
    let name = || "vxlan-isthmus".parse().unwrap();
    node.want.links.insert(name(), vxlan("127.0.0.1", [2, 0, 0, 0, 0, 1]));
    node.want.fdb.insert((name(), [2, 0, 0, 0, 0, 2]), [192, 0, 2, 2].into());
    settles(&mut node).await;
    node.want.links.insert(name(), vxlan("127.0.0.2", [2, 0, 0, 0, 0, 9]));
    node.converge().await;
    settles(&mut node).await;
    let shown = node.namespace.sh("ip -d link show vxlan-isthmus; bridge fdb show dev vxlan-isthmus");
    for text in ["local 127.0.0.2", "02:00:00:00:00:09", "192.0.2.2", "nolearning"] {
        assert!(shown.contains(text), "{text} is missing in:\n{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_is_never_touched() {
    let Some(lab) = Lab::new("foreign") else { return };
    let (mut node, other) = (Node::new(&lab, "node"), lab.namespace("other"));
    lab.cable(
        (&node.namespace, "eth0", &["192.0.2.1/24", "fd02::1/64"]),
        (&other, "eth0", &["192.0.2.2/24"]),
    );
    node.namespace.sh(
        "ip route add 10.50.0.0/16 via 192.0.2.2 proto static; ip -6 route add fd50::/48 dev eth0 proto 186
         ip route add 10.51.0.0/16 via 192.0.2.2 table 7300; ip rule add priority 7310 from 10.0.0.1 lookup 100
         ip link add vxlan-foreign type vxlan id 9 dstport 4790 local 192.0.2.1; ip link set vxlan-foreign up
         ip neigh add 10.50.0.9 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
         bridge fdb append 02:00:00:00:00:78 dev vxlan-foreign dst 192.0.2.2
         nft add table ip foreign; nft add chain ip foreign c",
    );
    let all = "ip route show table all; ip -6 route show table all; ip rule; ip -o addr; ip -o neigh show nud permanent
        ip -o link; bridge fdb show dev vxlan-foreign; nft list table ip foreign";
    // The kernel's own timers and addresses under way differ from one look to the next.
    let steady = |namespace: &Namespace| {
        let text = namespace.sh(all);
        let lines = text.lines().filter(|line| !line.contains("fe80") && !line.contains("multicast"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = steady(&node.namespace);
    settles(&mut node).await;
    assert_eq!(steady(&node.namespace), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_route_in_our_way_is_left_and_named_while_others_go_on() {
    let Some(lab) = Lab::new("in-the-way") else { return };
    let mut node = node_with_tunnels(&lab);
    node.namespace.sh("ip link set lo up; ip route add 10.20.0.0/16 dev lo");
    node.want.routes.insert(key(net("10.20.0.0/16")), leads_to(&[("iw-000000000001", None)]));
    node.want.routes.insert(key(net("10.22.0.0/16")), leads_to(&[("iw-000000000001", None)]));
    let outcomes = node.kernel.converge(node.want.clone(), InSync::all_listed()).await;
    let failed: Vec<&String> = outcomes.failed.keys().collect();
    assert_eq!(failed, ["route 10.20.0.0/16 table 254 metric 0"]);
    node.namespace
        .sh("ip route show 10.20.0.0/16 | grep -q 'dev lo'; ip route show 10.22.0.0/16 | grep -q iw-");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_does_not_exist_yet_is_named_and_the_rest_is_done_without_it() {
    let Some(lab) = Lab::new("missing") else { return };
    let mut node = node_with_tunnels(&lab);
    let tunnels = [("iw-000000000001", None), ("iw-000000000002", None)];
    node.want.routes.insert(key(net("10.20.0.0/16")), leads_to(&tunnels));
    node.namespace.sh("ip link del iw-000000000002");
    let outcomes = node.kernel.converge(node.want.clone(), InSync::all_listed()).await;
    let failed: Vec<&String> = outcomes.failed.keys().collect();
    assert_eq!(failed, ["link iw-000000000002", "route 10.20.0.0/16 table 254 metric 0"]);
    node.namespace.sh("ip route show 10.20.0.0/16 | grep -q iw-000000000001");
    node.namespace.sh("ip tuntap add mode tun iw-000000000002");
    settles(&mut node).await;
    node.namespace.sh("ip route show 10.20.0.0/16 | grep -q iw-000000000002");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_without_memory_sweeps_what_the_old_one_left() {
    let Some(lab) = Lab::new("sweep") else { return };
    let mut node = node_with_tunnels(&lab);
    let want = &mut node.want;
    want.links.insert("vxlan-isthmus".parse().unwrap(), vxlan("127.0.0.1", [2, 0, 0, 0, 0, 1]));
    want.addresses.insert(("lo".parse().unwrap(), net("198.51.100.7/32")));
    want.addresses.insert(("lo".parse().unwrap(), net("fd77::7/128")));
    want.routes.insert(RouteKey { table: 7305, ..key(net("fd20::/48")) }, refuse(RouteKind::Unreachable));
    want.rules.insert(Rule { priority: 7399, v6: true, mark: (1 << 31, 0xff00_0000), table: 7305 });
    settles(&mut node).await;
    let Node { namespace, want, kernel, .. } = node;
    drop(kernel);
    let mut kernel = Kernel::open_in(&namespace.path(), open_nft(&namespace)).unwrap();
    // A program that another test is just starting may hold the socket of the old one a moment longer.
    within_async(Duration::from_secs(1), async || {
        kernel.arm(&want.nft).await.map_err(|error| error.to_string())
    })
    .await;
    let nothing = isthmus_model::kernel::Desired { nft: want.nft, ..Default::default() };
    let outcomes = kernel.converge(nothing.clone(), InSync::all_listed()).await;
    assert!(outcomes.is_clean(), "{outcomes:?}");
    let left =
        namespace.sh("ip -6 route show table 7305; ip rule; ip -6 rule; ip -o addr show dev lo; ip -o link");
    for ours in ["fd20", "7305", "198.51.100.7", "fd77::7", "vxlan-isthmus"] {
        assert!(!left.contains(ours), "{ours} is left in:\n{left}");
    }
    assert!(left.contains("iw-000000000001"), "tunnel devices belong to the data plane process:\n{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_behind_a_router_reach_each_other_through_vxlan() {
    let Some(lab) = Lab::new("overlay") else { return };
    let (left, right) = (lab.namespace("left"), lab.namespace("right"));
    lab.cable((&left, "eth0", &["192.0.2.1/24"]), (&right, "eth0", &["192.0.2.2/24"]));
    let mut nodes = [Node::of(left), Node::of(right)];
    let pods = [lab.namespace("pod-1"), lab.namespace("pod-2")];
    for (at, node) in nodes.iter_mut().enumerate() {
        let (me, peer) = (at as u8 + 1, 2 - at as u8);
        let name = || "vxlan-isthmus".parse().unwrap();
        node.want.links.insert(name(), vxlan(&format!("192.0.2.{me}"), [2, 0, 0, 0, 0, me]));
        node.want.fdb.insert((name(), [2, 0, 0, 0, 0, peer]), [192, 0, 2, peer].into());
        let (near, far) = (
            [format!("10.9.{me}.0"), format!("fd09:{me}::")],
            [format!("10.9.{peer}.0"), format!("fd09:{peer}::")],
        );
        let pod = [format!("10.9.0.{peer}/32"), format!("fd09::{peer}/128")];
        for ((near, far), pod) in near.iter().zip(&far).zip(&pod) {
            let near: std::net::IpAddr = near.parse().unwrap();
            node.want.addresses.insert((name(), near.into()));
            node.want.neighbours.insert((name(), far.parse().unwrap()), [2, 0, 0, 0, 0, peer]);
            let mut route = leads_to(&[("vxlan-isthmus", Some(far))]);
            if let RouteKind::Unicast(hops) = &mut route.kind {
                hops[0].onlink = true;
            }
            node.want.routes.insert(key(net(pod)), route);
        }
        settles(node).await;
        node.add_pod(&pods[at], me).await;
    }
    for target in ["10.9.0.2", "fd09::2"] {
        pods[0].ping(target).unwrap();
    }
}
