// SPDX-License-Identifier: Apache-2.0
//! What this cluster tells its peers.

use std::collections::BTreeMap;

use isthmus_api::v1alpha1::{NodeLane, NodeNetworkStatus, TunnelStatus};
use isthmus_mesh::record::{Announcement, Cluster, Gateway, Lane, PublicKey, Record, announcement, limits};
use isthmus_model::ids::ClusterId;

use crate::exports::Exports;
use crate::pools::Usable;
use crate::snapshot::Snapshot;

pub(crate) fn records(
    snapshot: &Snapshot,
    own_id: &ClusterId,
    usable: &Usable<'_>,
    gateways: &[String],
    exports: &Exports,
) -> Announcement {
    let pools = usable.values().filter_map(|verdict| verdict.as_ref().ok());
    let cluster = Cluster {
        cluster_id: own_id.clone(),
        pod_cidrs: pools.map(|pool| pool.cidr).take(limits::CIDRS).collect(),
    };
    let gateways = gateways
        .iter()
        .filter_map(|name| Some((name, &snapshot.node_networks.get(name)?.status)))
        .flat_map(|(name, status)| gateway(snapshot, name, status));
    let exported = || exports.iter().filter_map(|(name, export)| Some((name, export.as_ref().ok()?)));
    let slices = exported().flat_map(|(name, _)| snapshot.slices.get(name).into_iter().flatten());
    announcement(
        std::iter::once(Record::Cluster(cluster))
            .chain(gateways.map(Record::Gateway))
            .chain(exported().map(|(_, export)| Record::Export(export.clone())))
            .chain(slices.map(|(_, slice)| Record::Endpoints(slice.record.clone()))),
    )
}

/// A gateway is told of once its agent has a key; peers wait for the rest. It is told of twice while its
/// key rotates: peers have tunnels to both keys then.
fn gateway(snapshot: &Snapshot, name: &str, status: &NodeNetworkStatus) -> Vec<Gateway> {
    let present = status.key_slot.unwrap_or(0);
    let keys = [(&status.public_key, present), (&status.next_public_key, i32::from(present == 0))];
    let told = keys.into_iter().filter_map(|(key, slot)| Some((key.as_ref()?.parse().ok()?, slot)));
    let gateways = told.map(|(public_key, slot)| Gateway {
        name: gateway_name(name, slot),
        public_key,
        endpoints: status.endpoints.iter().filter_map(|endpoint| endpoint.parse().ok()).collect(),
        mesh_addresses: status.mesh_addresses.iter().filter_map(|address| address.parse().ok()).collect(),
        ports: ports(snapshot, status, slot),
        lanes: lanes(status, public_key),
    });
    gateways.filter(|gateway| !gateway.mesh_addresses.is_empty()).collect()
}

/// The node's lanes with the keys that belong to this one of the node; none if not all of them have one.
fn lanes(status: &NodeNetworkStatus, public_key: PublicKey) -> Vec<Lane> {
    let next = status.next_public_key.as_ref().is_some_and(|next| *next == public_key.to_string());
    let lane = |lane: &NodeLane| {
        let key = if next { lane.next_public_key.as_ref()? } else { &lane.public_key };
        Some(Lane { public_key: key.parse().ok()?, port: u16::try_from(lane.port).ok()? })
    };
    let lanes: Option<Vec<Lane>> = status.lanes.iter().take(limits::LANES).map(lane).collect();
    lanes.unwrap_or_default()
}

/// The name of a node as a gateway with a key in this slot.
fn gateway_name(node: &str, slot: i32) -> String {
    if slot == 0 { node.to_owned() } else { format!("{node}.key-{slot}") }
}

/// Ports of the gateway's tunnels with the key in this slot, where each has its own, by the key at the other end.
fn ports(snapshot: &Snapshot, status: &NodeNetworkStatus, slot: i32) -> BTreeMap<PublicKey, u16> {
    let port = |tunnel: &TunnelStatus| -> Option<(PublicKey, u16)> {
        let port = u16::try_from(tunnel.listen_port?).ok().filter(|port| *port != 0)?;
        let peering = &snapshot.peerings.get(&tunnel.peering)?.status;
        let remote = peering.remote_gateways.iter().find(|remote| remote.name == tunnel.gateway)?;
        let key = match usize::try_from(tunnel.remote_lane.unwrap_or(0)) {
            Ok(0) => &remote.public_key,
            lane => &remote.lanes.get(lane.ok()?)?.public_key,
        };
        Some((key.parse().ok()?, port))
    };
    let with_key = status.tunnels.iter().filter(|tunnel| tunnel.key_slot.unwrap_or(0) == slot);
    with_key.filter_map(port).take(limits::GATEWAY_PORTS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::seen_with;
    use isthmus_api::v1alpha1::{ClusterPeeringStatus, GatewayLane, RemoteGateway};

    fn key(byte: u8) -> String {
        PublicKey::from([byte; 32]).to_string()
    }

    fn tunnel(key_slot: Option<i32>, port: i32) -> TunnelStatus {
        TunnelStatus {
            peering: "west".into(),
            gateway: "w1".into(),
            key_slot,
            listen_port: Some(port),
            ..TunnelStatus::default()
        }
    }

    #[test]
    fn a_gateway_whose_key_rotates_is_told_of_with_either_key_and_the_ports_of_its_tunnels() {
        let mut snapshot = Snapshot::default();
        let west = RemoteGateway { name: "w1".into(), public_key: key(9), ..RemoteGateway::default() };
        let status = ClusterPeeringStatus { remote_gateways: vec![west], ..ClusterPeeringStatus::default() };
        let nowhere = crate::snapshot::Problem { reason: "X", message: String::new() };
        snapshot.peerings.insert("west".into(), seen_with(Err(nowhere), status));
        let mut status = NodeNetworkStatus {
            public_key: Some(key(1)),
            next_public_key: Some(key(2)),
            mesh_addresses: vec!["10.1.0.0".into()],
            tunnels: vec![tunnel(None, 51820), tunnel(Some(1), 51822)],
            ..NodeNetworkStatus::default()
        };
        let told = |status: &NodeNetworkStatus| -> Vec<(String, String, Vec<u16>)> {
            let gateways = gateway(&snapshot, "e1", status).into_iter();
            let ports = |gateway: &Gateway| gateway.ports.values().copied().collect();
            gateways.map(|one| (one.name.clone(), one.public_key.to_string(), ports(&one))).collect()
        };
        let first = ("e1".to_owned(), key(1), vec![51820]);
        let second = ("e1.key-1".to_owned(), key(2), vec![51822]);
        assert_eq!(told(&status), [first, second.clone()]);

        // The second has become the present one, and the first drains.
        (status.public_key, status.next_public_key) = (Some(key(2)), None);
        status.key_slot = Some(1);
        status.tunnels.remove(0);
        assert_eq!(told(&status), [second]);
    }

    #[test]
    fn lanes_are_told_with_the_keys_that_go_with_the_nodes_and_ports_by_the_lane_at_the_other_end() {
        let mut snapshot = Snapshot::default();
        let there = |byte, port| GatewayLane { public_key: key(byte), port };
        let west = RemoteGateway {
            name: "w1".into(),
            public_key: key(9),
            lanes: vec![there(9, 51820), there(19, 51822)],
            ..RemoteGateway::default()
        };
        let status = ClusterPeeringStatus { remote_gateways: vec![west], ..ClusterPeeringStatus::default() };
        let nowhere = crate::snapshot::Problem { reason: "X", message: String::new() };
        snapshot.peerings.insert("west".into(), seen_with(Err(nowhere), status));
        let lane = |present, next, port| NodeLane {
            public_key: key(present),
            next_public_key: Some(key(next)),
            port,
        };
        let mut status = NodeNetworkStatus {
            public_key: Some(key(1)),
            next_public_key: Some(key(2)),
            lanes: vec![lane(1, 2, 51820), lane(11, 12, 51822)],
            mesh_addresses: vec!["10.1.0.0".into()],
            tunnels: vec![
                tunnel(None, 51820),
                TunnelStatus { remote_lane: Some(1), ..tunnel(None, 51823) },
                TunnelStatus { remote_lane: Some(2), ..tunnel(None, 51824) },
            ],
            ..NodeNetworkStatus::default()
        };
        let told = |status: &NodeNetworkStatus| -> Vec<Vec<(String, u16)>> {
            let lanes = |one: Gateway| one.lanes.iter().map(|l| (l.public_key.to_string(), l.port)).collect();
            gateway(&snapshot, "e1", status).into_iter().map(lanes).collect()
        };
        let of = |first, second| vec![(key(first), 51820), (key(second), 51822)];
        assert_eq!(told(&status), [of(1, 11), of(2, 12)]);
        let ports = &gateway(&snapshot, "e1", &status)[0].ports;
        let ports: Vec<_> = ports.iter().map(|(key, port)| (key.to_string(), *port)).collect();
        assert_eq!(ports, [(key(9), 51820), (key(19), 51823)], "the peer has no third lane");

        status.lanes.clear();
        assert_eq!(told(&status), [vec![], vec![]], "an agent of before");
    }
}
