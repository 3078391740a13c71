// SPDX-License-Identifier: Apache-2.0
//! What of each peer's words is in force here, and what its ClusterPeering says about it.

mod status;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use isthmus_api::v1alpha1::{ClusterPeeringStatus, GatewayLane, NodeNetworkStatus};
use isthmus_mesh::grant::{Accepted, Grant, Refusal, accept};
use isthmus_mesh::record::{Announcement, Cluster, Gateway, Lane, PublicKey, Record, announcement};
use isthmus_model::ids::{ClusterId, ClusterIdentity, PeerName};

use crate::plan::Plan;
use crate::pools::Usable;
use crate::snapshot::{Peering, Problem, Seen, Snapshot};

pub(crate) use status::statuses;

/// What is in force of one peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judged {
    /// What is in force.
    pub(crate) accepted: Accepted,
    /// What is not.
    pub(crate) refusals: Vec<Refusal>,
    /// The peer was not heard since this process started; what its status says still holds.
    pub(crate) held: bool,
    /// Why the peering cannot work at all.
    pub(crate) problem: Option<Problem>,
}

/// Judges every peer. Peerings come first by age: a newcomer never takes CIDRs, names or identities in use.
pub(crate) fn judge<'a>(
    snapshot: &'a Snapshot,
    usable: &Usable<'_>,
    own_id: &Result<ClusterId, Problem>,
) -> BTreeMap<&'a str, Judged> {
    let mut by_age: Vec<_> = snapshot.peerings.iter().filter(|(_, seen)| !seen.deleting).collect();
    by_age.sort_by_key(|(name, seen)| (seen.created, name.as_str()));
    let mut earlier = Earlier::default();
    let mut verdicts = BTreeMap::new();
    for (name, seen) in by_age {
        let verdict = match grant(snapshot, usable, own_id, name, seen, &earlier) {
            Err(problem) => Judged { problem: Some(problem), ..Judged::default() },
            Ok(grant) => judge_one(snapshot, name, &seen.status, &grant),
        };
        earlier.note(name, seen, &verdict);
        verdicts.insert(name.as_str(), verdict);
    }
    verdicts
}

/// Whom to talk to, and how much of each peer's words is refused.
pub(crate) fn contacts(snapshot: &Snapshot, peers: &BTreeMap<&str, Judged>, plan: &mut Plan) {
    for (name, judged) in peers.iter().filter(|(_, judged)| judged.problem.is_none()) {
        if let Ok(peering) = &snapshot.peerings[*name].value {
            plan.peers.insert((*name).to_owned(), peering.clone());
        }
        for refusal in &judged.refusals {
            let count = plan.refused.entry(((*name).to_owned(), format!("{:?}", refusal.code))).or_default();
            *count += refusal.count as u64;
        }
    }
}

/// What older peerings have taken.
#[derive(Default)]
struct Earlier {
    identities: BTreeMap<ClusterIdentity, String>,
    cluster_ids: BTreeMap<ClusterId, PeerName>,
    cidrs: Vec<(IpNet, PeerName)>,
    keys: BTreeSet<PublicKey>,
}

impl Earlier {
    fn note(&mut self, name: &str, seen: &Seen<Peering, ClusterPeeringStatus>, verdict: &Judged) {
        let (Ok(peering), Ok(peer)) = (&seen.value, name.parse::<PeerName>()) else { return };
        if verdict.problem.is_some() {
            return;
        }
        self.identities.insert(peering.identity.clone(), name.to_owned());
        if let Some(id) = &verdict.accepted.cluster_id {
            self.cluster_ids.insert(id.clone(), peer.clone());
        }
        self.keys.extend(verdict.accepted.gateways.values().flat_map(Gateway::keys));
        self.cidrs.extend(verdict.accepted.cidrs.iter().map(|cidr| (*cidr, peer.clone())));
    }
}

fn grant(
    snapshot: &Snapshot,
    usable: &Usable<'_>,
    own_id: &Result<ClusterId, Problem>,
    name: &str,
    seen: &Seen<Peering, ClusterPeeringStatus>,
    earlier: &Earlier,
) -> Result<Grant, Problem> {
    let peering = seen.value.as_ref().map_err(Clone::clone)?;
    name.parse::<PeerName>()
        .map_err(|error| Problem { reason: "InvalidName", message: error.to_string() })?;
    let own_id = own_id.as_ref().map_err(Clone::clone)?;
    let identity = snapshot.cluster.identity.as_ref().ok_or_else(|| Problem {
        reason: "NoIdentity",
        message: "this cluster's own identity is not there yet".to_owned(),
    })?;
    if peering.identity == *identity {
        let message =
            "spec.identity is this cluster's own; apply the manifest in the other cluster".to_owned();
        return Err(Problem { reason: "SelfPeering", message });
    }
    if let Some(other) = earlier.identities.get(&peering.identity) {
        let message =
            format!("ClusterPeering {other} is with the same cluster and older; delete one of the two");
        return Err(Problem { reason: "DuplicateIdentity", message });
    }
    let pools = usable.values().filter_map(|verdict| verdict.as_ref().ok()).map(|pool| pool.cidr);
    Ok(Grant {
        own_identity: identity.clone(),
        own_cluster_id: own_id.clone(),
        peer_identity: peering.identity.clone(),
        other_cluster_ids: earlier.cluster_ids.clone(),
        allowed_cidrs: peering.allowed_cidrs.clone(),
        allowed_namespaces: peering.allowed_namespaces.clone(),
        local_cidrs: pools.chain(snapshot.cluster.service_cidrs.iter().copied()).collect(),
        local_nodes: snapshot.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect(),
        other_cidrs: earlier.cidrs.clone(),
        taken_keys: local_keys(snapshot).chain(earlier.keys.iter().copied()).collect(),
        peered_at: Some(seen.created),
    })
}

/// WireGuard keys of our own nodes.
fn local_keys(snapshot: &Snapshot) -> impl Iterator<Item = PublicKey> {
    let networks = snapshot.node_networks.values();
    networks.flat_map(|seen| keys_of(&seen.status)).filter_map(|key| key.parse().ok())
}

/// Keys that a node shows to peers, those of its lanes and of the next generation among them.
fn keys_of(status: &NodeNetworkStatus) -> impl Iterator<Item = &String> {
    let of_lanes =
        status.lanes.iter().flat_map(|lane| [Some(&lane.public_key), lane.next_public_key.as_ref()]);
    [status.public_key.as_ref(), status.next_public_key.as_ref()].into_iter().chain(of_lanes).flatten()
}

fn judge_one(snapshot: &Snapshot, name: &str, status: &ClusterPeeringStatus, grant: &Grant) -> Judged {
    let announced = snapshot.peers.get(name).and_then(|view| view.announcement.as_deref());
    let Some(announced) = announced else {
        // Held to the same grant: what was narrowed meanwhile is in force at once.
        let (accepted, _) = accept(grant, &remembered(status));
        return Judged { accepted, held: true, ..Judged::default() };
    };
    let (accepted, refusals) = accept(grant, announced);
    Judged { accepted, refusals, held: false, problem: None }
}

/// What a peering's status remembers of the peer's announcement.
fn remembered(status: &ClusterPeeringStatus) -> Announcement {
    let Some(cluster_id) = status.cluster_id.as_ref().and_then(|id| id.parse().ok()) else {
        return Announcement::new();
    };
    let pod_cidrs = status.remote_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect();
    let gateways = status.remote_gateways.iter().filter_map(|gateway| {
        Some(Record::Gateway(Gateway {
            name: gateway.name.clone(),
            public_key: gateway.public_key.parse().ok()?,
            endpoints: gateway.endpoints.iter().filter_map(|endpoint| endpoint.parse().ok()).collect(),
            mesh_addresses: gateway.mesh_addresses.iter().filter_map(|one| one.parse().ok()).collect(),
            ports: gateway
                .ports
                .iter()
                .filter_map(|one| Some((one.public_key.parse().ok()?, u16::try_from(one.port).ok()?)))
                .collect(),
            lanes: gateway.lanes.iter().map_while(remembered_lane).collect(),
        }))
    });
    announcement([Record::Cluster(Cluster { cluster_id, pod_cidrs })].into_iter().chain(gateways))
}

fn remembered_lane(lane: &GatewayLane) -> Option<Lane> {
    Some(Lane { public_key: lane.public_key.parse().ok()?, port: u16::try_from(lane.port).ok()? })
}

/// Services that a peer exports into namespaces that are not there.
pub(crate) fn without_namespace<'a>(snapshot: &'a Snapshot, judged: &'a Judged) -> BTreeSet<&'a str> {
    let namespaces = judged.accepted.exports.keys().map(|name| name.namespace.as_str());
    namespaces.filter(|namespace| !snapshot.namespaces.contains(*namespace)).collect()
}

#[cfg(test)]
mod tests;
