// SPDX-License-Identifier: Apache-2.0
//! Tunnels of a gateway node: one TUN device for each remote gateway.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use isthmus_model::dataplane::{DataplaneState, Tunnel};
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
    for (device, (name, gateway)) in own_tunnels(intent) {
        let peer = &intent.peers[name];
        desired.links.insert(device.clone(), Link { kind: LinkKind::Tunnel, mtu, mac: None });
        let tunnel = tunnel(intent, &facts.dataplane, name, peer, &peer.gateways[gateway]);
        desired.dataplane.tunnels.insert(device, tunnel);
    }
    desired.dataplane.gateway = intent.peers.values().any(|peer| peer.is_gateway(intent));
    desired.dataplane.listen_port = WIREGUARD_PORT;
    desired.dataplane.key_generation = intent.key_generation;
}

/// The devices of this node and the peer and remote gateway that each leads to.
pub fn own_tunnels(intent: &NodeIntent) -> BTreeMap<LinkName, (&PeerName, &str)> {
    let peers = intent.peers.iter().filter(|(_, peer)| peer.is_gateway(intent));
    peers
        .flat_map(|(name, peer)| peer.gateways.keys().map(move |gateway| (name, gateway.as_str())))
        .map(|(name, gateway)| (tunnel_device(name, gateway), (name, gateway)))
        .collect()
}

/// MTU of a tunnel device over an uplink of `uplink_mtu` bytes; never below IPv6's minimum.
pub(crate) fn device_mtu(uplink_mtu: u32) -> u32 {
    uplink_mtu.saturating_sub(WIREGUARD_OVERHEAD).clamp(1280, DEFAULT_TUNNEL_MTU)
}

fn tunnel(
    intent: &NodeIntent,
    dataplane: &DataplaneState,
    name: &PeerName,
    peer: &Peer,
    gateway: &RemoteGateway,
) -> Tunnel {
    Tunnel {
        peer: name.clone(),
        peer_key: gateway.public_key.clone(),
        endpoint: endpoint(intent, &gateway.endpoints)
            .map(|endpoint| on_own_port(endpoint, dataplane, gateway)),
        allowed: peer.remote_cidrs.clone(),
        keepalive_s: KEEPALIVE_S,
    }
}

/// Where the remote gateway has a port for each tunnel, the one for ours: it knows us by our key, for a while by the one before.
fn on_own_port(endpoint: SocketAddr, dataplane: &DataplaneState, gateway: &RemoteGateway) -> SocketAddr {
    let mut keys = dataplane.public_key.iter().chain(&dataplane.previous_public_key);
    let port = keys.find_map(|key| gateway.ports.get(key)).copied();
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
    fn the_port_that_the_peer_has_for_our_key_or_for_the_key_before_it_replaces_the_endpoints() {
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
        let port = |ports| on_own_port(endpoint, &ours, &gateway(ports)).port();
        assert_eq!(port(&[("new", 51823), ("old", 51822)]), 51823);
        assert_eq!(port(&[("old", 51822)]), 51822);
        assert_eq!(port(&[("another's", 51825)]), 51820);
    }
}
