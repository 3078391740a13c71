// SPDX-License-Identifier: Apache-2.0
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// From which address, through which gateway nodes, selected pods reach given destinations.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "EgressPolicy",
    plural = "egresspolicies",
    shortname = "egress",
    category = "isthmus",
    status = "EgressPolicyStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct EgressPolicySpec {
    /// Namespaces whose pods are selected. Absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods that are selected within those namespaces. Absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Destinations that the policy applies to, in CIDR notation.
    #[serde(rename = "destinationCIDRs")]
    pub destination_cidrs: Vec<String>,
    /// Nodes that may be the gateway.
    pub gateway_selector: LabelSelector,
    /// The source address that the outside sees; one for each address family at most.
    #[serde(rename = "egressIPs")]
    pub egress_ips: Vec<String>,
}

/// The policy as it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EgressPolicyStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The node that is the gateway now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_node: Option<String>,
}
