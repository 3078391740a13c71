// SPDX-License-Identifier: Apache-2.0
//! What holds for all that is compiled, whatever the intent.

use ipnet::IpNet;
use isthmus_compiler::{
    FALLBACK_METRIC, MAIN_TABLE, NodeFacts, NodeIntent, PodFacts, Uplink, compile, gateway_probe,
    own_tunnels, pod_link, render, tunnel_probe,
};
use isthmus_model::dataplane::{LaneKeys, ProbeState};
use isthmus_model::kernel::{Desired, RouteKey, RouteKind};
use isthmus_model::nft::Set;
use isthmus_model::ownership::{COPY_TABLE, ROUTE_TABLES, RULE_PRIORITIES};

pub(super) fn holds(intent: &NodeIntent) {
    for facts in [NodeFacts::default(), facts(intent)] {
        let desired = compile(intent, &facts);
        assert_eq!(compile(intent, &facts), desired, "the same twice is not the same");
        assert!(!render(&desired).is_empty());
        peers_are_sealed(intent, &desired);
        routes_are_ours(&desired);
        tunnels_carry_their_peers_only(intent, &desired);
    }
}

/// A node with a link and a pod, whose probes are answered.
fn facts(intent: &NodeIntent) -> NodeFacts {
    let mut facts = NodeFacts::default();
    let addresses = intent
        .own_addresses()
        .iter()
        .filter_map(|address| IpNet::new(*address, if address.is_ipv4() { 24 } else { 64 }).ok());
    let uplink = Uplink { mtu: 1500, addresses: addresses.collect(), ..Uplink::default() };
    facts.uplinks.insert("eth0".parse().expect("a name"), uplink);
    let pod = PodFacts {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        addresses: vec![[10, 1, 1, 5].into(), "fd00:1::5".parse().expect("an address")],
    };
    facts.pods.insert(pod_link("a", "eth0"), pod);
    let up = |mtu| ProbeState { up: true, path_mtu: mtu, ..ProbeState::default() };
    let lane = |key: &str| LaneKeys { public_key: key.to_owned(), ..LaneKeys::default() };
    facts.dataplane.lanes = vec![lane("first"), lane("second"), lane("third")];
    let tunnels = own_tunnels(intent, &facts.dataplane)
        .into_keys()
        .map(|device| (tunnel_probe(&device), up(Some(1300))));
    let gateways = intent.nodes.keys().map(|node| (gateway_probe(node), up(None)));
    facts.dataplane.probes = tunnels.chain(gateways).collect();
    facts
}

/// Under each route to a peer lies one that refuses, and the sets that close the way out hold all of it.
fn peers_are_sealed(intent: &NodeIntent, desired: &Desired) {
    let sealed = |cidr: &IpNet| {
        let name = if cidr.addr().is_ipv4() { "remote_v4" } else { "remote_v6" };
        match desired.nft.sets.get(name) {
            Some(Set::PrefixesV4(nets) | Set::PrefixesV6(nets)) => nets.contains(cidr),
            _ => false,
        }
    };
    for cidr in intent.peers.values().flat_map(|peer| peer.remote_cidrs.union(&peer.closed_cidrs)) {
        let key = RouteKey { table: MAIN_TABLE, destination: *cidr, metric: FALLBACK_METRIC };
        let refuses = desired.routes.get(&key).is_some_and(|route| route.kind == RouteKind::Unreachable);
        assert!(refuses, "nothing refuses what is meant for {cidr} when its tunnels are gone");
        assert!(sealed(cidr), "{cidr} may leave by another way");
    }
}

fn routes_are_ours(desired: &Desired) {
    for (key, route) in &desired.routes {
        let known = key.table == MAIN_TABLE || key.table == COPY_TABLE || ROUTE_TABLES.contains(&key.table);
        assert!(known, "table {}", key.table);
        if let RouteKind::Unicast(hops) = &route.kind {
            assert!(!hops.is_empty() && hops.is_sorted(), "{hops:?}");
        }
        assert!(route.mtu.is_none_or(|mtu| mtu >= 1280), "{route:?}");
    }
    assert!(desired.rules.iter().all(|rule| RULE_PRIORITIES.contains(&rule.priority)));
    assert!(desired.links.values().all(|link| link.mtu >= 1280));
}

fn tunnels_carry_their_peers_only(intent: &NodeIntent, desired: &Desired) {
    for (device, tunnel) in &desired.dataplane.tunnels {
        assert!(desired.links.contains_key(device), "{device}");
        assert_eq!(tunnel.allowed, intent.peers[&tunnel.peer].remote_cidrs);
    }
}
