// SPDX-License-Identifier: Apache-2.0
//! What ADD returns, in the shape of CNI 1.1.0, read from and written to every version.
//!
//! A version that cannot express something leaves it out; nothing is made up on the way to a newer version.
//! Fields that are not known here stay where they stood.

mod convert;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, code};
use crate::version::Version;

/// The result of ADD, and the `prevResult` of a configuration (CNI 1.1.0, section 5).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddResult {
    /// Interfaces, in the host and in the sandbox.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub ips: Vec<Ip>,
    /// Routes inside the sandbox.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub routes: Vec<Route>,
    /// Name resolution.
    #[serde(skip_serializing_if = "Dns::is_empty", deserialize_with = "null_is_default")]
    pub dns: Dns,
    /// Fields that this library does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An interface that was made or used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Hardware address, such as `0a:58:0a:00:00:02`; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU in bytes (since 1.1.0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the network namespace; empty for an interface of the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Path of a socket file that stands for the interface (since 1.1.0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// PCI address of the device (since 1.1.0).
    #[serde(rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
    /// Fields that this library does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    /// Index into the result's interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address itself (not that of its network), with the length of the network's prefix.
    pub address: IpNet,
    /// Gateway of that network.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gateway: Option<IpAddr>,
    /// Fields that this library does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; without one, the plugin chooses.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gw: Option<IpAddr>,
    /// MTU of the path in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest TCP segment to announce, in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric; lower wins (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope, as the kernel numbers them: 0 global, 253 link, 254 host (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
    /// Fields that this library does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Name resolution, as in `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of servers, most wanted first.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub nameservers: Vec<String>,
    /// The local domain; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search for short names.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub options: Vec<String>,
    /// Fields that this library does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Go writes an empty slice as null.
pub(crate) fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Go reads an empty string as no address.
pub(crate) fn empty_is_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(from)?.filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
        None => Ok(None),
    }
}

impl AddResult {
    /// Reads a result in the version that it names, else in `fallback` (plugins exist that name none).
    /// Code 1 for a version that is not known, code 6 for what is no result.
    pub fn from_json(json: &Value, fallback: Version) -> Result<(Version, Self), Error> {
        convert::read(json, fallback)
    }

    /// Makes the fields of 1.1.0 fields that an older version passes on without knowing them: so [`to_json`](Self::to_json) keeps them.
    /// Plugins for addresses tell the plugin that called them about routes this way, as the Go project's do in each version.
    pub fn set_details_aside(&mut self) {
        convert::set_details_aside(self);
    }

    /// The other way round, for routes.
    pub fn recall_details(&mut self) {
        convert::recall_details(self);
    }

    /// Writes the result as `version` has it, as far as that version can express it.
    pub fn to_json(&self, version: Version) -> Result<Value, Error> {
        convert::write(self, version)
    }
}

/// What VERSION returns (CNI 1.1.0, section 2, "VERSION").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionResult {
    /// Versions that the plugin speaks, as it wrote them.
    pub supported: Vec<String>,
}

impl VersionResult {
    /// The object that a plugin prints.
    pub fn of(versions: &[Version]) -> Self {
        Self { supported: versions.iter().map(ToString::to_string).collect() }
    }

    /// The object in the version of the question.
    pub fn to_json(&self, version: Version) -> Value {
        json!({"cniVersion": version, "supportedVersions": self.supported})
    }

    /// Reads what a plugin printed. Code 6 if it is no such object. Without a list, the version it answers in counts.
    pub fn from_json(json: &Value) -> Result<Self, Error> {
        let Some(object) = json.as_object() else {
            return Err(Error::new(code::DECODING, "the answer to VERSION is not an object"));
        };
        let listed = object.get("supportedVersions").and_then(Value::as_array);
        let answered = object.get("cniVersion").cloned();
        let all = listed.cloned().unwrap_or_else(|| answered.into_iter().collect());
        let supported = all.iter().filter_map(|version| version.as_str().map(str::to_owned)).collect();
        Ok(Self { supported })
    }
}
