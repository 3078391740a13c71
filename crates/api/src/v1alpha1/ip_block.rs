// SPDX-License-Identifier: Apache-2.0
use crate::shape;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A block of a pool's addresses that a node holds. Written by the operator.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "IPBlock",
    plural = "ipblocks",
    shortname = "ipb",
    category = "isthmus",
    status = "IPBlockStatus",
    selectable = ".spec.node",
    selectable = ".spec.pool",
    derive = "PartialEq",
    printcolumn = r#"{"name":"CIDR","type":"string","jsonPath":".spec.cidr"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.node"}"#,
    printcolumn = r#"{"name":"Pool","type":"string","jsonPath":".spec.pool"}"#,
    printcolumn = r#"{"name":"Namespace","type":"string","priority":1,"jsonPath":".spec.pod.namespace"}"#,
    printcolumn = r#"{"name":"Pod","type":"string","priority":1,"jsonPath":".spec.pod.name"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(
    transform = shape::one_address_for_one_pod,
    transform = shape::holds(STAYS, UNCHANGED),
    transform = shape::holds("has(self.pod) == has(oldSelf.pod)", UNCHANGED)
)]
pub struct IPBlockSpec {
    /// The IPPool that the block is part of.
    #[schemars(transform = shape::name, transform = shape::immutable(UNCHANGED))]
    pub pool: String,
    /// Addresses of the block in CIDR notation.
    #[schemars(transform = shape::cidr, transform = shape::immutable(UNCHANGED))]
    pub cidr: String,
    /// The node that holds it.
    #[schemars(transform = shape::name)]
    pub node: String,
    /// The pod whose alone the block is, which then has one address. Absent: its addresses are for any pods of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<BlockPod>,
}

/// A pod that has an address of its own.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
#[schemars(
    transform = shape::holds(STAYS_THE_PODS, UNCHANGED),
    transform = shape::holds("has(self.statefulSet) == has(oldSelf.statefulSet)", UNCHANGED)
)]
pub struct BlockPod {
    /// Its namespace.
    #[schemars(transform = shape::namespace, transform = shape::immutable(UNCHANGED))]
    pub namespace: String,
    /// Its name.
    #[schemars(transform = shape::name, transform = shape::immutable(UNCHANGED))]
    pub name: String,
    /// Its UID: a namesake that comes later is another pod.
    #[schemars(transform = shape::text(64))]
    pub uid: String,
    /// UID of the StatefulSet with which the address is kept for the pod of this name: then node and UID follow the pod. Absent: the
    /// address goes with the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(64), transform = shape::immutable(UNCHANGED))]
    pub stateful_set: Option<String>,
}

const UNCHANGED: &str = "a block does not change; the operator deletes it and makes another";
/// Where an address that is kept lies, and for which pod of the name, is all that changes.
const STAYS: &str = "(has(self.pod) && has(self.pod.statefulSet)) || self.node == oldSelf.node";
const STAYS_THE_PODS: &str = "has(self.statefulSet) || self.uid == oldSelf.uid";

/// What became of the block.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IPBlockStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::conditions)]
    pub conditions: Vec<Condition>,
}
