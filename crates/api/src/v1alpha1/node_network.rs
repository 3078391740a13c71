// SPDX-License-Identifier: Apache-2.0
use crate::shape;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A node's part of the network. The operator makes one for each node; the node's agent writes its status.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    shortname = "nnet",
    category = "isthmus",
    status = "NodeNetworkStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".status.meshAddresses"}"#,
    printcolumn = r#"{"name":"Endpoints","type":"string","priority":1,"jsonPath":".status.endpoints"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkSpec {
    /// Generation of the node's WireGuard key. Raise it, and the node makes a new key and moves its tunnels to it without loss.
    #[serde(default, skip_serializing_if = "is_first")]
    #[schemars(range(min = 0))]
    pub key_generation: i64,
}

/// The operator makes the object and must not claim the field, which is the user's.
fn is_first(generation: &i64) -> bool {
    *generation == 0
}

/// What the node's agent measured.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::conditions)]
    pub conditions: Vec<Condition>,
    /// WireGuard public key of the node, base64. The private half never leaves the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(44))]
    pub public_key: Option<String>,
    /// 1 while that key has the second of the two slots in which a node's keys take turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub key_slot: Option<i32>,
    /// The key that replaces it, in the other slot, once every peer that is reached with the one is reached with the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(44))]
    pub next_public_key: Option<String>,
    /// The node's lanes: threads that encrypt beside one another, each with a key, a port and tunnels of its own. The first has
    /// `publicKey`. Empty where the node does not know of lanes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(8, |_| {}))]
    pub lanes: Vec<NodeLane>,
    /// Generation of `publicKey`: `spec.keyGeneration` as far as the node has followed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_generation: Option<i64>,
    /// `address:port` where the node's WireGuard listens while it is a gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(16, shape::text(261)))]
    pub endpoints: Vec<String>,
    /// The node's own addresses out of its blocks, used inside tunnels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(256, shape::text(43)))]
    pub mesh_addresses: Vec<String>,
    /// Ethernet address of the node's VXLAN device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(17))]
    pub vxlan_mac: Option<String>,
    /// What of the kernel's features the data plane process uses to move many packets at once, while it encrypts itself: `recvmmsg`,
    /// `sendmmsg`, `tso`, `udp-gro`, `udp-segment`, `uso`, `vnet-hdr`. What is missing the kernel has not, or it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(16, shape::text(32)))]
    pub offload: Vec<String>,
    /// How full the node's blocks are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::map(1024, "cidr"))]
    pub blocks: Vec<BlockUsage>,
    /// Pods of the node that ask for addresses of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::map(1024, "uid"))]
    pub requests: Vec<AddressRequest>,
    /// The node's tunnels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::map(1024, "device"))]
    pub tunnels: Vec<TunnelStatus>,
}

/// A lane of a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeLane {
    /// WireGuard public key, base64; it follows from the node's.
    #[schemars(transform = shape::text(44))]
    pub public_key: String,
    /// The key that replaces it, while the node's key rotates.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(44))]
    pub next_public_key: Option<String>,
    /// UDP port where it listens while the node is a gateway.
    pub port: i32,
}

/// How full a block is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BlockUsage {
    /// The block.
    #[schemars(transform = shape::text(43))]
    pub cidr: String,
    /// Addresses given to pods.
    pub allocated: i64,
}

/// A pod that asks for addresses of its own.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AddressRequest {
    /// Namespace of the pod.
    #[schemars(transform = shape::text(63))]
    pub namespace: String,
    /// Its name.
    #[schemars(transform = shape::text(253))]
    pub name: String,
    /// Its UID.
    #[schemars(transform = shape::text(64))]
    pub uid: String,
    /// The addresses, one of each family at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(2, shape::text(39)))]
    pub addresses: Vec<String>,
    /// UID of its StatefulSet, where it asks for addresses that are kept with that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(64))]
    pub stateful_set: Option<String>,
    /// IPPools that these come from, one address of each family; the first that has one left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::atomic(32, shape::text(253)))]
    pub keep_from: Vec<String>,
}

/// A tunnel as measured.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// Device name on the node.
    #[schemars(transform = shape::text(15))]
    pub device: String,
    /// The ClusterPeering.
    #[schemars(transform = shape::text(253))]
    pub peering: String,
    /// The remote gateway.
    #[schemars(transform = shape::text(253))]
    pub gateway: String,
    /// Slot of our key in this tunnel: 1 for the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub key_slot: Option<i32>,
    /// Which of the node's lanes carries it, counted from 0, where that is not the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 7))]
    pub lane: Option<i32>,
    /// To which lane of the remote gateway it leads, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 7))]
    pub remote_lane: Option<i32>,
    /// Whether probes come back.
    pub up: bool,
    /// Where packets go.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(261))]
    pub endpoint: Option<String>,
    /// Last handshake, to the minute (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(64))]
    pub last_handshake: Option<String>,
    /// Round trip in microseconds, in steps of a quarter.
    #[serde(rename = "rttMicros", skip_serializing_if = "Option::is_none")]
    pub rtt_micros: Option<i64>,
    /// Lost probes of the last hundred, in steps of five per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_percent: Option<i32>,
    /// Path MTU of inner packets in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i32>,
    /// UDP port of this tunnel alone, where each has its own (`mode` is `Kernel`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<i32>,
    /// `Kernel` or `Userspace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = shape::text(32))]
    pub mode: Option<String>,
}
