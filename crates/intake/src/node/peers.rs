// SPDX-License-Identifier: Apache-2.0
//! Peerings: what the operator put in force, checked once more, since a route to the wrong place is the worst mistake there is.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use isthmus_api::v1alpha1::{ClusterPeering, GatewayLane, RemoteGateway as ApiGateway};
use isthmus_compiler::{NodeIntent, Peer, RemoteGateway, RemoteLane};
use isthmus_model::ids::PeerName;
use isthmus_model::ownership::LANES_MAX;

use super::pools::cidr;
use super::{NodeObjects, Problem, accept};

pub(super) fn peers(objects: &NodeObjects, intent: &mut NodeIntent, problems: &mut Vec<Problem>) {
    let standing = objects.peerings.iter().filter(|(_, object)| object.metadata.deletion_timestamp.is_none());
    for (name, object) in standing {
        let label = || format!("ClusterPeering/{name}");
        let Some(name) = accept(name.parse::<PeerName>(), label, problems) else { continue };
        let peer = peer(object, intent, &mut |message| problems.push(Problem { object: label(), message }));
        intent.peers.insert(name, peer);
    }
}

fn peer(object: &ClusterPeering, intent: &NodeIntent, problem: &mut dyn FnMut(String)) -> Peer {
    let mut peer = Peer::default();
    let Some(status) = &object.status else { return peer };
    for text in &status.remote_cidrs {
        match remote_cidr(text, object, intent, &peer) {
            Ok(cidr) => {
                peer.remote_cidrs.insert(cidr);
            }
            Err(message) => problem(message),
        }
    }
    for cidr in status.closed_cidrs.iter().filter_map(|text| cidr(text).ok()) {
        if apart(&cidr, intent).is_ok() {
            peer.closed_cidrs.insert(cidr);
        }
    }
    for remote in &status.remote_gateways {
        match gateway(remote, &peer) {
            Ok(gateway) => {
                peer.gateways.insert(remote.name.clone(), gateway);
            }
            Err(message) => problem(message),
        }
    }
    peer.local_gateways = status.local_gateways.iter().filter_map(|name| name.parse().ok()).collect();
    peer
}

fn remote_cidr(
    text: &str,
    object: &ClusterPeering,
    intent: &NodeIntent,
    peer: &Peer,
) -> Result<IpNet, String> {
    let cidr = cidr(text)?;
    let granted = object.spec.allowed_cidrs.iter().filter_map(|grant| grant.parse::<IpNet>().ok());
    if !granted.into_iter().any(|grant| grant.contains(&cidr)) {
        return Err(format!("{cidr} is not granted; add it to spec.allowedCIDRs"));
    }
    apart(&cidr, intent)?;
    let overlaps = |other: &&IpNet| other.contains(&cidr) || cidr.contains(*other);
    match peer.remote_cidrs.iter().find(overlaps) {
        Some(other) => Err(format!("{cidr} overlaps {other} of the same peering")),
        None => Ok(cidr),
    }
}

/// Whether a peer's CIDR is apart from our pools, our nodes and what other peerings have; else with what it collides.
fn apart(cidr: &IpNet, intent: &NodeIntent) -> Result<(), String> {
    let overlaps = |other: &IpNet| other.contains(cidr) || cidr.contains(other);
    if let Some((pool, of)) = intent.pools.iter().find(|(_, pool)| overlaps(&pool.cidr)) {
        return Err(format!("{cidr} overlaps the IPPool {pool} ({}) of this cluster", of.cidr));
    }
    let others =
        intent.peers.iter().flat_map(|(name, peer)| peer.remote_cidrs.iter().map(move |net| (name, net)));
    if let Some((name, net)) = others.into_iter().find(|(_, net)| overlaps(net)) {
        return Err(format!("{cidr} overlaps {net} of the peering {name}"));
    }
    let nodes = intent.nodes.values().flat_map(|node| &node.addresses);
    match nodes.into_iter().find(|address| cidr.contains(*address)) {
        Some(address) => Err(format!("{cidr} holds the address {address} of a node of this cluster")),
        None => Ok(()),
    }
}

fn gateway(remote: &ApiGateway, peer: &Peer) -> Result<RemoteGateway, String> {
    let key = &remote.public_key;
    if !is_key(key) {
        return Err(format!("gateway {:?}: {key:?} is no WireGuard key", remote.name));
    }
    let endpoints: Vec<SocketAddr> =
        remote.endpoints.iter().filter_map(|endpoint| endpoint.parse().ok()).collect();
    let mut mesh_addresses = Vec::new();
    for text in &remote.mesh_addresses {
        let address: IpAddr =
            text.parse().map_err(|_| format!("gateway {:?}: {text:?} is no address", remote.name))?;
        if !peer.remote_cidrs.iter().any(|cidr| cidr.contains(&address)) {
            return Err(format!(
                "gateway {:?}: its address {address} is in no CIDR of the peering",
                remote.name
            ));
        }
        mesh_addresses.push(address);
    }
    let ports =
        remote.ports.iter().filter_map(|one| Some((one.public_key.clone(), u16::try_from(one.port).ok()?)));
    let (ports, lanes) = (ports.collect(), lanes(remote)?);
    Ok(RemoteGateway { public_key: key.clone(), endpoints, mesh_addresses, ports, lanes })
}

fn lanes(remote: &ApiGateway) -> Result<Vec<RemoteLane>, String> {
    let wrong = |why: String| format!("gateway {:?}: {why}", remote.name);
    if remote.lanes.len() > usize::from(LANES_MAX) {
        return Err(wrong(format!("{} lanes; at most {LANES_MAX} are taken", remote.lanes.len())));
    }
    if remote.lanes.first().is_some_and(|first| first.public_key != remote.public_key) {
        return Err(wrong("its first lane has another key than it has itself".to_owned()));
    }
    let lane = |lane: &GatewayLane| {
        let key = &lane.public_key;
        let port = u16::try_from(lane.port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| wrong(format!("{} is no port of a lane", lane.port)))?;
        if !is_key(key) {
            return Err(wrong(format!("{key:?} of a lane is no WireGuard key")));
        }
        Ok(RemoteLane { public_key: key.clone(), port })
    };
    remote.lanes.iter().map(lane).collect()
}

/// Whether it has the form of a public key: base64 of 32 bytes.
fn is_key(text: &str) -> bool {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    text.len() == 44 && text.ends_with('=') && text.bytes().take(43).all(base64)
}

/// What gateways measured, for the routes of the nodes that send through them.
pub(super) fn tunnel_mtus(objects: &NodeObjects, intent: &mut NodeIntent) {
    for (name, node) in &mut intent.nodes {
        let status = objects.networks.get(name.as_str()).and_then(|network| network.status.as_ref());
        for tunnel in status.iter().flat_map(|status| &status.tunnels).filter(|tunnel| tunnel.up) {
            let Ok(peer) = tunnel.peering.parse::<PeerName>() else { continue };
            let Some(mtu) = tunnel.mtu.and_then(|mtu| u32::try_from(mtu).ok()) else { continue };
            let smallest = node.tunnel_mtus.entry(peer).or_insert(mtu);
            *smallest = mtu.min(*smallest);
        }
    }
}
