// SPDX-License-Identifier: Apache-2.0
use crate::shape;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A range of addresses that pods may receive, and the nodes that may use it.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "IPPool",
    plural = "ippools",
    shortname = "ipp",
    category = "isthmus",
    status = "IPPoolStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"CIDR","type":"string","jsonPath":".spec.cidr"}"#,
    printcolumn = r#"{"name":"Used","type":"integer","jsonPath":".status.allocated"}"#,
    printcolumn = r#"{"name":"Capacity","type":"string","jsonPath":".status.capacity"}"#,
    printcolumn = r#"{"name":"Blocks","type":"integer","priority":1,"jsonPath":".status.blocks"}"#,
    printcolumn = r#"{"name":"Encapsulation","type":"string","priority":1,"jsonPath":".spec.encapsulation"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = shape::block_fits_pool, transform = shape::reserved_in_pool, transform = shape::on_request_in_pool)]
pub struct IPPoolSpec {
    /// Addresses of the pool in CIDR notation, IPv4 or IPv6, such as `10.1.0.0/16`. Cannot change; create a second pool
    /// instead.
    #[schemars(transform = shape::cidr, transform = shape::pool_range, transform = shape::immutable("cidr cannot change; create a second pool instead and disable this one"))]
    pub cidr: String,
    /// Prefix length in bits of the blocks that nodes receive: 20 to 30 for IPv4 (26 if absent), 112 to 126 for IPv6
    /// (122 if absent). Cannot change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::range(20, 126), transform = shape::immutable("blockSize cannot change; create a second pool instead and disable this one"))]
    pub block_size: Option<u8>,
    /// Who gives the pool's addresses to pods, and leads packets to them: `Isthmus`, which holds blocks of it for each node;
    /// `PodCIDRs`, another CNI plugin that gives each node's pods addresses out of the Node's `spec.podCIDRs`, but never the
    /// first one of them; or `External`, another CNI plugin in a way of its own. Cannot change.
    #[serde(default)]
    #[schemars(transform = shape::immutable("allocation cannot change; create a second pool instead"))]
    pub allocation: Allocation,
    /// When packets between nodes are encapsulated in VXLAN: `Always`, `CrossSubnet` (only to nodes that share no link
    /// with this one) or `Never` (the network between nodes routes pods' addresses).
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Whether packets of pods to destinations outside all pools and peerings leave with the node's address.
    #[serde(default = "yes")]
    pub nat_outgoing: bool,
    /// Labels of the nodes that may use the pool. Absent: all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::selector)]
    pub node_selector: Option<LabelSelector>,
    /// Labels of the namespaces that the pool is for: their pods get addresses of it, and of its family from no pool without
    /// this selector. Absent: pods of all namespaces that no other pool is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::selector)]
    pub namespace_selector: Option<LabelSelector>,
    /// Ranges of the pool in CIDR notation that no pod receives, such as `10.1.0.0/24` or `10.1.3.7/32`. A pod that has one of
    /// their addresses already keeps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::set(64, shape::cidr))]
    pub reserved: Vec<String>,
    /// Ranges of the pool in CIDR notation whose addresses only pods receive that ask for one by the annotation
    /// `isthmus.dev/ip-addresses`, also where they are reserved. Pods of the namespaces that may use the pool may ask.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::set(64, shape::cidr))]
    pub on_request: Vec<String>,
    /// No new blocks and addresses are given out from the pool while true. Pods keep theirs.
    #[serde(default)]
    pub disabled: bool,
}

fn yes() -> bool {
    true
}

/// Who gives a pool's addresses to pods.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// Isthmus, out of blocks that nodes hold.
    #[default]
    Isthmus,
    /// Another CNI plugin, out of each Node's `spec.podCIDRs`, whose first address it never gives: that is the node's own in tunnels.
    PodCIDRs,
    /// Another CNI plugin, in a way of its own. Nodes need a small pool of Isthmus beside it, for their own addresses in tunnels.
    External,
}

/// When packets between nodes are encapsulated.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encapsulation {
    /// Always.
    Always,
    /// Only to nodes that share no link with this one.
    #[default]
    CrossSubnet,
    /// Never: the network between nodes routes pods' addresses.
    Never,
}

/// What became of the pool.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IPPoolStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, and Reconciling or Stalled while it is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::conditions)]
    pub conditions: Vec<Condition>,
    /// Number of blocks that nodes hold.
    #[serde(default)]
    pub blocks: i32,
    /// Number of addresses that pods have.
    #[serde(default)]
    pub allocated: i64,
    /// Number of addresses in all, in decimal digits, as it may exceed 64 bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(40))]
    pub capacity: Option<String>,
}
