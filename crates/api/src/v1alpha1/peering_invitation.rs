// SPDX-License-Identifier: Apache-2.0
use crate::shape;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An invitation to another cluster. The operator answers with a manifest to apply there.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "PeeringInvitation",
    plural = "peeringinvitations",
    shortname = "invitation",
    category = "isthmus",
    status = "PeeringInvitationStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Expires","type":"string","jsonPath":".status.expiresAt"}"#,
    printcolumn = r#"{"name":"Secret","type":"string","priority":1,"jsonPath":".status.manifestSecret"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PeeringInvitationSpec {
    /// How long the token may be redeemed, as a duration such as `15m` or `1h30m`, from `1m` to `24h`. Cannot change.
    #[serde(default = "ttl")]
    #[schemars(transform = shape::minutes_to_a_day, transform = shape::immutable("ttl cannot change; delete the invitation and create another"))]
    pub ttl: String,
    /// Where the invited cluster reaches our operator, `host:port` each. Empty: every node's address with the NodePort.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::set(16, shape::host_port))]
    pub endpoints: Vec<String>,
    /// Becomes `allowedCIDRs` of the ClusterPeering that is made here when the token is redeemed.
    #[serde(default, rename = "allowedCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::set(64, shape::cidr))]
    pub allowed_cidrs: Vec<String>,
    /// Becomes `allowedNamespaces` of that ClusterPeering; also proposed to the invited cluster in the manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::set(256, shape::namespace))]
    pub allowed_namespaces: Vec<String>,
}

fn ttl() -> String {
    "15m".to_owned()
}

/// The invitation as it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PeeringInvitationStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready (the manifest can be fetched), Redeemed, Expired, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::conditions)]
    pub conditions: Vec<Condition>,
    /// Secret in isthmus-system whose key `manifest.yaml` holds what to apply in the invited cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(253))]
    pub manifest_secret: Option<String>,
    /// When the token ends (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(64))]
    pub expires_at: Option<String>,
    /// Identity of the cluster that redeemed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(64))]
    pub redeemed_by: Option<String>,
}
