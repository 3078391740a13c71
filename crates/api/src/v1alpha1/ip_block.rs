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
    printcolumn = r#"{"name":"Pool","type":"string","jsonPath":".spec.pool"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = shape::immutable("a block does not change; the operator deletes it and makes another"))]
pub struct IPBlockSpec {
    /// The IPPool that the block is part of.
    #[schemars(transform = shape::name)]
    pub pool: String,
    /// Addresses of the block in CIDR notation.
    #[schemars(transform = shape::cidr)]
    pub cidr: String,
    /// The node that holds it.
    #[schemars(transform = shape::name)]
    pub node: String,
}

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
