// SPDX-License-Identifier: Apache-2.0
//! Exports, imports, and the Services and EndpointSlices behind them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use isthmus_api::mcs::{ServiceExport, ServiceExportStatus, ServiceImport, ServiceImportStatus};
use isthmus_mesh::grant::ServiceName;
use isthmus_mesh::record::{
    AddressFamily, Endpoint, EndpointPort, Endpoints, ExportKind, Protocol, ServicePort, SessionAffinity,
    TrafficPolicy,
};
use isthmus_planner::imports::{MANAGED_BY, MANAGER, SOURCE_CLUSTER};
use isthmus_planner::{Derived, ExportWish, Import, LocalService, LocalSlice, Mirrored, Seen};
use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::parts::ServicePart;
use super::{label, seen};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Takes a ServiceExport.
pub fn export(object: &ServiceExport) -> Seen<ExportWish, ServiceExportStatus> {
    let wish = ExportWish {
        labels: object.spec.exported_labels.clone(),
        annotations: object.spec.exported_annotations.clone(),
    };
    seen(&object.metadata, object.status.as_ref(), Ok(wish))
}

/// Takes a ServiceImport.
pub fn import(object: &ServiceImport) -> Seen<Import, ServiceImportStatus> {
    let import = Import { spec: object.spec.clone(), ours: is_ours(&object.metadata) };
    seen(&object.metadata, object.status.as_ref(), Ok(import))
}

fn is_ours(meta: &ObjectMeta) -> bool {
    label(meta, MANAGED_BY) == Some(MANAGER)
}

/// Takes a Service that may be exported.
pub fn service(object: &ServicePart) -> LocalService {
    let none = ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&none);
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            protocol: protocol(port.protocol.as_deref()),
            app_protocol: port.app_protocol.clone(),
            port: number(Some(port.port))?,
        })
    });
    LocalService {
        kind: if headless { ExportKind::Headless } else { ExportKind::ClusterSetIP },
        ports: ports.collect(),
        session_affinity: affinity(spec),
        internal_traffic_policy: match spec.internal_traffic_policy.as_deref() {
            Some("Local") => Some(TrafficPolicy::Local),
            Some("Cluster") => Some(TrafficPolicy::Cluster),
            _ => None,
        },
        traffic_distribution: spec.traffic_distribution.clone(),
        ip_families: spec.ip_families.iter().flatten().filter_map(|family| self::family(family)).collect(),
        external_name: spec.type_.as_deref() == Some("ExternalName"),
    }
}

fn affinity(spec: &ServiceSpec) -> SessionAffinity {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return SessionAffinity::None;
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|client_ip| client_ip.timeout_seconds);
    SessionAffinity::ClientIP { timeout_seconds: seconds.and_then(|seconds| u32::try_from(seconds).ok()) }
}

fn protocol(text: Option<&str>) -> Protocol {
    match text {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn family(text: &str) -> Option<AddressFamily> {
    match text {
        "IPv4" => Some(AddressFamily::IPv4),
        "IPv6" => Some(AddressFamily::IPv6),
        _ => None,
    }
}

fn number(port: Option<i32>) -> Option<std::num::NonZeroU16> {
    u16::try_from(port?).ok()?.try_into().ok()
}

/// The Service that an EndpointSlice belongs to. None for a slice that we mirrored.
pub fn service_of(object: &discovery::EndpointSlice) -> Option<ServiceName> {
    if is_ours(&object.metadata) {
        return None;
    }
    let name = label(&object.metadata, SERVICE_NAME)?.to_owned();
    Some(ServiceName { namespace: object.metadata.namespace.clone()?, name })
}

/// Takes an EndpointSlice of a Service; none if its addresses are names.
pub fn slice(object: &discovery::EndpointSlice, service: &ServiceName) -> Option<LocalSlice> {
    let address_family = family(&object.address_type)?;
    let mut nodes = BTreeMap::new();
    let mut endpoints = Vec::new();
    for one in object.endpoints.iter().flatten() {
        // All addresses of an endpoint are equivalent; consumers use the first.
        let Some(address) = one.addresses.first().and_then(|address| address.parse::<IpAddr>().ok()) else {
            continue;
        };
        if let Some(node) = &one.node_name {
            nodes.insert(address, node.clone());
        }
        endpoints.push(endpoint(one, address));
    }
    let ports = object.ports.iter().flatten().filter_map(|port| {
        Some(EndpointPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            protocol: protocol(port.protocol.as_deref()),
            port: number(port.port)?,
            app_protocol: port.app_protocol.clone(),
        })
    });
    let record = Endpoints {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        slice: object.metadata.name.clone()?,
        address_family,
        ports: ports.collect(),
        endpoints,
    };
    Some(LocalSlice { record, nodes })
}

/// What is absent means: ready (by the API's own words), not terminating, and serving as it is ready.
fn endpoint(object: &discovery::Endpoint, address: IpAddr) -> Endpoint {
    let conditions = object.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    Endpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        hostname: object.hostname.clone(),
        zone: object.zone.clone(),
    }
}

/// Takes a derived Service; none if the Service is not ours.
pub fn derived(object: &ServicePart) -> Option<Derived> {
    if !is_ours(&object.metadata) {
        return None;
    }
    let addresses = object.spec.as_ref().and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
    Some(Derived {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        addresses: addresses.filter_map(|address| address.parse().ok()).collect(),
    })
}

/// Takes a mirrored EndpointSlice; none if the slice is not ours.
pub fn mirrored(object: &discovery::EndpointSlice) -> Option<Mirrored> {
    if !is_ours(&object.metadata) {
        return None;
    }
    Some(Mirrored {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        source_cluster: label(&object.metadata, SOURCE_CLUSTER)?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice_of(value: serde_json::Value) -> discovery::EndpointSlice {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn absent_conditions_of_an_endpoint_mean_ready() {
        let object = slice_of(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.2.0.5"], "nodeName": "n1"},
                {"addresses": ["10.2.0.6"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ],
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        }));
        let name = service_of(&object).unwrap();
        assert_eq!(name.to_string(), "shop/web");
        let taken = slice(&object, &name).unwrap();
        let states: Vec<_> =
            taken.record.endpoints.iter().map(|one| (one.ready, one.serving, one.terminating)).collect();
        assert_eq!(states, [(true, true, false), (false, true, true)]);
        assert_eq!(taken.nodes.len(), 1);
        assert_eq!(taken.record.ports[0].name, None);
        assert!(taken.record.endpoints.len() == 2);
    }

    #[test]
    fn a_slice_that_we_mirrored_is_no_source_of_endpoints() {
        let object = slice_of(json!({
            "metadata": {"name": "derived-1", "namespace": "shop", "uid": "u", "labels": {
                "kubernetes.io/service-name": "derived-1",
                "isthmus.dev/managed-by": "isthmus-operator",
                "multicluster.kubernetes.io/source-cluster": "west",
            }},
            "addressType": "IPv4",
            "endpoints": [],
        }));
        assert_eq!(service_of(&object), None);
        assert_eq!(mirrored(&object).unwrap().source_cluster, "west");
    }

    #[test]
    fn an_external_name_and_a_headless_service_are_told_apart() {
        let service_of = |spec: serde_json::Value| {
            service(&serde_json::from_value::<ServicePart>(json!({"metadata": {}, "spec": spec})).unwrap())
        };
        assert!(service_of(json!({"type": "ExternalName", "externalName": "a.b"})).external_name);
        assert_eq!(service_of(json!({"clusterIP": "None"})).kind, ExportKind::Headless);
        let sticky = service_of(json!({
            "clusterIP": "10.0.0.1",
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
        }));
        assert_eq!(sticky.session_affinity, SessionAffinity::ClientIP { timeout_seconds: Some(10) });
    }
}
