// SPDX-License-Identifier: Apache-2.0
//! Tunnels of a gateway node: a device for each remote gateway and pair of lanes, and while the key rotates one for each key.
//!
//! A lane is like a gateway of its own: it has a key and a port. Two gateways have as many tunnels between them as the one with more lanes
//! has lanes, so that no lane is without, and each tunnel leads from a lane to one of the same number, modulo the smaller count. Both sides
//! come to the same pairs. A side that does not know of lanes has one tunnel, as it always had.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use isthmus_model::dataplane::{DataplaneState, KeySlot, Tunnel};
use isthmus_model::ids::{LinkName, PeerName};
use isthmus_model::kernel::{Desired, Link, LinkKind};
use isthmus_model::ownership::{LANES_MAX, WIREGUARD_PORT};

use crate::facts::NodeFacts;
use crate::intent::{NodeIntent, Peer, RemoteGateway};
use crate::names::tunnel_device;

/// Inner MTU over a path of 1500 bytes: outer IPv6 and UDP, WireGuard data header and tag, padding (as `wg-quick(8)`).
pub const DEFAULT_TUNNEL_MTU: u32 = 1420;
const WIREGUARD_OVERHEAD: u32 = 80;
/// Keeps the mapping of a NAT on the way open, and lets the peer learn of a new address.
const KEEPALIVE_S: u16 = 25;

pub(crate) fn add(intent: &NodeIntent, facts: &NodeFacts, desired: &mut Desired) {
    let mtu = device_mtu(facts.uplink_mtu(intent.own_addresses()));
    for (device, own) in own_tunnels(intent, &facts.dataplane) {
        desired.links.insert(device.clone(), Link { kind: LinkKind::Tunnel, mtu, mac: None });
        desired.dataplane.tunnels.insert(device.clone(), tunnel(intent, &facts.dataplane, &own));
        // On a link without an IPv4 address the kernel takes a loose reverse path filter for a strict one, and drops what comes
        // by a tunnel that no route of its sender leads through: one that drains, or that only the peer holds to be up.
        desired.addresses.extend(intent.own_mesh_address(false).map(|address| (device, address.into())));
    }
    desired.dataplane.gateway = intent.peers.values().any(|peer| peer.is_gateway(intent));
    desired.dataplane.listen_port = WIREGUARD_PORT;
    desired.dataplane.key_generation = intent.key_generation;
}

/// A tunnel of this node.
#[derive(Clone, Copy, Debug)]
pub struct OwnTunnel<'a> {
    /// The peer.
    pub peer: &'a PeerName,
    /// The peer's gateway.
    pub gateway: &'a str,
    /// What is known of that.
    pub(crate) remote: &'a RemoteGateway,
    /// Which key of ours it has.
    pub key_slot: KeySlot,
    /// Which lane of ours carries it.
    pub lane: u8,
    /// Which lane of the remote gateway it leads to.
    pub remote_lane: u8,
    /// Its key is the one before: it still receives, and nobody is told of it any more.
    pub draining: bool,
}

/// The devices of this node and where each leads to.
pub fn own_tunnels<'a>(
    intent: &'a NodeIntent,
    dataplane: &DataplaneState,
) -> BTreeMap<LinkName, OwnTunnel<'a>> {
    let peers = intent.peers.iter().filter(|(_, peer)| peer.is_gateway(intent));
    peers.flat_map(|(name, peer)| tunnels_to(name, peer, dataplane)).collect()
}

/// The tunnels of a gateway node to one peer.
pub(crate) fn tunnels_to<'a>(
    name: &'a PeerName,
    peer: &'a Peer,
    dataplane: &DataplaneState,
) -> Vec<(LinkName, OwnTunnel<'a>)> {
    let mut tunnels = Vec::new();
    for (gateway, remote) in &peer.gateways {
        for (key_slot, draining) in key_slots(dataplane) {
            for (lane, remote_lane) in lane_pairs(dataplane.lanes.len(), remote.lanes.len()) {
                let tunnel = OwnTunnel { peer: name, gateway, remote, key_slot, lane, remote_lane, draining };
                tunnels.push((tunnel_device(name, gateway, key_slot, (lane, remote_lane)), tunnel));
            }
        }
    }
    tunnels
}

/// Which lane of ours has a tunnel to which of theirs, where there are so many; none of either is a side that does not know of lanes.
fn lane_pairs(ours: usize, theirs: usize) -> impl Iterator<Item = (u8, u8)> {
    let bounded = |count: usize| u8::try_from(count).unwrap_or(LANES_MAX).min(LANES_MAX);
    let (ours, theirs) = (bounded(ours), bounded(theirs));
    let tunnels = if ours == 0 || theirs == 0 { 1 } else { ours.max(theirs) };
    (0..tunnels).map(move |number| (number % ours.max(1), number % theirs.max(1)))
}

/// Slots of the keys that tunnels have, and whether it is that of the key before.
fn key_slots(dataplane: &DataplaneState) -> Vec<(KeySlot, bool)> {
    let next = dataplane.next_public_key.is_some().then_some(false);
    let previous = dataplane.previous_public_key.is_some().then_some(true);
    let other = next.or(previous).map(|draining| (dataplane.key_slot.other(), draining));
    std::iter::once((dataplane.key_slot, false)).chain(other).collect()
}

/// MTU of a tunnel device over an uplink of `uplink_mtu` bytes; never below IPv6's minimum.
pub(crate) fn device_mtu(uplink_mtu: u32) -> u32 {
    uplink_mtu.saturating_sub(WIREGUARD_OVERHEAD).clamp(1280, DEFAULT_TUNNEL_MTU)
}

fn tunnel(intent: &NodeIntent, dataplane: &DataplaneState, own: &OwnTunnel<'_>) -> Tunnel {
    let endpoint = endpoint(intent, &own.remote.endpoints);
    let lane = own.remote.lanes.get(usize::from(own.remote_lane)).filter(|_| own.remote_lane > 0);
    Tunnel {
        peer: own.peer.clone(),
        peer_key: lane.map_or(&own.remote.public_key, |lane| &lane.public_key).clone(),
        endpoint: endpoint.map(|mut endpoint| {
            if let Some(lane) = lane {
                endpoint.set_port(lane.port);
            }
            on_own_port(endpoint, dataplane, (own.lane, own.key_slot), own.remote)
        }),
        allowed: intent.peers[own.peer].remote_cidrs.clone(),
        keepalive_s: KEEPALIVE_S,
        key_slot: own.key_slot,
        lane: own.lane,
    }
}

/// Where the remote gateway has a port for each tunnel, the one for ours: it knows us by our lane's key.
fn on_own_port(
    endpoint: SocketAddr,
    dataplane: &DataplaneState,
    (lane, slot): (u8, KeySlot),
    gateway: &RemoteGateway,
) -> SocketAddr {
    let (present, next, previous) = match dataplane.lanes.get(usize::from(lane)) {
        Some(keys) => (Some(&keys.public_key), &keys.next_public_key, &keys.previous_public_key),
        None => (dataplane.public_key.as_ref(), &dataplane.next_public_key, &dataplane.previous_public_key),
    };
    let other = [next.as_ref(), previous.as_ref()];
    let keys = if slot == dataplane.key_slot { [present, None] } else { other };
    let port = keys.into_iter().flatten().find_map(|key| gateway.ports.get(key)).copied();
    SocketAddr::new(endpoint.ip(), port.unwrap_or(endpoint.port()))
}

/// The first endpoint of a family that this node has an address of.
fn endpoint(intent: &NodeIntent, endpoints: &[SocketAddr]) -> Option<SocketAddr> {
    let own = intent.own_addresses();
    let usable = |endpoint: &&SocketAddr| own.iter().any(|address| address.is_ipv6() == endpoint.is_ipv6());
    endpoints.iter().find(usable).or(endpoints.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_model::dataplane::LaneKeys;

    #[test]
    fn the_port_that_the_peer_has_for_the_tunnels_key_replaces_the_endpoints() {
        let endpoint: SocketAddr = "192.0.2.1:51820".parse().unwrap();
        let gateway = |ports: &[(&str, u16)]| RemoteGateway {
            ports: ports.iter().map(|(key, port)| ((*key).to_owned(), *port)).collect(),
            ..RemoteGateway::default()
        };
        let ours = DataplaneState {
            public_key: Some("new".into()),
            previous_public_key: Some("old".into()),
            ..DataplaneState::default()
        };
        let port = |slot, ports| on_own_port(endpoint, &ours, (0, slot), &gateway(ports)).port();
        let both = [("new", 51823), ("old", 51822)];
        assert_eq!((port(KeySlot::First, &both), port(KeySlot::Second, &both)), (51823, 51822));
        assert_eq!(port(KeySlot::First, &[("another's", 51825)]), 51820);
        let lane = |present: &str, old: &str| LaneKeys {
            public_key: present.into(),
            previous_public_key: Some(old.into()),
            next_public_key: None,
        };
        let lanes = vec![lane("new", "old"), lane("new 1", "old 1")];
        let ours = DataplaneState { lanes, ..ours };
        let ports = [("new", 51823), ("old", 51822), ("new 1", 51825), ("old 1", 51826)];
        let port = |lane, slot| on_own_port(endpoint, &ours, (lane, slot), &gateway(&ports)).port();
        assert_eq!([0, 1].map(|lane| port(lane, KeySlot::First)), [51823, 51825]);
        assert_eq!([0, 1].map(|lane| port(lane, KeySlot::Second)), [51822, 51826]);
    }

    fn pairs(ours: usize, theirs: usize) -> Vec<(u8, u8)> {
        lane_pairs(ours, theirs).collect()
    }

    #[test]
    fn every_lane_of_the_side_with_more_has_a_tunnel_and_both_sides_come_to_the_same_pairs() {
        assert_eq!(pairs(2, 2), [(0, 0), (1, 1)]);
        assert_eq!(pairs(2, 1), [(0, 0), (1, 0)]);
        assert_eq!(pairs(3, 2), [(0, 0), (1, 1), (2, 0)]);
        for (ours, theirs) in (0..12).flat_map(|ours| (0..12).map(move |theirs| (ours, theirs))) {
            let (here, there) = (pairs(ours, theirs), pairs(theirs, ours));
            assert_eq!(here, there.iter().map(|(a, b)| (*b, *a)).collect::<Vec<_>>(), "{ours} and {theirs}");
            assert!(here.iter().all(|(a, b)| *a < LANES_MAX && *b < LANES_MAX));
            let once: std::collections::BTreeSet<_> = here.iter().collect();
            assert_eq!(once.len(), here.len(), "{ours} and {theirs}");
        }
    }

    #[test]
    fn with_a_side_that_does_not_know_of_lanes_there_is_one_tunnel() {
        for (ours, theirs) in [(0, 0), (0, 1), (1, 0), (8, 0), (0, 8), (1, 1)] {
            assert_eq!(pairs(ours, theirs), [(0, 0)], "{ours} and {theirs}");
        }
        assert_eq!(pairs(8, 1).len(), 8, "one lane is another thing than none");
    }
}
