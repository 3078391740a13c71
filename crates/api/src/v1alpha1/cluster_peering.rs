// SPDX-License-Identifier: Apache-2.0
use crate::shape;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Another cluster that this one is joined to, and what that cluster may announce here.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "ClusterPeering",
    plural = "clusterpeerings",
    shortname = "peering",
    category = "isthmus",
    status = "ClusterPeeringStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Cluster","type":"string","jsonPath":".status.clusterID"}"#,
    printcolumn = r#"{"name":"Tunnels","type":"string","jsonPath":".status.tunnels"}"#,
    printcolumn = r#"{"name":"Last-Heard","type":"date","jsonPath":".status.lastHeard"}"#,
    printcolumn = r#"{"name":"CIDRs","type":"string","priority":1,"jsonPath":".status.remoteCIDRs"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = shape::pinned)]
pub struct ClusterPeeringSpec {
    /// The peer's identity: SHA-256 of its root key in 64 hexadecimal digits. The peer must prove it in every handshake.
    /// Cannot change once set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::sha256, transform = shape::immutable("identity cannot change: another key is another cluster; delete the peering and invite that cluster"))]
    pub identity: Option<String>,
    /// Where the peer's operator listens, `host:port` each, such as `192.0.2.1:30743`. Empty: the peer connects to us.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::set(16, shape::host_port))]
    pub endpoints: Vec<String>,
    /// Secret in isthmus-system that holds the invitation's single-use token under the key `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretRef>,
    /// Pod CIDRs that the peer may announce: an announced CIDR is accepted if it lies within one of these. Empty grants nothing.
    #[serde(default, rename = "allowedCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::set(64, shape::cidr))]
    pub allowed_cidrs: Vec<String>,
    /// Namespaces whose services the peer may export to us. Empty grants nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::set(256, shape::namespace))]
    pub allowed_namespaces: Vec<String>,
}

/// A Secret in isthmus-system.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    #[schemars(transform = shape::name)]
    pub name: String,
}

/// The peering as it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPeeringStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Connected, Fresh, AnnouncementsAccepted, TunnelsUp, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::conditions)]
    pub conditions: Vec<Condition>,
    /// The peer's cluster ID (an alias, not an identity).
    #[serde(default, rename = "clusterID", skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(253))]
    pub cluster_id: Option<String>,
    /// The identity that the peer proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(64))]
    pub identity: Option<String>,
    /// Pod CIDRs of the peer that are in force: announced, granted and free of conflicts.
    #[serde(default, rename = "remoteCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(256, shape::text(43)))]
    pub remote_cidrs: Vec<String>,
    /// Pod CIDRs of the peer that were in force and are refused now, though still granted: nothing leaves for them, by no
    /// other way either, until they are in force again, no longer granted, or the peering is deleted.
    #[serde(default, rename = "closedCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(256, shape::text(43)))]
    pub closed_cidrs: Vec<String>,
    /// The peer's gateways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::map(256, "name"))]
    pub remote_gateways: Vec<RemoteGateway>,
    /// Nodes of this cluster that carry the peering's tunnels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(256, shape::text(253)))]
    pub local_gateways: Vec<String>,
    /// Tunnels that are up, and all: `3/4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(16))]
    pub tunnels: Option<String>,
    /// When the peer was last heard, to ten seconds (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(64))]
    pub last_heard: Option<String>,
    /// What the peer announced and did not get, with the reason. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(16, |_| {}))]
    pub refused: Vec<Refusal>,
}

/// A gateway of the peer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RemoteGateway {
    /// The node's name in the peer; `.key-1` follows where the gateway's key has the second slot.
    #[schemars(transform = shape::text(253))]
    pub name: String,
    /// WireGuard public key, base64.
    #[schemars(transform = shape::text(44))]
    pub public_key: String,
    /// `address:port` where it listens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(16, shape::text(261)))]
    pub endpoints: Vec<String>,
    /// Its addresses inside the tunnel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(256, shape::text(43)))]
    pub mesh_addresses: Vec<String>,
    /// UDP ports where it listens for one gateway of ours each, in place of the endpoints' port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::map(256, "publicKey"))]
    pub ports: Vec<GatewayPort>,
    /// Its lanes, of which the first has `publicKey`. Empty where its version does not know of lanes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(8, |_| {}))]
    pub lanes: Vec<GatewayLane>,
}

/// A lane of a gateway of the peer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayLane {
    /// WireGuard public key, base64.
    #[schemars(transform = shape::text(44))]
    pub public_key: String,
    /// UDP port where it listens, at the gateway's endpoints.
    pub port: i32,
}

/// The port that a gateway of the peer has for one gateway of ours.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayPort {
    /// WireGuard public key of our gateway, base64.
    #[schemars(transform = shape::text(44))]
    pub public_key: String,
    /// UDP port.
    pub port: i32,
}

/// Something announced and refused.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The announced thing, such as `cidr 10.0.0.0/8` or `export kube-system/dns`.
    #[schemars(transform = shape::text(1024))]
    pub what: String,
    /// Why, and what would change it.
    #[schemars(transform = shape::text(4096))]
    pub reason: String,
}
