// SPDX-License-Identifier: Apache-2.0
//! What a cluster announces to a peer, record by record.
//!
//! A record says one thing and has one key; a newer record replaces the older one of its key. What arrives is
//! first parsed into these types, then held to [`Record::check`], then to the grant of the peering
//! ([`crate::grant`]). Nothing here is trusted before that.

mod check;
pub mod limits;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use isthmus_model::ids::ClusterId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use check::InvalidRecord;

/// Everything that a cluster announces to one peer.
pub type Announcement = BTreeMap<RecordKey, Record>;

/// What a record speaks of. The order is that in which records are sent: what others refer to comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum RecordKey {
    /// The cluster itself; there is one.
    Cluster,
    /// A gateway node, by name.
    Gateway {
        /// The node's name.
        name: String,
    },
    /// An exported Service.
    Export {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An EndpointSlice of an exported Service.
    Endpoints {
        /// The Service's namespace.
        namespace: String,
        /// The Service's name.
        service: String,
        /// The EndpointSlice's name.
        slice: String,
    },
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => write!(f, "cluster"),
            Self::Gateway { name } => write!(f, "gateway {name}"),
            Self::Export { namespace, name } => write!(f, "export {namespace}/{name}"),
            Self::Endpoints { namespace, service, slice } => {
                write!(f, "endpoints {namespace}/{service} ({slice})")
            }
        }
    }
}

/// One thing that a cluster announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Record {
    /// The cluster itself.
    Cluster(Cluster),
    /// A gateway node.
    Gateway(Gateway),
    /// An exported Service.
    Export(Export),
    /// An EndpointSlice of an exported Service.
    Endpoints(Endpoints),
}

impl Record {
    /// The key under which the record is kept.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Cluster(_) => RecordKey::Cluster,
            Self::Gateway(gateway) => RecordKey::Gateway { name: gateway.name.clone() },
            Self::Export(export) => {
                RecordKey::Export { namespace: export.namespace.clone(), name: export.name.clone() }
            }
            Self::Endpoints(slice) => RecordKey::Endpoints {
                namespace: slice.namespace.clone(),
                service: slice.service.clone(),
                slice: slice.slice.clone(),
            },
        }
    }
}

/// Collects records into an announcement; the last of a key wins.
pub fn announcement(records: impl IntoIterator<Item = Record>) -> Announcement {
    records.into_iter().map(|record| (record.key(), record)).collect()
}

/// The cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Its alias in the clusterset (KEP-2149). Not an identity.
    pub cluster_id: ClusterId,
    /// CIDRs of its pods.
    pub pod_cidrs: Vec<IpNet>,
}

/// A gateway node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// The node's name, an RFC 1123 subdomain.
    pub name: String,
    /// Its WireGuard public key.
    pub public_key: PublicKey,
    /// Where its WireGuard listens, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Its addresses inside the tunnel, out of the cluster's pod CIDRs.
    pub mesh_addresses: Vec<IpAddr>,
    /// By the key of a gateway that it has a tunnel to: the UDP port for that tunnel, where it is not the endpoints' port
    /// (a kernel that encrypts has one port for each tunnel).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<PublicKey, u16>,
    /// Its lanes, of which the first has `public_key`: each like a gateway beside it, at the same addresses. None from a version that does
    /// not know of them, which is another thing than one lane: nobody looks for the peer's lanes there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lanes: Vec<Lane>,
}

impl Gateway {
    /// Every key that it shows as its own.
    pub fn keys(&self) -> impl Iterator<Item = PublicKey> {
        std::iter::once(self.public_key).chain(self.lanes.iter().skip(1).map(|lane| lane.public_key))
    }
}

/// A lane of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lane {
    /// Its WireGuard public key.
    pub public_key: PublicKey,
    /// The UDP port where it listens, in place of the endpoints'.
    pub port: u16,
}

/// A Curve25519 public key, written as base64 of its 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

/// Why a text is not a WireGuard public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard public key: give base64 of 32 bytes, as `wg pubkey` prints it")]
pub struct InvalidPublicKey;

impl PublicKey {
    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for PublicKey {
    type Err = InvalidPublicKey;
    fn from_str(text: &str) -> Result<Self, InvalidPublicKey> {
        let bytes = STANDARD.decode(text).map_err(|_| InvalidPublicKey)?;
        let key: [u8; 32] = bytes.try_into().map_err(|_| InvalidPublicKey)?;
        // The all-zero key is the one low-order point that a blank field turns into.
        if key == [0; 32] { Err(InvalidPublicKey) } else { Ok(Self(key)) }
    }
}

impl TryFrom<String> for PublicKey {
    type Error = InvalidPublicKey;
    fn try_from(text: String) -> Result<Self, InvalidPublicKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        STANDARD.encode(key.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An exported Service, with what KEP-1645 merges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Export {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// When its ServiceExport was created: the oldest wins a conflict.
    pub created_at: Timestamp,
    /// How it is reached.
    #[serde(rename = "type")]
    pub kind: ExportKind,
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// Session affinity.
    #[serde(default)]
    pub session_affinity: SessionAffinity,
    /// As in a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<TrafficPolicy>,
    /// As in a Service, such as `PreferSameZone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
    /// Families of the Service, the preferred one first.
    #[serde(default)]
    pub ip_families: Vec<AddressFamily>,
    /// `exportedLabels` of the ServiceExport.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `exportedAnnotations` of the ServiceExport.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How an exported Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ExportKind {
    /// By a virtual address of the importing cluster.
    ClusterSetIP,
    /// By the addresses of its pods.
    Headless,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// SCTP.
    Sctp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The name that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sctp => "SCTP",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AddressFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl AddressFamily {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::IPv4 } else { Self::IPv6 }
    }

    /// The name that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }
}

/// A port of an exported Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; none only where there is one port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Application protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Port of the Service.
    pub port: NonZeroU16,
}

/// Session affinity of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum SessionAffinity {
    /// None.
    #[default]
    None,
    /// A client keeps its backend.
    ClientIP {
        /// For how long, in seconds (1 to 86,400).
        #[serde(rename = "timeoutSeconds", default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    },
}

/// Which endpoints traffic from inside a cluster may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All.
    Cluster,
    /// Those of the client's node.
    Local,
}

/// An EndpointSlice of an exported Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The EndpointSlice's name in its own cluster.
    pub slice: String,
    /// Family of every address.
    pub address_family: AddressFamily,
    /// Ports of every endpoint.
    #[serde(default)]
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    /// Name of the Service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the endpoint.
    pub port: NonZeroU16,
    /// Application protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// One backend of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Answers, even where it is terminating.
    pub serving: bool,
    /// Is going away.
    pub terminating: bool,
    /// Its host name for headless Services, an RFC 1123 label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}
