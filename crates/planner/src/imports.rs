// SPDX-License-Identifier: Apache-2.0
//! A ServiceImport for each service of the clusterset, a derived Service for its virtual address, and mirrored
//! EndpointSlices for its backends, so that any kube-proxy and CoreDNS serve it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isthmus_api::condition::{READY, Wanted};
use isthmus_api::mcs::{
    EndpointSliceObjects, ImportCluster, ImportPort, ImportType, ServiceImport, ServiceImportSpec,
    ServiceImportStatus,
};
use isthmus_mesh::grant::ServiceName;
use isthmus_mesh::record::{AddressFamily, Endpoint, ExportKind, SessionAffinity, TrafficPolicy};
use k8s_openapi::api::core::v1::{ClientIPConfig, Service, ServicePort, ServiceSpec, SessionAffinityConfig};
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::conditions::{self, is};
use crate::corefile;
use crate::merge::Merged;
use crate::plan::{Kind, ObjectKey, Plan};
use crate::services::{Services, Slice, derived_name, short_hash};
use crate::snapshot::Snapshot;

/// Label of every object here that is ours to prune, with [`MANAGER`] as its value.
pub const MANAGED_BY: &str = "isthmus.dev/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGER: &str = "isthmus-operator";
/// Value of `endpointslice.kubernetes.io/managed-by` on mirrored slices.
pub const SLICE_MANAGER: &str = "mirror.isthmus.dev";
/// Label of a mirrored slice: the cluster that its endpoints are in (KEP-1645).
pub const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
/// Condition of an import whose name CoreDNS does not serve; not there where it does.
const NAME_SERVED: &str = "NameServed";
const SERVICE_NAME: &str = "multicluster.kubernetes.io/service-name";
const DERIVED_SERVICE: &str = "multicluster.kubernetes.io/derived-service";
/// No exporter sets labels or annotations under these prefixes in our cluster: others trust them.
const RESERVED_PREFIXES: [&str; 4] =
    ["isthmus.dev/", "kubernetes.io/", "multicluster.kubernetes.io/", "endpointslice.kubernetes.io/"];

pub(crate) fn plan(snapshot: &Snapshot, services: &Services<'_>, plan: &mut Plan) {
    for (name, merged) in services.importable() {
        plan_import(snapshot, services, name, merged, plan);
    }
    for name in services.names() {
        plan_slices(snapshot, services, name, plan);
    }
    prune(snapshot, services, plan);
}

fn plan_import(
    snapshot: &Snapshot,
    services: &Services<'_>,
    name: &ServiceName,
    merged: &Merged,
    plan: &mut Plan,
) {
    let derived = derived_name(name);
    let with_address = merged.kind == ExportKind::ClusterSetIP;
    let observed =
        snapshot.derived.get(&ServiceName { namespace: name.namespace.clone(), name: derived.clone() });
    let addresses = observed.map(|derived| addresses(&derived.addresses, merged)).unwrap_or_default();
    let mut import =
        ServiceImport::new(&name.name, spec(merged, if with_address { &addresses } else { &[] }));
    import.metadata.namespace = Some(name.namespace.clone());
    let mut labels = unreserved(&merged.labels);
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    import.metadata.labels = Some(labels);
    let mut annotations = unreserved(&merged.annotations);
    if with_address {
        annotations.insert(DERIVED_SERVICE.to_owned(), derived.clone());
    }
    import.metadata.annotations = Some(annotations);
    plan.ensure(&import);
    let seen = snapshot.imports.get(name);
    if with_address {
        // Made at once, so that the address is there early; owned once the import has a UID.
        plan.ensure(&derived_service(name, &derived, merged, seen.map(|seen| owner(name, &seen.uid))));
    }
    let Some(seen) = seen else { return };
    let unsupported = observed.is_some_and(|derived| !derived.addresses.is_empty()) && addresses.is_empty();
    let ready = match (with_address, addresses.is_empty()) {
        (true, true) if unsupported => is(
            READY,
            false,
            "IPFamilyNotSupported",
            "this cluster gives Services no address of a family that the exporting clusters serve",
        ),
        (true, true) => is(READY, false, "Pending", "waits for its virtual address"),
        _ => is(READY, true, READY, ""),
    };
    let status = ServiceImportStatus {
        clusters: services
            .clusters(name)
            .into_iter()
            .map(|cluster| ImportCluster { cluster: cluster.to_owned() })
            .collect(),
        endpoint_slice_objects: Some(EndpointSliceObjects::Present),
        conditions: conditions::exactly(
            &seen.status.conditions,
            &std::iter::once(ready).chain(unnamed(snapshot)).collect::<Vec<_>>(),
            seen.generation,
            snapshot.now,
        ),
    };
    plan.status(ObjectKey::of(&import), &status);
}

/// That no name of the clusterset is served here, where CoreDNS' configuration is one that we cannot extend.
fn unnamed(snapshot: &Snapshot) -> Option<Wanted> {
    let problem = corefile::with_clusterset(&snapshot.corefile.as_ref()?.text).err()?;
    let message = format!("ConfigMap kube-system/coredns: {}", problem.message);
    Some(is(NAME_SERVED, false, problem.reason, message))
}

/// The virtual addresses that reach backends, in the order of the service's families.
fn addresses(all: &[IpAddr], merged: &Merged) -> Vec<IpAddr> {
    let family = |address: &IpAddr| AddressFamily::of(*address);
    let of = |wanted: &AddressFamily| all.iter().copied().find(|address| family(address) == *wanted);
    merged.ip_families.iter().filter_map(of).collect()
}

fn spec(merged: &Merged, addresses: &[IpAddr]) -> ServiceImportSpec {
    let families = |families: &mut dyn Iterator<Item = AddressFamily>| {
        families.map(|family| family.as_str().to_owned()).collect::<Vec<_>>()
    };
    let headless = merged.kind == ExportKind::Headless;
    ServiceImportSpec {
        ports: merged
            .ports
            .iter()
            .map(|port| ImportPort {
                name: port.name.clone(),
                protocol: Some(port.protocol.as_str().to_owned()),
                app_protocol: port.app_protocol.clone(),
                port: i32::from(port.port.get()),
            })
            .collect(),
        ips: addresses.iter().map(ToString::to_string).collect(),
        ip_families: if headless {
            families(&mut merged.ip_families.iter().copied())
        } else {
            families(&mut addresses.iter().map(|address| AddressFamily::of(*address)))
        },
        type_: if headless { ImportType::Headless } else { ImportType::ClusterSetIP },
        session_affinity: Some(affinity(merged).0),
        session_affinity_config: affinity(merged).1,
        internal_traffic_policy: policy(merged),
        traffic_distribution: merged.traffic_distribution.clone(),
    }
}

fn affinity(merged: &Merged) -> (String, Option<SessionAffinityConfig>) {
    match merged.session_affinity {
        SessionAffinity::None => ("None".to_owned(), None),
        SessionAffinity::ClientIP { timeout_seconds } => {
            let timeout_seconds = timeout_seconds.and_then(|seconds| i32::try_from(seconds).ok());
            let config = timeout_seconds.map(|seconds| SessionAffinityConfig {
                client_ip: Some(ClientIPConfig { timeout_seconds: Some(seconds) }),
            });
            ("ClientIP".to_owned(), config)
        }
    }
}

fn policy(merged: &Merged) -> Option<String> {
    merged.internal_traffic_policy.map(|policy| match policy {
        TrafficPolicy::Cluster => "Cluster".to_owned(),
        TrafficPolicy::Local => "Local".to_owned(),
    })
}

fn unreserved(entries: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let reserved = |key: &str| RESERVED_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    entries
        .iter()
        .filter(|(key, _)| !reserved(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn owner(name: &ServiceName, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "multicluster.x-k8s.io/v1beta1".to_owned(),
        kind: "ServiceImport".to_owned(),
        name: name.name.clone(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

/// A Service without selector: its address is the service's virtual address here.
fn derived_service(
    name: &ServiceName,
    derived: &str,
    merged: &Merged,
    owner: Option<OwnerReference>,
) -> Service {
    let ports = merged.ports.iter().map(|port| ServicePort {
        name: port.name.clone(),
        protocol: Some(port.protocol.as_str().to_owned()),
        app_protocol: port.app_protocol.clone(),
        port: i32::from(port.port.get()),
        ..ServicePort::default()
    });
    Service {
        metadata: ObjectMeta {
            name: Some(derived.to_owned()),
            namespace: Some(name.namespace.clone()),
            labels: Some(BTreeMap::from([
                (MANAGED_BY.to_owned(), MANAGER.to_owned()),
                (SERVICE_NAME.to_owned(), name.name.clone()),
            ])),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            // Families that the exporters do not serve are left out of the import; asking for given ones would fail
            // in a cluster that lacks one.
            ip_family_policy: Some("PreferDualStack".to_owned()),
            ports: Some(ports.collect()),
            session_affinity: Some(affinity(merged).0),
            session_affinity_config: affinity(merged).1,
            internal_traffic_policy: policy(merged),
            traffic_distribution: merged.traffic_distribution.clone(),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn plan_slices(snapshot: &Snapshot, services: &Services<'_>, name: &ServiceName, plan: &mut Plan) {
    let Some(seen) = snapshot.imports.get(name).filter(|_| !services.foreign_import(name)) else { return };
    let Ok(import) = &seen.value else { return };
    let with_address = match services.is_held(name) {
        true => import.spec.type_ == ImportType::ClusterSetIP,
        false => services.kind(name) == Some(ExportKind::ClusterSetIP),
    };
    for slice in services.slices(name) {
        let served = services.served(name, slice.cluster);
        let kept = slice.record.ports.iter().filter(|port| served.contains(&port.name.as_deref()));
        let ports: Vec<_> = kept.map(endpoint_port).collect();
        if ports.is_empty() && !slice.record.ports.is_empty() {
            continue;
        }
        plan.ensure(&mirrored(name, &slice, ports, with_address, owner(name, &seen.uid)));
    }
}

fn endpoint_port(port: &isthmus_mesh::record::EndpointPort) -> discovery::EndpointPort {
    discovery::EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        protocol: Some(port.protocol.as_str().to_owned()),
        port: Some(i32::from(port.port.get())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn mirrored(
    name: &ServiceName,
    slice: &Slice<'_>,
    ports: Vec<discovery::EndpointPort>,
    with_address: bool,
    owner: OwnerReference,
) -> discovery::EndpointSlice {
    let derived = derived_name(name);
    let family = slice.record.address_family.as_str();
    let mut labels = BTreeMap::from([
        (MANAGED_BY.to_owned(), MANAGER.to_owned()),
        ("endpointslice.kubernetes.io/managed-by".to_owned(), SLICE_MANAGER.to_owned()),
        (SERVICE_NAME.to_owned(), name.name.clone()),
        (SOURCE_CLUSTER.to_owned(), slice.cluster.to_owned()),
    ]);
    if with_address {
        labels.insert("kubernetes.io/service-name".to_owned(), derived.clone());
    }
    discovery::EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{derived}-{}", short_hash(&[slice.cluster, &slice.record.slice, family]))),
            namespace: Some(name.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(slice.record.endpoints.iter().map(|one| endpoint(one, slice.nodes)).collect()),
        ports: Some(ports),
    }
}

fn endpoint(endpoint: &Endpoint, nodes: Option<&BTreeMap<IpAddr, String>>) -> discovery::Endpoint {
    discovery::Endpoint {
        addresses: vec![endpoint.address.to_string()],
        conditions: Some(discovery::EndpointConditions {
            ready: Some(endpoint.ready),
            serving: Some(endpoint.serving),
            terminating: Some(endpoint.terminating),
        }),
        hostname: endpoint.hostname.clone(),
        zone: endpoint.zone.clone(),
        node_name: nodes.and_then(|nodes| nodes.get(&endpoint.address)).cloned(),
        ..discovery::Endpoint::default()
    }
}

/// Ours, and wanted no more. What came from a peer that was not heard yet stays.
fn prune(snapshot: &Snapshot, services: &Services<'_>, plan: &mut Plan) {
    let mut held = BTreeSet::new();
    for (name, seen) in &snapshot.imports {
        if services.is_held(name) {
            held.insert(ServiceName { namespace: name.namespace.clone(), name: derived_name(name) });
            continue;
        }
        let key = ObjectKey::namespaced(Kind::ServiceImport, &name.namespace, &name.name);
        let ours = seen.value.as_ref().is_ok_and(|import| import.ours);
        if ours && !plan.ensure.contains_key(&key) {
            plan.prune.insert(key, seen.uid.clone());
        }
    }
    for (name, derived) in &snapshot.derived {
        let key = ObjectKey::namespaced(Kind::Service, &name.namespace, &name.name);
        if !plan.ensure.contains_key(&key) && !held.contains(name) {
            plan.prune.insert(key, derived.uid.clone());
        }
    }
    for (name, slice) in &snapshot.mirrored {
        let key = ObjectKey::namespaced(Kind::EndpointSlice, &name.namespace, &name.name);
        if !plan.ensure.contains_key(&key) && !services.is_held_cluster(&slice.source_cluster) {
            plan.prune.insert(key, slice.uid.clone());
        }
    }
}

#[cfg(test)]
mod tests;
