// SPDX-License-Identifier: Apache-2.0
//! What the rules do to packets, and how `nft` prints them.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use isthmus_model::kernel::{RouteKey, Rule as PolicyRule};
use isthmus_model::nft::{Chain, ChainKind, Hook, Match, Rule, Set, Statement};
use isthmus_testkit::{Lab, Namespace, within};

use super::node::{Node, key, leads_to, net};

fn prefixes(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

fn rule(matches: Vec<Match>, then: Statement) -> Rule {
    Rule { matches, then, comment: "test".into() }
}

fn chain(hook: Hook, priority: i32, kind: ChainKind, rules: Vec<Rule>) -> Chain {
    Chain { hook, priority, kind, rules }
}

/// A node with one pod (10.9.0.1, fd09::1) and a neighbour outside that has no route back to pods.
async fn node_and_outside(lab: &Lab) -> (Node, Namespace, Namespace) {
    let (namespace, outside, pod) = (lab.namespace("node"), lab.namespace("outside"), lab.namespace("pod"));
    lab.cable(
        (&namespace, "eth0", &["192.0.2.1/24", "fd02::1/64"]),
        (&outside, "eth0", &["192.0.2.2/24", "fd02::2/64"]),
    );
    let mut node = Node::of(namespace);
    node.add_pod(&pod, 1).await;
    (node, outside, pod)
}

#[track_caller]
fn reached(pod: &Namespace, target: &str) {
    within(Duration::from_secs(5), || pod.ping(target).map_err(|error| format!("{error:#}")));
}

fn add_prefixes(node: &mut Node, four: &[&str], six: &[&str]) {
    node.want.nft.sets.insert("inside4".into(), Set::PrefixesV4(prefixes(four)));
    node.want.nft.sets.insert("inside6".into(), Set::PrefixesV6(prefixes(six)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_leave_with_the_nodes_address_where_they_are_masqueraded() {
    let Some(lab) = Lab::new("masquerade") else { return };
    let (mut node, outside, pod) = node_and_outside(&lab).await;
    assert!(pod.ping("192.0.2.2").is_err(), "the outside knows no way back to pods");
    add_prefixes(&mut node, &["10.9.0.0/16"], &["fd09::/64"]);
    let out = |v6: bool, set: &str| {
        let matches = vec![
            Match::Source { v6, set: set.into(), negate: false },
            Match::Destination { v6, set: set.into(), negate: true },
        ];
        rule(matches, Statement::Masquerade)
    };
    let rules = vec![out(false, "inside4"), out(true, "inside6")];
    node.want.nft.chains.insert("nat".into(), chain(Hook::Postrouting, 99, ChainKind::Nat, rules));
    node.converge().await;
    pod.ping("192.0.2.2").unwrap();
    pod.ping("fd02::2").unwrap();
    assert!(outside.try_sh("ip route get 10.9.0.1").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn selected_traffic_takes_another_way_and_leaves_with_a_fixed_address() {
    let Some(lab) = Lab::new("egress") else { return };
    let (mut node, outside, pod) = node_and_outside(&lab).await;
    outside.sh("ip addr add 203.0.113.5/32 dev lo");
    add_prefixes(&mut node, &["203.0.113.0/24"], &[]);
    let selected = || Match::Destination { v6: false, set: "inside4".into(), negate: false };
    let mark = rule(vec![selected()], Statement::SetMark { value: 0x8000_0000, mask: 0xff00_0000 });
    let snat = rule(vec![selected()], Statement::SourceNat([192, 0, 2, 77].into()));
    let chains = &mut node.want.nft.chains;
    chains.insert("mark".into(), chain(Hook::Prerouting, -150, ChainKind::Filter, vec![mark]));
    chains.insert("snat".into(), chain(Hook::Postrouting, 99, ChainKind::Nat, vec![snat]));
    let marked = PolicyRule { priority: 7300, v6: false, mark: (0x8000_0000, 0xff00_0000), table: 7300 };
    node.want.rules.insert(marked);
    let way = leads_to(&[("eth0", Some("192.0.2.2"))]);
    node.want.routes.insert(RouteKey { table: 7300, ..key(net("0.0.0.0/0")) }, way);
    node.want.addresses.insert(("eth0".parse().unwrap(), net("192.0.2.77/32")));
    node.converge().await;
    let mut capture = outside.spawn("tcpdump", &["-n", "-l", "-i", "eth0", "-c", "1", "icmp[0]=8"]).unwrap();
    within(Duration::from_secs(5), || {
        pod.ping("203.0.113.5").unwrap();
        capture.try_wait().unwrap().ok_or("nothing captured")
    });
    let text = String::from_utf8(capture.wait_with_output().unwrap().stdout).unwrap();
    assert!(text.contains("192.0.2.77 > 203.0.113.5"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_meant_for_a_peer_does_not_leave_by_a_router_that_is_no_node() {
    let Some(lab) = Lab::new("sealed") else { return };
    let (mut node, outside, pod) = node_and_outside(&lab).await;
    outside.sh(
        "ip addr add 10.20.0.1/32 dev lo; ip addr add fd20::1/128 dev lo; ip addr add 203.0.113.5/32 dev lo",
    );
    outside.sh("ip route add 10.9.0.0/16 via 192.0.2.1; ip route add fd09::/64 via fd02::1");
    // All routes of ours are gone; what is left is the default route.
    node.namespace.sh("ip route add default via 192.0.2.2; ip route add default via fd02::2");
    add_prefixes(&mut node, &["10.20.0.0/16"], &["fd20::/64"]);
    let sealed = |v6: bool, remote: &str, nodes: &str| {
        let matches = vec![
            Match::Family { v6 },
            Match::Destination { v6, set: remote.into(), negate: false },
            Match::OutLinkPrefix { prefix: "iw-".into(), negate: true },
            Match::NextHop { v6, set: nodes.into(), negate: true },
        ];
        rule(matches, Statement::Drop)
    };
    let rules = vec![sealed(false, "inside4", "nodes4"), sealed(true, "inside6", "nodes6")];
    node.want.nft.chains.insert("sealed".into(), chain(Hook::Postrouting, -150, ChainKind::Filter, rules));
    let nodes = |four: &[&str], six: &[&str]| {
        [("nodes4", Set::PrefixesV4(prefixes(four))), ("nodes6", Set::PrefixesV6(prefixes(six)))]
            .map(|(name, set)| (name.to_owned(), set))
    };
    node.want.nft.sets.extend(nodes(&["192.0.2.9/32"], &["fd02::9/128"]));
    node.converge().await;
    reached(&pod, "fd02::2");
    for target in ["10.20.0.1", "fd20::1"] {
        assert!(pod.ping(target).is_err(), "{target} was reached by the default route");
    }
    reached(&pod, "203.0.113.5");
    // The same router as a node of the cluster: it has a tunnel.
    node.want.nft.sets.extend(nodes(&["192.0.2.2/32"], &["fd02::2/128"]));
    node.converge().await;
    for target in ["10.20.0.1", "fd20::1"] {
        reached(&pod, target);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_stands_twice_carries_while_either_is_deleted() {
    let Some(lab) = Lab::new("twice") else { return };
    let (mut node, outside, pod) = node_and_outside(&lab).await;
    outside.sh("ip addr add 10.20.0.1/32 dev lo; ip addr add fd20::1/128 dev lo");
    outside.sh("ip route add 10.9.0.0/16 via 192.0.2.1; ip route add fd09::/64 via fd02::1");
    for (destination, via) in [("10.20.0.0/16", "192.0.2.2"), ("fd20::/64", "fd02::2")] {
        node.want.routes.insert(key(net(destination)), leads_to(&[("eth0", Some(via))]));
    }
    let routes = node.want.routes.clone().into_iter();
    node.want.routes.extend(routes.map(|(key, route)| (RouteKey { table: 7399, ..key }, route)));
    for v6 in [false, true] {
        node.want.rules.insert(PolicyRule { priority: 7399, v6, mark: (0, 0), table: 7399 });
    }
    node.converge().await;
    assert_eq!(node.converge().await.changed, 0, "a second pass changed something");
    // The cable is new: the kernel still makes sure of its own IPv6 addresses.
    reached(&pod, "fd20::1");
    for deleted in ["main", "7399"] {
        node.namespace.sh(&format!(
            "ip -4 route flush proto 73 table {deleted}; ip -6 route flush proto 73 table {deleted}"
        ));
        for target in ["10.20.0.1", "fd20::1"] {
            pod.ping(target).unwrap();
        }
        node.converge().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_segment_size_of_a_syn_is_lowered_to_the_routes_mtu() {
    let Some(lab) = Lab::new("mss") else { return };
    let (mut node, outside, pod) = node_and_outside(&lab).await;
    outside.sh("ip route add 10.9.0.0/16 via 192.0.2.1");
    let clamp = rule(vec![Match::Protocol(6), Match::TcpSyn], Statement::ClampMss);
    node.want.nft.chains.insert("clamp".into(), chain(Hook::Forward, -150, ChainKind::Filter, vec![clamp]));
    let mut narrow = leads_to(&[("eth0", Some("192.0.2.2"))]);
    narrow.mtu = Some(1280);
    node.want.routes.insert(key(net("203.0.113.0/24")), narrow);
    node.converge().await;
    let mut capture = outside
        .spawn("tcpdump", &["-n", "-l", "-i", "eth0", "-c", "1", "tcp[tcpflags] & tcp-syn != 0"])
        .unwrap();
    within(Duration::from_secs(5), || {
        let _ = pod.try_sh("timeout 0.1 bash -c 'exec 3<>/dev/tcp/203.0.113.5/80'");
        capture.try_wait().unwrap().ok_or("nothing captured")
    });
    let text = String::from_utf8(capture.wait_with_output().unwrap().stdout).unwrap();
    assert!(text.contains("mss 1240"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nft_prints_every_condition_and_statement_as_it_is_meant() {
    let Some(lab) = Lab::new("printed") else { return };
    let mut node = Node::new(&lab, "node");
    add_prefixes(&mut node, &["10.0.0.0/16", "10.1.0.0/16", "192.0.2.0/24"], &["fd00::/48"]);
    let links = ["ist1", "ist2"].map(|name| name.parse().unwrap());
    node.want.nft.sets.insert("links".into(), Set::Links(links.into()));
    node.want
        .nft
        .sets
        .insert("pods4".into(), Set::LinkSourcesV4([(links_first(), [10, 0, 0, 9].into())].into()));
    let set = |name: &str| name.to_owned();
    let rules = vec![
        rule(vec![Match::InLinkSet { set: set("links"), negate: false }], Statement::Accept),
        rule(vec![Match::OutLinkSet { set: set("links"), negate: true }], Statement::Drop),
        rule(vec![Match::OutLinkPrefix { prefix: set("iw-"), negate: true }], Statement::Accept),
        rule(vec![Match::Family { v6: true }], Statement::NoTrack),
        rule(vec![Match::Source { v6: true, set: set("inside6"), negate: true }], Statement::Accept),
        rule(vec![Match::Destination { v6: false, set: set("inside4"), negate: false }], Statement::Accept),
        rule(vec![Match::Protocol(17), Match::DestinationPorts(51820, 51820)], Statement::Drop),
        rule(vec![Match::Protocol(6), Match::DestinationPorts(80, 89)], Statement::Accept),
        rule(vec![Match::LocalDestination { negate: true }], Statement::Accept),
        rule(vec![Match::Mark { value: 0x8000_0000, mask: 0x8000_0000 }], Statement::Accept),
        rule(vec![Match::NextHop { v6: false, set: set("inside4"), negate: true }], Statement::Drop),
        rule(vec![Match::NextHop { v6: true, set: set("inside6"), negate: false }], Statement::Accept),
        rule(vec![], Statement::SetMark { value: 0x8000_0000, mask: 0xff00_0000 }),
    ];
    node.want.nft.chains.insert("all".into(), chain(Hook::Prerouting, -300, ChainKind::Filter, rules));
    node.converge().await;
    let shown = node.namespace.sh("nft list table inet isthmus");
    let lines: Vec<String> = shown.lines().map(|line| line.trim().to_owned()).collect();
    for line in [
        "elements = { 10.0.0.0/15, 192.0.2.0/24 }",
        "elements = { fd00::/48 }",
        "elements = { \"ist1\" . 10.0.0.9 }",
        "iifname @links accept comment \"test\"",
        "oifname != @links counter packets 0 bytes 0 drop comment \"test\"",
        "oifname != \"iw-*\" accept comment \"test\"",
        "meta nfproto ipv6 notrack comment \"test\"",
        "ip6 saddr != @inside6 accept comment \"test\"",
        "ip daddr @inside4 accept comment \"test\"",
        "udp dport 51820 counter packets 0 bytes 0 drop comment \"test\"",
        "tcp dport 80-89 accept comment \"test\"",
        "fib daddr type != local accept comment \"test\"",
        "meta mark 0x80000000/1 accept comment \"test\"",
        "meta nfproto ipv4 rt ip nexthop != @inside4 counter packets 0 bytes 0 drop comment \"test\"",
        "meta nfproto ipv6 rt ip6 nexthop @inside6 accept comment \"test\"",
        "meta mark set meta mark & 0x80ffffff | 0x80000000 comment \"test\"",
    ] {
        assert!(lines.iter().any(|shown| shown == line), "{line}\nis missing in:\n{shown}");
    }
}

fn links_first() -> isthmus_model::ids::LinkName {
    "ist1".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_follow_every_change_of_their_prefixes() {
    let Some(lab) = Lab::new("prefixes") else { return };
    let mut node = Node::new(&lab, "node");
    let steps: [(&[&str], &str); 6] = [
        (&["10.0.0.0/16"], "{ 10.0.0.0/16 }"),
        (&["10.0.0.0/16", "10.1.0.0/16"], "{ 10.0.0.0/15 }"),
        (&["10.1.0.0/16", "10.1.2.0/24"], "{ 10.1.0.0/16 }"),
        (&["0.0.0.0/0"], "{ 0.0.0.0/0 }"),
        (&["10.1.2.0/24", "255.255.255.0/24"], "{ 10.1.2.0/24, 255.255.255.0/24 }"),
        (&["10.1.0.0/17", "10.2.0.0/16"], "{ 10.1.0.0/17, 10.2.0.0/16 }"),
    ];
    for (wanted, shown) in steps {
        node.want.nft.sets.insert("inside4".into(), Set::PrefixesV4(prefixes(wanted)));
        node.converge().await;
        let text = node
            .namespace
            .sh("nft list set inet isthmus inside4")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        assert!(text.contains(shown), "{shown} is missing in {text}");
    }
    node.want.nft.sets.remove("inside4");
    node.converge().await;
    assert!(node.namespace.try_sh("nft list set inet isthmus inside4").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_thousands_of_pods_and_prefixes_is_made_in_one_transaction() {
    let Some(lab) = Lab::new("large") else { return };
    let mut node = Node::new(&lab, "node");
    let pairs = (0..5000u32).map(|n| (format!("ist{n:012x}").parse().unwrap(), (0x0a00_0000 + n).into()));
    node.want.nft.sets.insert("pods4".into(), Set::LinkSourcesV4(pairs.collect()));
    let nets = (0..3000u32).map(|n| IpNet::new(std::net::Ipv4Addr::from(n << 12).into(), 24).unwrap());
    node.want.nft.sets.insert("inside4".into(), Set::PrefixesV4(nets.collect()));
    node.converge().await;
    assert_eq!(node.converge().await.changed, 0);
    assert!(node.namespace.sh("nft list set inet isthmus pods4").contains("10.0.19.135"));
    assert!(node.namespace.sh("nft list set inet isthmus inside4").contains("0.183.112.0/24"));
}
