// SPDX-License-Identifier: Apache-2.0
//! Everything that a plan may depend on: the observed objects as far as they concern us, parsed, and the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use isthmus_api::mcs::{ServiceExportStatus, ServiceImportSpec, ServiceImportStatus};
use isthmus_api::v1alpha1::{
    Allocation, BlockPod, ClusterPeeringStatus, EgressPolicyStatus, IPBlockStatus, IPPoolStatus,
    NodeNetworkStatus, PeeringInvitationStatus,
};
use isthmus_mesh::grant::ServiceName;
use isthmus_mesh::invitation::TokenHash;
use isthmus_mesh::record;
use isthmus_model::ids::ClusterIdentity;
use jiff::{SignedDuration, Timestamp};
use kube::core::Selector;

/// One moment of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The moment.
    pub now: Timestamp,
    /// What is known of the cluster as a whole.
    pub cluster: ClusterFacts,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// NodeNetworks by name.
    pub node_networks: BTreeMap<String, Seen<(), NodeNetworkStatus>>,
    /// Pools by name.
    pub pools: BTreeMap<String, Seen<Pool, IPPoolStatus>>,
    /// Blocks by object name.
    pub blocks: BTreeMap<String, Seen<Block, IPBlockStatus>>,
    /// Egress policies by name.
    pub egress: BTreeMap<String, Seen<Egress, EgressPolicyStatus>>,
    /// Peerings by name.
    pub peerings: BTreeMap<String, Seen<Peering, ClusterPeeringStatus>>,
    /// What the links know of each peer, by peering. A peering that is missing here was never heard.
    pub peers: BTreeMap<String, PeerView>,
    /// Invitations by name.
    pub invitations: BTreeMap<String, Seen<Invitation, PeeringInvitationStatus>>,
    /// What is kept of invitations' tokens, by invitation.
    pub issued: BTreeMap<String, Issued>,
    /// UIDs of all StatefulSets.
    pub stateful_sets: BTreeSet<String>,
    /// Labels of all namespaces.
    pub namespace_labels: BTreeMap<String, BTreeMap<String, String>>,
    /// Namespaces that services can be imported into (not those that are being deleted).
    pub namespaces: BTreeSet<String>,
    /// ServiceExports.
    pub exports: BTreeMap<ServiceName, Seen<ExportWish, ServiceExportStatus>>,
    /// Services that a ServiceExport names.
    pub services: BTreeMap<ServiceName, LocalService>,
    /// EndpointSlices of those Services, by name.
    pub slices: BTreeMap<ServiceName, BTreeMap<String, LocalSlice>>,
    /// ServiceImports.
    pub imports: BTreeMap<ServiceName, Seen<Import, ServiceImportStatus>>,
    /// Derived Services of ours, by their own name.
    pub derived: BTreeMap<ServiceName, Derived>,
    /// Mirrored EndpointSlices of ours, by their own name.
    pub mirrored: BTreeMap<ServiceName, Mirrored>,
    /// CoreDNS' configuration.
    pub corefile: Option<Corefile>,
}

/// What is known of the cluster as a whole.
#[derive(Clone, Debug, Default)]
pub struct ClusterFacts {
    /// Value of the ClusterProperty `cluster.clusterset.k8s.io`, if the object exists.
    pub property: Option<String>,
    /// The ID that the installation asks for (flag, environment or ConfigMap).
    pub wished_id: Option<String>,
    /// UID of the namespace kube-system: what the ID is derived from where nobody gave one.
    pub system_uid: String,
    /// The cluster's identity.
    pub identity: Option<ClusterIdentity>,
    /// CIDRs of the cluster's Services, as far as the API server tells.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of the replica that leads, one of each family at most.
    pub leader_addresses: Vec<IpAddr>,
    /// Port of the operator for peers, on the leader's address.
    pub peering_port: u16,
    /// Port of every node that leads there.
    pub peering_node_port: u16,
    /// Namespace of our own objects.
    pub system_namespace: String,
    /// Fresh randomness for tokens; another for each plan.
    pub random: Option<Random>,
}

/// Randomness. Not shown by Debug.
#[derive(Clone)]
pub struct Random(pub [u8; 32]);

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random(…)")
    }
}

/// What is wrong with an object, for a condition on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase reason.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// An observed object: its parsed wish, or what is wrong with it, and the status that it shows now.
#[derive(Clone, Debug)]
pub struct Seen<T, S> {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: Option<String>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// The status as observed; empty if there is none.
    pub status: S,
    /// The wish.
    pub value: Result<T, Problem>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// `metadata.uid`.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its condition Ready is True.
    pub ready: bool,
    /// Its InternalIP addresses, in the order of the object.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

impl Node {
    /// Whether the node runs the control plane (by its well-known label).
    pub fn is_control_plane(&self) -> bool {
        self.labels.contains_key("node-role.kubernetes.io/control-plane")
    }
}

/// An address pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its addresses.
    pub cidr: IpNet,
    /// Prefix length of its blocks.
    pub block_prefix: u8,
    /// Nodes that may use it.
    pub nodes: Selector,
    /// Namespaces that it is for; none: all that no other pool is for.
    pub namespaces: Option<Selector>,
    /// Ranges of it that no pod receives, none within another.
    pub reserved: Vec<IpNet>,
    /// Ranges of it whose addresses only pods receive that ask.
    pub on_request: Vec<IpNet>,
    /// Both: what no pod receives unasked, none within another.
    pub set_aside: Vec<IpNet>,
    /// No new blocks are given out.
    pub disabled: bool,
    /// Who gives its addresses out.
    pub allocation: Allocation,
}

/// A block of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The pool.
    pub pool: String,
    /// Its addresses.
    pub cidr: IpNet,
    /// The node that holds it.
    pub node: String,
    /// The pod whose alone its one address is.
    pub pod: Option<BlockPod>,
}

/// An egress policy.
#[derive(Clone, Debug)]
pub struct Egress {
    /// Nodes that may be the gateway.
    pub gateways: Selector,
    /// Source addresses, one of each family at most.
    pub addresses: Vec<IpAddr>,
}

/// A peering, as its user wishes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peering {
    /// The peer.
    pub identity: ClusterIdentity,
    /// Where it listens; empty if it connects to us.
    pub endpoints: Vec<String>,
    /// Secret with the token.
    pub token_secret: Option<String>,
    /// What it may announce.
    pub allowed_cidrs: Vec<IpNet>,
    /// Namespaces that it may export to.
    pub allowed_namespaces: BTreeSet<String>,
}

/// What the link to a peer knows.
#[derive(Clone, Debug, Default)]
pub struct PeerView {
    /// A stream is up.
    pub connected: bool,
    /// When something last came.
    pub last_heard: Option<Timestamp>,
    /// Why there is no stream.
    pub failure: Option<LinkFailure>,
    /// What the peer announces; none before its first snapshot.
    pub announcement: Option<Arc<record::Announcement>>,
    /// Records that broke their own form, with the reason.
    pub invalid: Vec<(String, String)>,
}

/// Why there is no stream to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFailure {
    /// CamelCase reason.
    pub reason: &'static str,
    /// What happened and what to do.
    pub message: String,
    /// Trying again will not help before somebody changes something.
    pub lasting: bool,
}

/// An invitation, as its user wishes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// How long the token may be redeemed.
    pub ttl: SignedDuration,
    /// Where the invited cluster reaches us; empty for every node's address.
    pub endpoints: Vec<String>,
    /// Namespaces that the invited cluster is proposed to take services for.
    pub allowed_namespaces: Vec<String>,
}

/// What is kept of an invitation's token.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Name of the Secret.
    pub secret: String,
    /// `metadata.uid` of the Secret.
    pub uid: String,
    /// UID of the invitation that it was made for.
    pub invitation_uid: String,
    /// The token's hash.
    pub hash: TokenHash,
    /// When the token ends.
    pub expires_at: Timestamp,
    /// Who redeemed it.
    pub redeemed_by: Option<String>,
    /// The manifest with the token is still there.
    pub has_manifest: bool,
}

/// A ServiceExport, as its user wishes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportWish {
    /// Labels for the imports.
    pub labels: BTreeMap<String, String>,
    /// Annotations for the imports.
    pub annotations: BTreeMap<String, String>,
}

/// A Service that is exported, as far as others learn of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalService {
    /// ClusterSetIP or Headless.
    pub kind: record::ExportKind,
    /// Ports.
    pub ports: Vec<record::ServicePort>,
    /// Session affinity.
    pub session_affinity: record::SessionAffinity,
    /// As in the Service.
    pub internal_traffic_policy: Option<record::TrafficPolicy>,
    /// As in the Service.
    pub traffic_distribution: Option<String>,
    /// Families, the preferred one first.
    pub ip_families: Vec<record::AddressFamily>,
    /// It is an ExternalName Service, which cannot be exported.
    pub external_name: bool,
}

/// An EndpointSlice of an exported Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalSlice {
    /// What others learn of it.
    pub record: record::Endpoints,
    /// The node of each endpoint, for our own cluster only.
    pub nodes: BTreeMap<IpAddr, String>,
}

/// A ServiceImport as observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Import {
    /// Its spec.
    pub spec: ServiceImportSpec,
    /// We made it.
    pub ours: bool,
}

/// A derived Service as observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derived {
    /// `metadata.uid`.
    pub uid: String,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
}

/// A mirrored EndpointSlice as observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirrored {
    /// `metadata.uid`.
    pub uid: String,
    /// The cluster that its endpoints are in.
    pub source_cluster: String,
}

/// CoreDNS' configuration as observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Corefile {
    /// The file.
    pub text: String,
    /// `metadata.resourceVersion`: a change by others meanwhile is never overwritten.
    pub version: String,
}
