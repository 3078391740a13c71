// SPDX-License-Identifier: Apache-2.0
//! What a record must satisfy, whatever the peering grants.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_model::ids::{is_dns_label, is_dns_subdomain};

use super::{
    AddressFamily, Cluster, Endpoint, EndpointPort, Endpoints, Export, Gateway, Record, ServicePort,
    SessionAffinity, limits,
};

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct InvalidRecord {
    field: &'static str,
    rule: String,
}

fn ensure(holds: bool, field: &'static str, rule: impl Into<String>) -> Result<(), InvalidRecord> {
    if holds { Ok(()) } else { Err(InvalidRecord { field, rule: rule.into() }) }
}

fn at_most(count: usize, limit: usize, field: &'static str) -> Result<(), InvalidRecord> {
    ensure(count <= limit, field, format!("{count} entries; at most {limit} are taken"))
}

impl Record {
    /// Holds the record to its bounds and to the forms that Kubernetes demands of its names.
    pub fn check(&self) -> Result<(), InvalidRecord> {
        match self {
            Self::Cluster(cluster) => cluster.check(),
            Self::Gateway(gateway) => gateway.check(),
            Self::Export(export) => export.check(),
            Self::Endpoints(slice) => slice.check(),
        }
    }
}

impl Cluster {
    fn check(&self) -> Result<(), InvalidRecord> {
        at_most(self.pod_cidrs.len(), limits::CIDRS, "podCidrs")?;
        let whole = self.pod_cidrs.iter().all(|cidr| cidr.trunc() == *cidr);
        ensure(whole, "podCidrs", "a CIDR has bits set beyond its prefix")
    }
}

impl Gateway {
    fn check(&self) -> Result<(), InvalidRecord> {
        ensure(is_dns_subdomain(&self.name), "name", "must be an RFC 1123 subdomain")?;
        at_most(self.endpoints.len(), limits::GATEWAY_ADDRESSES, "endpoints")?;
        at_most(self.mesh_addresses.len(), limits::GATEWAY_ADDRESSES, "meshAddresses")?;
        at_most(self.ports.len(), limits::GATEWAY_PORTS, "ports")?;
        ensure(self.ports.values().all(|port| *port != 0), "ports", "port 0 cannot be reached")?;
        ensure(
            self.endpoints.iter().all(|endpoint| endpoint.port() != 0),
            "endpoints",
            "port 0 cannot be reached",
        )?;
        self.check_lanes()
    }

    fn check_lanes(&self) -> Result<(), InvalidRecord> {
        at_most(self.lanes.len(), limits::LANES, "lanes")?;
        ensure(self.lanes.iter().all(|lane| lane.port != 0), "lanes", "port 0 cannot be reached")?;
        let first = self.lanes.first().is_none_or(|lane| lane.public_key == self.public_key);
        ensure(first, "lanes", "the first lane has another key than publicKey")?;
        let keys: BTreeSet<_> = self.lanes.iter().map(|lane| lane.public_key).collect();
        ensure(keys.len() == self.lanes.len(), "lanes", "two lanes have the same key")
    }
}

impl Export {
    fn check(&self) -> Result<(), InvalidRecord> {
        service_name(&self.namespace, &self.name)?;
        at_most(self.ports.len(), limits::PORTS, "ports")?;
        self.ports.iter().try_for_each(ServicePort::check)?;
        let names: BTreeSet<_> = self.ports.iter().map(|port| port.name.as_deref()).collect();
        ensure(names.len() == self.ports.len(), "ports", "two ports have the same name")?;
        let numbers: BTreeSet<_> = self.ports.iter().map(|port| (port.protocol, port.port)).collect();
        ensure(numbers.len() == self.ports.len(), "ports", "two ports have the same protocol and number")?;
        if let SessionAffinity::ClientIP { timeout_seconds: Some(seconds) } = self.session_affinity {
            ensure((1..=86_400).contains(&seconds), "sessionAffinity", "timeoutSeconds must be 1 to 86400")?;
        }
        if let Some(distribution) = &self.traffic_distribution {
            let plain = distribution.len() <= 63 && distribution.bytes().all(|b| b.is_ascii_alphanumeric());
            ensure(
                plain && !distribution.is_empty(),
                "trafficDistribution",
                "must be a word of at most 63 letters",
            )?;
        }
        let families: BTreeSet<_> = self.ip_families.iter().collect();
        ensure(families.len() == self.ip_families.len(), "ipFamilies", "a family appears twice")?;
        metadata(&self.labels, "labels")?;
        ensure(
            self.labels.values().all(|v| is_label_value(v)),
            "labels",
            "a value is not a Kubernetes label value",
        )?;
        metadata(&self.annotations, "annotations")?;
        let bytes: usize = self.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        let limit = limits::ANNOTATION_BYTES;
        ensure(bytes <= limit, "annotations", format!("{bytes} bytes; at most {limit} are taken"))
    }
}

impl ServicePort {
    fn check(&self) -> Result<(), InvalidRecord> {
        port_name(self.name.as_deref())?;
        app_protocol(self.app_protocol.as_deref())
    }
}

impl Endpoints {
    fn check(&self) -> Result<(), InvalidRecord> {
        service_name(&self.namespace, &self.service)?;
        ensure(is_dns_subdomain(&self.slice), "slice", "must be an RFC 1123 subdomain")?;
        at_most(self.ports.len(), limits::PORTS, "ports")?;
        self.ports.iter().try_for_each(EndpointPort::check)?;
        let names: BTreeSet<_> = self.ports.iter().map(|port| port.name.as_deref()).collect();
        ensure(names.len() == self.ports.len(), "ports", "two ports have the same name")?;
        at_most(self.endpoints.len(), limits::ENDPOINTS_PER_NAME, "endpoints")?;
        self.endpoints.iter().try_for_each(|endpoint| endpoint.check(self.address_family))
    }
}

impl EndpointPort {
    fn check(&self) -> Result<(), InvalidRecord> {
        port_name(self.name.as_deref())?;
        app_protocol(self.app_protocol.as_deref())
    }
}

impl Endpoint {
    fn check(&self, family: AddressFamily) -> Result<(), InvalidRecord> {
        ensure(
            AddressFamily::of(self.address) == family,
            "endpoints",
            "an address is not of the slice's family",
        )?;
        let named = self.hostname.as_deref().is_none_or(is_dns_label);
        ensure(named, "endpoints", "a hostname is not an RFC 1123 label")?;
        let zoned = self.zone.as_deref().is_none_or(is_label_value);
        ensure(zoned, "endpoints", "a zone is not a Kubernetes label value")
    }
}

fn service_name(namespace: &str, name: &str) -> Result<(), InvalidRecord> {
    ensure(is_dns_label(namespace), "namespace", "must be an RFC 1123 label")?;
    ensure(is_dns_label(name), "name", "must be an RFC 1123 label")
}

fn port_name(name: Option<&str>) -> Result<(), InvalidRecord> {
    ensure(name.is_none_or(is_dns_label), "ports", "a port's name is not an RFC 1123 label")
}

fn app_protocol(protocol: Option<&str>) -> Result<(), InvalidRecord> {
    ensure(
        protocol.is_none_or(is_qualified_name),
        "ports",
        "an appProtocol is not a Kubernetes qualified name",
    )
}

fn metadata(entries: &BTreeMap<String, String>, field: &'static str) -> Result<(), InvalidRecord> {
    at_most(entries.len(), limits::METADATA_ENTRIES, field)?;
    ensure(
        entries.keys().all(|key| is_qualified_name(key)),
        field,
        "a key is not a Kubernetes qualified name",
    )
}

/// Kubernetes' qualified name: an optional RFC 1123 subdomain and `/`, then 1 to 63 of `[A-Za-z0-9._-]`.
fn is_qualified_name(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    prefix.is_none_or(is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

/// Kubernetes' label value: empty, or 1 to 63 of `[A-Za-z0-9._-]` with a letter or digit at both ends.
fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= 63 && bytes.iter().all(inner) && edge(bytes.first()) && edge(bytes.last())
}

#[cfg(test)]
mod tests;
