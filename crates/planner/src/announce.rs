// SPDX-License-Identifier: Apache-2.0
//! What this cluster tells its peers.

use std::collections::BTreeMap;

use isthmus_api::v1alpha1::{NodeNetworkStatus, TunnelStatus};
use isthmus_mesh::record::{Announcement, Cluster, Gateway, PublicKey, Record, announcement, limits};
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
    let gateways =
        gateways.iter().filter_map(|name| gateway(snapshot, name, &snapshot.node_networks.get(name)?.status));
    let exported = || exports.iter().filter_map(|(name, export)| Some((name, export.as_ref().ok()?)));
    let slices = exported().flat_map(|(name, _)| snapshot.slices.get(name).into_iter().flatten());
    announcement(
        std::iter::once(Record::Cluster(cluster))
            .chain(gateways.map(Record::Gateway))
            .chain(exported().map(|(_, export)| Record::Export(export.clone())))
            .chain(slices.map(|(_, slice)| Record::Endpoints(slice.record.clone()))),
    )
}

/// A gateway is told of once its agent has a key; peers wait for the rest.
fn gateway(snapshot: &Snapshot, name: &str, status: &NodeNetworkStatus) -> Option<Gateway> {
    let gateway = Gateway {
        name: name.to_owned(),
        public_key: status.public_key.as_ref()?.parse().ok()?,
        endpoints: status.endpoints.iter().filter_map(|endpoint| endpoint.parse().ok()).collect(),
        mesh_addresses: status.mesh_addresses.iter().filter_map(|address| address.parse().ok()).collect(),
        ports: ports(snapshot, status),
    };
    (!gateway.mesh_addresses.is_empty()).then_some(gateway)
}

/// Ports of the gateway's tunnels, where each has its own, by the key at the other end.
fn ports(snapshot: &Snapshot, status: &NodeNetworkStatus) -> BTreeMap<PublicKey, u16> {
    let port = |tunnel: &TunnelStatus| -> Option<(PublicKey, u16)> {
        let port = u16::try_from(tunnel.listen_port?).ok().filter(|port| *port != 0)?;
        let peering = &snapshot.peerings.get(&tunnel.peering)?.status;
        let remote = peering.remote_gateways.iter().find(|remote| remote.name == tunnel.gateway)?;
        Some((remote.public_key.parse().ok()?, port))
    };
    status.tunnels.iter().filter_map(port).take(limits::GATEWAY_PORTS).collect()
}
