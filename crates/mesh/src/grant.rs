// SPDX-License-Identifier: Apache-2.0
//! What of a peer's announcement is in force: what its peering grants, and nothing else.
//!
//! A peer is semi-trusted. Whatever it says is laid beside the grant of the local ClusterPeering; what lies outside
//! is dropped and named, what lies inside stands. Pure: the same grant and announcement give the same answer, in
//! whatever order the records came.

mod reserved;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_model::ids::{ClusterId, ClusterIdentity, PeerName};
use jiff::Timestamp;

use crate::record::{
    Announcement, Cluster, Endpoints, Export, Gateway, PublicKey, Record, RecordKey, limits,
};

/// Namespaces whose services no peer ever announces here, whatever is granted.
pub const RESERVED_NAMESPACES: [&str; 4] =
    ["isthmus-system", "kube-node-lease", "kube-public", "kube-system"];

/// What a peer may announce, from our own objects only.
#[derive(Clone, Debug)]
pub struct Grant {
    /// This cluster's identity.
    pub own_identity: ClusterIdentity,
    /// This cluster's alias.
    pub own_cluster_id: ClusterId,
    /// The identity that the peer proved.
    pub peer_identity: ClusterIdentity,
    /// Aliases of other peers in force, with their peerings.
    pub other_cluster_ids: BTreeMap<ClusterId, PeerName>,
    /// `allowedCIDRs` of the peering: an announced CIDR must lie within one of them.
    pub allowed_cidrs: Vec<IpNet>,
    /// `allowedNamespaces` of the peering.
    pub allowed_namespaces: BTreeSet<String>,
    /// CIDRs of our pods and Services.
    pub local_cidrs: Vec<IpNet>,
    /// Addresses of our nodes.
    pub local_nodes: Vec<IpAddr>,
    /// CIDRs in force for other peers, with their peerings: first come, first served.
    pub other_cidrs: Vec<(IpNet, PeerName)>,
    /// WireGuard keys of our nodes and of other peers' gateways in force: a peer that showed one of them as its own
    /// would draw that gateway's handshakes to itself.
    pub taken_keys: BTreeSet<PublicKey>,
    /// An export that claims to be older than this counts as made at this time, so that no peer wins every conflict
    /// by claiming 1970. None takes the claim as it is.
    pub peered_at: Option<Timestamp>,
}

/// What is in force of an announcement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The peer's alias, once it has announced one that is free.
    pub cluster_id: Option<ClusterId>,
    /// Its pod CIDRs.
    pub cidrs: BTreeSet<IpNet>,
    /// Its gateways, by name.
    pub gateways: BTreeMap<String, Gateway>,
    /// Its exported services.
    pub exports: BTreeMap<ServiceName, Export>,
    /// Slices of those services, by name. An entry exists only where the export does.
    pub endpoints: BTreeMap<ServiceName, BTreeMap<String, Endpoints>>,
}

/// A Service's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Something that was announced and is not in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The announced thing, such as `cidr 10.0.0.0/8` or `export kube-system/dns`.
    pub what: String,
    /// Why, and what would change it.
    pub reason: String,
    /// The reason for a machine.
    pub code: RefusalCode,
    /// How many things this entry stands for (such as endpoints of one slice).
    pub count: usize,
}

/// Why something is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusalCode {
    /// The CIDR or address is not within what is granted and accepted.
    AddressNotGranted,
    /// The alias is ours or another peer's.
    ClusterIdTaken,
    /// The record breaks its own form.
    Invalid,
    /// The WireGuard key is that of another gateway.
    KeyTaken,
    /// More than a peer may say.
    Limit,
    /// The namespace is not granted.
    NamespaceNotGranted,
    /// The CIDR overlaps ours.
    OverlapsLocal,
    /// The CIDR overlaps another peer's.
    OverlapsPeer,
    /// The address range or namespace is never a peer's to announce.
    Reserved,
    /// The peer is this cluster.
    SelfPeering,
    /// A slice of a service that is not exported, or whose export is refused.
    ServiceNotExported,
}

/// Lays an announcement beside the grant. Returns what is in force and what is not, in the order of the records.
pub fn accept(grant: &Grant, announcement: &Announcement) -> (Accepted, Vec<Refusal>) {
    let mut judge = Judge { grant, accepted: Accepted::default(), refusals: Vec::new() };
    if judge.peer_may_speak(announcement) {
        judge.judge_all(announcement);
    }
    (judge.accepted, judge.refusals)
}

struct Judge<'a> {
    grant: &'a Grant,
    accepted: Accepted,
    refusals: Vec<Refusal>,
}

impl Judge<'_> {
    fn refuse(&mut self, code: RefusalCode, what: impl Into<String>, reason: impl Into<String>) {
        self.refuse_many(code, what, reason, 1);
    }

    fn refuse_many(
        &mut self,
        code: RefusalCode,
        what: impl Into<String>,
        reason: impl Into<String>,
        count: usize,
    ) {
        self.refusals.push(Refusal { what: what.into(), reason: reason.into(), code, count });
    }

    /// A peer that is ourselves, or goes by a name that is taken, is not heard at all.
    fn peer_may_speak(&mut self, announcement: &Announcement) -> bool {
        let grant = self.grant;
        if grant.peer_identity == grant.own_identity {
            let reason =
                "the peering points to this cluster itself; delete it, or apply it in the other cluster";
            self.refuse(RefusalCode::SelfPeering, "peer", reason);
            return false;
        }
        let Some(Record::Cluster(Cluster { cluster_id, .. })) = announcement.get(&RecordKey::Cluster) else {
            return true;
        };
        let way_out = "give one of them another ClusterProperty cluster.clusterset.k8s.io";
        if *cluster_id == grant.own_cluster_id {
            let reason = format!("the peer has the same cluster ID as this cluster; {way_out}");
            self.refuse(RefusalCode::ClusterIdTaken, format!("cluster ID {cluster_id}"), reason);
            return false;
        }
        if let Some(other) = grant.other_cluster_ids.get(cluster_id) {
            let reason = format!("the peer of ClusterPeering {other} already has this cluster ID; {way_out}");
            self.refuse(RefusalCode::ClusterIdTaken, format!("cluster ID {cluster_id}"), reason);
            return false;
        }
        self.accepted.cluster_id = Some(cluster_id.clone());
        true
    }

    /// Keys are ordered so that CIDRs come before gateways, and exports before their slices.
    fn judge_all(&mut self, announcement: &Announcement) {
        let mut endpoints_total = 0;
        for (key, record) in announcement {
            if let Err(fault) = record.check() {
                self.refuse(RefusalCode::Invalid, key.to_string(), fault.to_string());
                continue;
            }
            match record {
                Record::Cluster(cluster) => self.judge_cidrs(cluster),
                Record::Gateway(gateway) => self.judge_gateway(gateway),
                Record::Export(export) => self.judge_export(export),
                Record::Endpoints(slice) => self.judge_slice(slice, &mut endpoints_total),
            }
        }
    }

    fn judge_cidrs(&mut self, cluster: &Cluster) {
        for cidr in &cluster.pod_cidrs {
            match self.fault_of_cidr(cidr) {
                None => {
                    self.accepted.cidrs.insert(*cidr);
                }
                Some((code, reason)) => self.refuse(code, format!("cidr {cidr}"), reason),
            }
        }
    }

    fn fault_of_cidr(&self, cidr: &IpNet) -> Option<(RefusalCode, String)> {
        let grant = self.grant;
        if let Some(range) = reserved::overlapping(cidr) {
            return Some((RefusalCode::Reserved, format!("overlaps the reserved range {range}")));
        }
        if !grant.allowed_cidrs.iter().any(|allowed| allowed.contains(cidr)) {
            let reason = "not within allowedCIDRs of the ClusterPeering; add it there to accept it";
            return Some((RefusalCode::AddressNotGranted, reason.to_owned()));
        }
        if let Some(local) = grant.local_cidrs.iter().find(|local| overlap(local, cidr)) {
            let reason = format!("overlaps {local} of this cluster; one of the two must use other addresses");
            return Some((RefusalCode::OverlapsLocal, reason));
        }
        if let Some(node) = grant.local_nodes.iter().find(|node| cidr.contains(*node)) {
            return Some((
                RefusalCode::OverlapsLocal,
                format!("contains {node}, the address of a node of this cluster"),
            ));
        }
        let (other, peer) = grant.other_cidrs.iter().find(|(other, _)| overlap(other, cidr))?;
        let reason = format!("overlaps {other}, which is in force for ClusterPeering {peer}");
        Some((RefusalCode::OverlapsPeer, reason))
    }

    fn judge_gateway(&mut self, gateway: &Gateway) {
        let what = format!("gateway {}", gateway.name);
        if self.accepted.gateways.len() >= limits::GATEWAYS {
            return self.refuse(
                RefusalCode::Limit,
                what,
                format!("at most {} gateways are taken", limits::GATEWAYS),
            );
        }
        let is_known = |key| self.accepted.gateways.values().any(|known| known.keys().any(|one| one == key));
        if gateway.keys().any(|key| self.grant.taken_keys.contains(&key) || is_known(key)) {
            let reason = "its public key, or that of a lane, is that of another gateway; keys are made on each node and never copied";
            return self.refuse(RefusalCode::KeyTaken, what, reason);
        }
        let (endpoints, wrong): (Vec<_>, Vec<_>) =
            gateway.endpoints.iter().copied().partition(|endpoint| self.is_underlay(endpoint.ip()));
        if let Some(first) = wrong.first() {
            let reason = format!(
                "endpoint {first} is reserved, a node or CIDR of ours, or inside the peer's own CIDRs"
            );
            self.refuse_many(RefusalCode::Reserved, &what, reason, wrong.len());
        }
        let (mesh_addresses, wrong): (Vec<_>, Vec<_>) =
            gateway.mesh_addresses.iter().copied().partition(|address| self.is_peers(*address));
        if let Some(first) = wrong.first() {
            let reason = format!("mesh address {first} is not within the peer's accepted CIDRs");
            self.refuse_many(RefusalCode::AddressNotGranted, &what, reason, wrong.len());
        }
        if mesh_addresses.is_empty() {
            if wrong.is_empty() {
                self.refuse(RefusalCode::Invalid, what, "it has no mesh address yet");
            }
            return;
        }
        let accepted = Gateway { endpoints, mesh_addresses, ..gateway.clone() };
        self.accepted.gateways.insert(gateway.name.clone(), accepted);
    }

    /// Whether a tunnel's outer packets may go there. Inside the peer's CIDRs they would be routed into the tunnel itself.
    fn is_underlay(&self, address: IpAddr) -> bool {
        reserved::overlapping(&IpNet::from(address)).is_none()
            && !self.grant.local_nodes.contains(&address)
            && !self.grant.local_cidrs.iter().any(|local| local.contains(&address))
            && !self.is_peers(address)
    }

    fn is_peers(&self, address: IpAddr) -> bool {
        self.accepted.cidrs.iter().any(|cidr| cidr.contains(&address))
    }

    fn judge_export(&mut self, export: &Export) {
        let name = ServiceName { namespace: export.namespace.clone(), name: export.name.clone() };
        let what = format!("export {name}");
        let is_api_server = export.namespace == "default" && export.name == "kubernetes";
        if is_api_server || RESERVED_NAMESPACES.contains(&export.namespace.as_str()) {
            return self.refuse(
                RefusalCode::Reserved,
                what,
                "services of the system are never taken from a peer",
            );
        }
        if !self.grant.allowed_namespaces.contains(&export.namespace) {
            let reason =
                "its namespace is not in allowedNamespaces of the ClusterPeering; add it there to accept it";
            return self.refuse(RefusalCode::NamespaceNotGranted, what, reason);
        }
        if self.accepted.exports.len() >= limits::EXPORTS {
            return self.refuse(
                RefusalCode::Limit,
                what,
                format!("at most {} exports are taken", limits::EXPORTS),
            );
        }
        let created_at = export.created_at.max(self.grant.peered_at.unwrap_or(Timestamp::MIN));
        self.accepted.exports.insert(name, Export { created_at, ..export.clone() });
    }

    fn judge_slice(&mut self, slice: &Endpoints, endpoints_total: &mut usize) {
        let name = ServiceName { namespace: slice.namespace.clone(), name: slice.service.clone() };
        let what = format!("endpoints {name} ({})", slice.slice);
        if !self.accepted.exports.contains_key(&name) {
            let reason = "the service is not exported, or its export is refused";
            return self.refuse_many(RefusalCode::ServiceNotExported, what, reason, slice.endpoints.len());
        }
        let (mut endpoints, wrong): (Vec<_>, Vec<_>) =
            slice.endpoints.iter().cloned().partition(|endpoint| self.is_peers(endpoint.address));
        if let Some(first) = wrong.first() {
            let reason = format!("{} is not within the peer's accepted CIDRs", first.address);
            self.refuse_many(RefusalCode::AddressNotGranted, &what, reason, wrong.len());
        }
        let held = self.accepted.endpoints.get(&name);
        let of_name: usize =
            held.map_or(0, |slices| slices.values().map(|slice| slice.endpoints.len()).sum());
        let room_of_name = limits::ENDPOINTS_PER_NAME - of_name;
        let room = room_of_name.min(limits::ENDPOINTS - *endpoints_total);
        if endpoints.len() > room {
            let excess = endpoints.len() - room;
            let reason = format!(
                "at most {} endpoints of a service and {} of a peer are taken",
                limits::ENDPOINTS_PER_NAME,
                limits::ENDPOINTS
            );
            self.refuse_many(RefusalCode::Limit, what, reason, excess);
            endpoints.truncate(room);
        }
        *endpoints_total += endpoints.len();
        let accepted = Endpoints { endpoints, ..slice.clone() };
        self.accepted.endpoints.entry(name).or_default().insert(slice.slice.clone(), accepted);
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests;
