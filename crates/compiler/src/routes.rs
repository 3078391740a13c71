// SPDX-License-Identifier: Apache-2.0
//! Routes: to own pods, to blocks of other nodes, to peers; under each an answer that holds when nothing better does.

use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_model::ids::{LinkName, NodeName, PeerName};
use isthmus_model::kernel::{Desired, NextHop, Route, RouteKey, RouteKind, Rule};
use isthmus_model::ownership::COPY_TABLE;

use crate::facts::NodeFacts;
use crate::intent::{Encapsulation, NodeIntent, Peer, Pool, is_v6};
use crate::names::{gateway_probe, tunnel_probe};
use crate::tunnels::{DEFAULT_TUNNEL_MTU, device_mtu, tunnels_to};
use crate::{FALLBACK_METRIC, MAIN_TABLE, paths};

/// Of a host route beside a better one: behind what the kernel gives to IPv6 routes without metric (1024).
const OTHER_TUNNELS_METRIC: u32 = 2048;

pub(crate) fn add(intent: &NodeIntent, facts: &NodeFacts, desired: &mut Desired) {
    pods(facts, desired);
    own_blocks(intent, desired);
    other_blocks(intent, facts, desired);
    pools(intent, desired);
    for (name, peer) in &intent.peers {
        peer_routes(intent, facts, desired, name, peer);
    }
    copies(desired);
}

/// What leads somewhere stands a second time in a table of its own. What refuses does not: asked before the main table it
/// would hide longer prefixes there, such as the underlay's.
fn copies(desired: &mut Desired) {
    let leads = |(key, route): (&RouteKey, &Route)| {
        let unicast = key.table == MAIN_TABLE && matches!(route.kind, RouteKind::Unicast(_));
        unicast.then(|| (RouteKey { table: COPY_TABLE, ..key.clone() }, route.clone()))
    };
    let copies: Vec<_> = desired.routes.iter().filter_map(leads).collect();
    desired.routes.extend(copies);
    for v6 in [false, true] {
        desired.rules.insert(Rule { priority: COPY_TABLE, v6, mark: (0, 0), table: COPY_TABLE });
    }
}

/// A route's key in the main table.
pub(crate) fn main_table(destination: IpNet, metric: u32) -> RouteKey {
    RouteKey { table: MAIN_TABLE, destination, metric }
}

/// A route that refuses.
pub(crate) fn unreachable() -> Route {
    Route { kind: RouteKind::Unreachable, mtu: None, source: None }
}

fn pods(facts: &NodeFacts, desired: &mut Desired) {
    for (link, pod) in &facts.pods {
        for address in &pod.addresses {
            let hop = NextHop { via: None, link: link.clone(), onlink: false };
            let route = Route { kind: RouteKind::Unicast(vec![hop]), mtu: None, source: None };
            desired.routes.insert(main_table((*address).into(), 0), route);
        }
    }
}

/// The node's own addresses in its blocks, and a drop for addresses that no pod has: they must not circle to the default route.
fn own_blocks(intent: &NodeIntent, desired: &mut Desired) {
    for (cidr, block) in intent.own_blocks() {
        let lo: LinkName = "lo".parse().expect("two letters");
        desired.addresses.extend(block.mesh_address(cidr).map(|address| (lo, address.into())));
        if intent.is_external(block) {
            continue;
        }
        let route = Route { kind: RouteKind::Blackhole, mtu: None, source: None };
        // Last: another plugin that has addresses of the block has a route for it of its own.
        desired.routes.insert(main_table(*cidr, FALLBACK_METRIC), route);
    }
}

fn other_blocks(intent: &NodeIntent, facts: &NodeFacts, desired: &mut Desired) {
    for (cidr, block) in intent.blocks.iter().filter(|(_, block)| !intent.is_self(&block.node)) {
        let Some(pool) = intent.pools.get(&block.pool).filter(|pool| !pool.external) else { continue };
        let to = (&block.node, is_v6(cidr));
        let Some(path) = paths::to_node(intent, facts, desired, to, pool.encapsulation) else { continue };
        // Out of the VXLAN device the node's own packets need an address that leads back the same way.
        let source = path.hop.onlink.then(|| intent.own_mesh_address(is_v6(cidr))).flatten();
        let route = Route { kind: RouteKind::Unicast(vec![path.hop]), mtu: path.mtu, source };
        desired.routes.insert(main_table(*cidr, 0), route);
    }
}

/// A pool's addresses never leave by the default route, unless what lies between the nodes is said to route them.
fn pools(intent: &NodeIntent, desired: &mut Desired) {
    let led_by_us = |pool: &&Pool| pool.encapsulation != Encapsulation::Never && !pool.external;
    for pool in intent.pools.values().filter(led_by_us) {
        desired.routes.insert(main_table(pool.cidr, FALLBACK_METRIC), unreachable());
    }
}

fn peer_routes(intent: &NodeIntent, facts: &NodeFacts, desired: &mut Desired, name: &PeerName, peer: &Peer) {
    let fallbacks = peer.all_cidrs().map(|cidr| (main_table(*cidr, FALLBACK_METRIC), unreachable()));
    desired.routes.extend(fallbacks);
    for cidr in &peer.remote_cidrs {
        let (hops, mtu) = if peer.is_gateway(intent) {
            through_tunnels(intent, facts, name, peer)
        } else {
            through_gateways(intent, facts, desired, (name, peer), is_v6(cidr))
        };
        if hops.is_empty() {
            continue;
        }
        let source = intent.own_mesh_address(is_v6(cidr));
        let route = Route { kind: RouteKind::Unicast(hops), mtu: Some(mtu), source };
        desired.routes.insert(main_table(*cidr, 0), route);
    }
    if peer.is_gateway(intent) {
        remote_gateways(intent, facts, desired, name, peer);
    }
}

/// Each remote gateway's own address lies behind its own tunnels and no other: while a key rotates there are several, the
/// best first. A probe is bound to its device and needs a route by it, up or not (IPv6).
fn remote_gateways(
    intent: &NodeIntent,
    facts: &NodeFacts,
    desired: &mut Desired,
    name: &PeerName,
    peer: &Peer,
) {
    let mut tunnels = tunnels_to(name, peer, &facts.dataplane);
    tunnels.sort_by_key(|(device, own)| (own.draining, !is_up(facts, device)));
    for (device, own) in tunnels {
        let hop = NextHop { via: None, link: device, onlink: false };
        for address in &own.remote.mesh_addresses {
            let source = intent.own_mesh_address(address.is_ipv6());
            let route = Route { kind: RouteKind::Unicast(vec![hop.clone()]), mtu: None, source };
            let mut metrics = std::iter::once(0).chain(OTHER_TUNNELS_METRIC..);
            let free =
                |metric: &u32| !desired.routes.contains_key(&main_table(IpNet::from(*address), *metric));
            if let Some(metric) = metrics.find(free) {
                desired.routes.insert(main_table(IpNet::from(*address), metric), route);
            }
        }
    }
}

fn is_up(facts: &NodeFacts, device: &LinkName) -> bool {
    facts.dataplane.probes.get(&tunnel_probe(device)).is_some_and(|probe| probe.up)
}

/// Hops and path MTU on a gateway: all tunnels that answer, but those that drain only if no other does; all while none does.
fn through_tunnels(
    intent: &NodeIntent,
    facts: &NodeFacts,
    name: &PeerName,
    peer: &Peer,
) -> (Vec<NextHop>, u32) {
    let tunnels = tunnels_to(name, peer, &facts.dataplane);
    let (draining, lasting): (Vec<_>, Vec<_>) = tunnels.into_iter().partition(|(_, own)| own.draining);
    let devices = |tunnels: Vec<(LinkName, _)>| tunnels.into_iter().map(|(device, _)| device).collect();
    let (draining, lasting): (Vec<LinkName>, Vec<LinkName>) = (devices(draining), devices(lasting));
    let up = |device: &LinkName| is_up(facts, device);
    let used = if !lasting.iter().any(up) && draining.iter().any(up) { draining } else { lasting };
    let used = those_or_all(used, up);
    let limit = device_mtu(facts.uplink_mtu(intent.own_addresses()));
    let path_mtu = |device: &LinkName| facts.dataplane.probes.get(&tunnel_probe(device))?.path_mtu;
    let measured = used.iter().filter_map(path_mtu).map(u32::from).min();
    let mut hops: Vec<NextHop> =
        used.into_iter().map(|link| NextHop { via: None, link, onlink: false }).collect();
    hops.sort();
    (hops, measured.unwrap_or(limit).clamp(1280, limit))
}

/// Hops and path MTU on other nodes: gateways that reach the peer; else those that answer; else all.
fn through_gateways(
    intent: &NodeIntent,
    facts: &NodeFacts,
    desired: &mut Desired,
    (name, peer): (&PeerName, &Peer),
    v6: bool,
) -> (Vec<NextHop>, u32) {
    let probe = |node: &NodeName| facts.dataplane.probes.get(&gateway_probe(node)).filter(|probe| probe.up);
    let all: Vec<NodeName> = peer.local_gateways.iter().cloned().collect();
    let answering = those_or_all(all, |node| probe(node).is_some());
    let used = those_or_all(answering, |node| {
        probe(node).is_some_and(|probe| probe.reaches.contains(name.as_str()))
    });
    let encapsulation = paths::own_encapsulation(intent, v6);
    let mut hops = Vec::new();
    let mut mtu = DEFAULT_TUNNEL_MTU;
    for node in &used {
        let Some(path) = paths::to_node(intent, facts, desired, (node, v6), encapsulation) else { continue };
        let measured = intent.nodes.get(node).and_then(|node| node.tunnel_mtus.get(name)).copied();
        mtu = mtu.min(path.mtu.unwrap_or(mtu)).min(measured.unwrap_or(mtu)).max(1280);
        hops.push(path.hop);
    }
    hops.sort();
    (hops, mtu)
}

fn those_or_all<T>(all: Vec<T>, good: impl Fn(&T) -> bool) -> Vec<T> {
    if all.iter().any(&good) { all.into_iter().filter(good).collect() } else { all }
}

/// Host prefix of an address.
pub(crate) fn host(address: IpAddr) -> IpNet {
    address.into()
}
