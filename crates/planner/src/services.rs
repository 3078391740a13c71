// SPDX-License-Identifier: Apache-2.0
//! The clusterset's services as this cluster sees them: all exports of all clusters, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isthmus_api::mcs::ServiceImportSpec;
use isthmus_mesh::grant::ServiceName;
use isthmus_mesh::record::{Endpoints, Export, ExportKind, Protocol, ServicePort};
use isthmus_model::ids::ClusterId;
use sha2::{Digest, Sha256};

use crate::exports::Exports;
use crate::merge::{Conflict, Merged, merge};
use crate::peering::Judged;
use crate::snapshot::Snapshot;

/// Every service of the clusterset.
pub(crate) struct Services<'a> {
    snapshot: &'a Snapshot,
    own_id: &'a str,
    /// Exports by name, then by cluster ID.
    exports: BTreeMap<&'a ServiceName, BTreeMap<&'a str, &'a Export>>,
    merged: BTreeMap<&'a ServiceName, Merged>,
    /// Slices of peers by cluster ID.
    remote: BTreeMap<&'a str, &'a BTreeMap<ServiceName, BTreeMap<String, Endpoints>>>,
    /// IDs of peers that were not heard since this process started: what came from them stays as it is.
    held: BTreeSet<&'a str>,
}

/// One cluster's slice of a service.
pub(crate) struct Slice<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) record: &'a Endpoints,
    /// Nodes of the endpoints; none for other clusters.
    pub(crate) nodes: Option<&'a BTreeMap<IpAddr, String>>,
}

impl<'a> Services<'a> {
    pub(crate) fn collect(
        snapshot: &'a Snapshot,
        own_id: &'a ClusterId,
        exports: &'a Exports,
        peers: &'a BTreeMap<&'a str, Judged>,
    ) -> Self {
        let own_id = own_id.as_str();
        let mut services = Self {
            snapshot,
            own_id,
            exports: BTreeMap::new(),
            merged: BTreeMap::new(),
            remote: BTreeMap::new(),
            held: BTreeSet::new(),
        };
        for (name, export) in exports.iter().filter_map(|(name, export)| Some((name, export.as_ref().ok()?)))
        {
            services.exports.entry(name).or_default().insert(own_id, export);
        }
        for judged in peers.values() {
            let Some(id) = judged.accepted.cluster_id.as_ref().map(ClusterId::as_str) else { continue };
            if judged.held {
                services.held.insert(id);
            }
            for (name, export) in &judged.accepted.exports {
                services.exports.entry(name).or_default().insert(id, export);
            }
            services.remote.insert(id, &judged.accepted.endpoints);
        }
        services.merged =
            services.exports.iter().filter_map(|(name, exports)| Some((*name, merge(exports)?))).collect();
        services
    }

    /// The services that shall exist here: those whose namespace does, and that nothing is awaited for.
    pub(crate) fn importable(&self) -> impl Iterator<Item = (&'a ServiceName, &Merged)> {
        self.merged.iter().map(|(name, merged)| (*name, merged)).filter(|(name, _)| {
            self.snapshot.namespaces.contains(&name.namespace)
                && !self.is_held(name)
                && !self.foreign_import(name)
        })
    }

    /// Clusters that export the service, in order.
    pub(crate) fn clusters(&self, name: &ServiceName) -> Vec<&'a str> {
        self.exports.get(name).map(|exports| exports.keys().copied().collect()).unwrap_or_default()
    }

    /// How the service is reached, by its exports.
    pub(crate) fn kind(&self, name: &ServiceName) -> Option<ExportKind> {
        self.merged.get(name).map(|merged| merged.kind)
    }

    /// What the exports of the service do not agree on.
    pub(crate) fn conflicts(&self, name: &ServiceName) -> BTreeSet<Conflict> {
        self.merged.get(name).map(|merged| merged.conflicts.clone()).unwrap_or_default()
    }

    /// Whether a peer that was not heard yet is among the clusters that export the service.
    pub(crate) fn is_held(&self, name: &ServiceName) -> bool {
        let import = self.snapshot.imports.get(name);
        import.is_some_and(|seen| {
            seen.status.clusters.iter().any(|one| self.held.contains(one.cluster.as_str()))
        })
    }

    /// Whether slices of the cluster shall stay as they are.
    pub(crate) fn is_held_cluster(&self, cluster: &str) -> bool {
        self.held.contains(cluster)
    }

    /// Whether the name is taken by a ServiceImport that is not ours.
    pub(crate) fn foreign_import(&self, name: &ServiceName) -> bool {
        let import = self.snapshot.imports.get(name).and_then(|seen| seen.value.as_ref().ok());
        import.is_some_and(|import| !import.ours)
    }

    /// All slices of a service, of our cluster and of the peers.
    pub(crate) fn slices(&self, name: &'a ServiceName) -> Vec<Slice<'a>> {
        let mut slices = Vec::new();
        for cluster in self.clusters(name) {
            if cluster == self.own_id {
                let local = self.snapshot.slices.get(name).into_iter().flat_map(BTreeMap::values);
                slices.extend(local.map(|slice| Slice {
                    cluster,
                    record: &slice.record,
                    nodes: Some(&slice.nodes),
                }));
            } else {
                let remote = self.remote.get(cluster).and_then(|slices| slices.get(name));
                let remote = remote.into_iter().flat_map(BTreeMap::values);
                slices.extend(remote.map(|record| Slice { cluster, record, nodes: None }));
            }
        }
        slices
    }

    /// Every name that somebody exports.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a ServiceName> {
        self.exports.keys().copied()
    }

    /// Names of the ports under which a cluster's endpoints serve the service: those of its ports that are in the
    /// union, unchanged. A cluster gets traffic only for the ports that it exposes.
    pub(crate) fn served(&self, name: &ServiceName, cluster: &str) -> BTreeSet<Option<&'a str>> {
        let Some(export) = self.exports.get(name).and_then(|exports| exports.get(cluster)) else {
            return BTreeSet::new();
        };
        let import = self.snapshot.imports.get(name).and_then(|seen| seen.value.as_ref().ok());
        let union = match (self.is_held(name), import, self.merged.get(name)) {
            (true, Some(import), _) => ports(&import.spec),
            (_, _, Some(merged)) => merged.ports.clone(),
            _ => Vec::new(),
        };
        let same = |port: &&ServicePort| {
            union
                .iter()
                .any(|one| (&one.name, one.protocol, one.port) == (&port.name, port.protocol, port.port))
        };
        export.ports.iter().filter(same).map(|port| port.name.as_deref()).collect()
    }
}

/// Ports of an import as observed.
fn ports(spec: &ServiceImportSpec) -> Vec<ServicePort> {
    let port = |port: &isthmus_api::mcs::ImportPort| {
        Some(ServicePort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
            app_protocol: port.app_protocol.clone(),
            port: u16::try_from(port.port).ok()?.try_into().ok()?,
        })
    };
    spec.ports.iter().filter_map(port).collect()
}

/// Name of the derived Service of a service.
pub(crate) fn derived_name(name: &ServiceName) -> String {
    format!("derived-{}", short_hash(&[&name.namespace, &name.name]))
}

/// Ten hexadecimal digits of the SHA-256 of the parts.
pub(crate) fn short_hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}
