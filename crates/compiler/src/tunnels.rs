// SPDX-License-Identifier: Apache-2.0
//! Tunnels of a gateway node: a device for each remote gateway, and while the key rotates one for each key.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use isthmus_model::dataplane::{DataplaneState, KeySlot, Tunnel};
use isthmus_model::ids::{LinkName, PeerName};
use isthmus_model::kernel::{Desired, Link, LinkKind};
use isthmus_model::ownership::WIREGUARD_PORT;

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
            let tunnel = OwnTunnel { peer: name, gateway, remote, key_slot, draining };
            tunnels.push((tunnel_device(name, gateway, key_slot), tunnel));
        }
    }
    tunnels
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
    Tunnel {
        peer: own.peer.clone(),
        peer_key: own.remote.public_key.clone(),
        endpoint: endpoint.map(|endpoint| on_own_port(endpoint, dataplane, own.key_slot, own.remote)),
        allowed: intent.peers[own.peer].remote_cidrs.clone(),
        keepalive_s: KEEPALIVE_S,
        key_slot: own.key_slot,
    }
}

/// Where the remote gateway has a port for each tunnel, the one for ours: it knows us by our key.
fn on_own_port(
    endpoint: SocketAddr,
    dataplane: &DataplaneState,
    slot: KeySlot,
    gateway: &RemoteGateway,
) -> SocketAddr {
    let keys = if slot == dataplane.key_slot {
        [&dataplane.public_key, &None]
    } else {
        [&dataplane.next_public_key, &dataplane.previous_public_key]
    };
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
        let port = |slot, ports| on_own_port(endpoint, &ours, slot, &gateway(ports)).port();
        let both = [("new", 51823), ("old", 51822)];
        assert_eq!((port(KeySlot::First, &both), port(KeySlot::Second, &both)), (51823, 51822));
        assert_eq!(port(KeySlot::First, &[("another's", 51825)]), 51820);
    }
}
