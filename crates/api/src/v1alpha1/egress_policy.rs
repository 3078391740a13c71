// SPDX-License-Identifier: Apache-2.0
use crate::shape;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    derive = "PartialEq",
    printcolumn = r#"{"name":"Egress-IPs","type":"string","jsonPath":".spec.egressIPs"}"#,
    printcolumn = r#"{"name":"Gateway","type":"string","jsonPath":".status.gatewayNode"}"#,
    printcolumn = r#"{"name":"Destinations","type":"string","priority":1,"jsonPath":".spec.destinationCIDRs"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = shape::every_destination_has_a_source)]
pub struct EgressPolicySpec {
    /// Namespaces whose pods are selected. Absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::selector)]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods that are selected within those namespaces. Absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::selector)]
    pub pod_selector: Option<LabelSelector>,
    /// Destinations that the policy applies to, in CIDR notation, such as `203.0.113.0/24`. One to 64 of them.
    #[serde(rename = "destinationCIDRs")]
    #[schemars(transform = shape::set(64, shape::cidr), transform = shape::filled)]
    pub destination_cidrs: Vec<String>,
    /// Labels of the nodes that may be the gateway. One of them is it at a time.
    #[schemars(transform = shape::selector)]
    pub gateway_selector: LabelSelector,
    /// The source address that the outside sees, such as `192.0.2.10`; one for each address family at most. It must be
    /// free in the gateway's network.
    #[serde(rename = "egressIPs")]
    #[schemars(transform = shape::set(2, shape::unicast_ip), transform = shape::filled, transform = shape::one_of_each_family)]
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
    #[schemars(transform = shape::conditions)]
    pub conditions: Vec<Condition>,
    /// The node that is the gateway now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(253))]
    pub gateway_node: Option<String>,
}
