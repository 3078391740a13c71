// SPDX-License-Identifier: Apache-2.0
//! Probes: through each tunnel of this node, and to the gateways of this cluster that it relies on.

use std::net::{IpAddr, SocketAddr};

use isthmus_model::dataplane::Probe;
use isthmus_model::ids::NodeName;
use isthmus_model::kernel::Desired;
use isthmus_model::ownership::PROBE_PORT;

use crate::facts::NodeFacts;
use crate::intent::NodeIntent;
use crate::names::{gateway_probe, tunnel_probe};
use crate::tunnels::own_tunnels;

/// With [`DOWN_AFTER`], a dead path is known within a second.
const INTERVAL_MS: u32 = 250;
const DOWN_AFTER: u8 = 3;

pub(crate) fn add(intent: &NodeIntent, facts: &NodeFacts, desired: &mut Desired) {
    let own_mesh = intent.own_mesh_addresses();
    desired.dataplane.respond_on = intent.own_addresses().iter().copied().chain(own_mesh).collect();
    tunnels(intent, facts, desired);
    for node in gateways_relied_on(intent) {
        let Some(address) = intent.nodes.get(node).and_then(|node| node.addresses.first()) else { continue };
        let probe = probe(*address, None, None, None);
        desired.dataplane.probes.insert(gateway_probe(node), probe);
    }
}

fn tunnels(intent: &NodeIntent, facts: &NodeFacts, desired: &mut Desired) {
    for (device, own) in own_tunnels(intent, &facts.dataplane) {
        let ends = own.remote.mesh_addresses.iter().find_map(|target| {
            let source = intent.own_mesh_address(target.is_ipv6())?;
            Some((*target, source))
        });
        let Some((target, source)) = ends else { continue };
        let mtu_max = desired.links.get(&device).and_then(|link| u16::try_from(link.mtu).ok());
        let probe = probe(target, Some(source), Some(device.clone()), mtu_max);
        desired.dataplane.probes.insert(tunnel_probe(&device), probe);
    }
}

/// Gateways of peerings whose tunnels this node does not carry itself.
fn gateways_relied_on(intent: &NodeIntent) -> impl Iterator<Item = &NodeName> {
    let peers = intent.peers.values().filter(|peer| !peer.is_gateway(intent));
    peers.flat_map(|peer| &peer.local_gateways)
}

fn probe(
    target: IpAddr,
    source: Option<IpAddr>,
    device: Option<isthmus_model::ids::LinkName>,
    mtu_max: Option<u16>,
) -> Probe {
    Probe {
        target: SocketAddr::new(target, PROBE_PORT),
        source,
        device,
        interval_ms: INTERVAL_MS,
        down_after: DOWN_AFTER,
        mtu_max,
    }
}
