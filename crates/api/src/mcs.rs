// SPDX-License-Identifier: Apache-2.0
//! `multicluster.x-k8s.io`: ServiceExport and ServiceImport (KEP-1645), the stored version v1beta1.

use crate::shape;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Upstream's schema lets an object come without a spec. One such object must not stop the reading of the others, so an
/// absent spec is read as an empty one: serde asks a missing field for an `Option`.
macro_rules! spec_may_be_absent {
    ($spec:ident) => {
        impl<'de> Deserialize<'de> for $spec {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Present($spec);
                impl<'de> Deserialize<'de> for Present {
                    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                        $spec::deserialize(from).map(Self)
                    }
                }
                Ok(Option::<Present>::deserialize(from)?.map(|present| present.0).unwrap_or_default())
            }
        }
        impl Serialize for $spec {
            fn serialize<S: serde::Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
                $spec::serialize(self, into)
            }
        }
    };
}

/// Marks the Service of this name and namespace for the clusterset.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "multicluster.x-k8s.io",
    version = "v1beta1",
    kind = "ServiceExport",
    plural = "serviceexports",
    shortname = "svcex",
    shortname = "svcexport",
    namespaced,
    status = "ServiceExportStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", remote = "Self")]
#[schemars(!remote)]
pub struct ServiceExportSpec {
    /// Labels for the imports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_labels: BTreeMap<String, String>,
    /// Annotations for the imports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_annotations: BTreeMap<String, String>,
}

spec_may_be_absent!(ServiceExportSpec);

/// The export as it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportStatus {
    /// Valid, Ready, Conflict (KEP-1645).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::open_conditions)]
    pub conditions: Vec<Condition>,
}

/// A service of the clusterset, as one namespace of this cluster sees it.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "multicluster.x-k8s.io",
    version = "v1beta1",
    kind = "ServiceImport",
    plural = "serviceimports",
    shortname = "svcim",
    shortname = "svcimport",
    namespaced,
    status = "ServiceImportStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Type","type":"string","description":"The type of this ServiceImport","jsonPath":".spec.type"}"#,
    printcolumn = r#"{"name":"IP","type":"string","description":"The VIP for this ServiceImport","jsonPath":".spec.ips"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", remote = "Self")]
#[schemars(!remote)]
pub struct ServiceImportSpec {
    /// Ports.
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub ports: Vec<ImportPort>,
    /// Virtual addresses, at most two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub ips: Vec<String>,
    /// Families of `ips`, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub ip_families: Vec<String>,
    /// ClusterSetIP or Headless.
    #[serde(rename = "type")]
    pub type_: ImportType,
    /// As in a Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<String>,
    /// As in a Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<k8s_openapi::api::core::v1::SessionAffinityConfig>,
    /// As in a Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// As in a Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

spec_may_be_absent!(ServiceImportSpec);

/// How the service is reached.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImportType {
    /// By a virtual address.
    #[default]
    ClusterSetIP,
    /// By the addresses of its pods.
    Headless,
}

/// A port of the service.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImportPort {
    /// Name; empty only where there is one port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// TCP, UDP or SCTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Application protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Port number.
    pub port: i32,
}

/// The import as it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImportStatus {
    /// Clusters that export it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["cluster"]))]
    pub clusters: Vec<ImportCluster>,
    /// Whether the import's EndpointSlices are in this cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_slice_objects: Option<EndpointSliceObjects>,
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = shape::open_conditions)]
    pub conditions: Vec<Condition>,
}

/// Whether the EndpointSlices of an import are in this cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointSliceObjects {
    /// They are.
    Present,
    /// They are not, the implementation keeps them elsewhere.
    Absent,
}

/// An exporting cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct ImportCluster {
    /// Its cluster ID.
    pub cluster: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_or_import_without_a_spec_is_read_as_an_empty_one() {
        let export: ServiceExport = serde_json::from_str(r#"{"metadata":{"name":"web"}}"#).unwrap();
        assert_eq!(export.spec, ServiceExportSpec::default());

        let import: ServiceImport = serde_json::from_str(r#"{"metadata":{"name":"web"}}"#).unwrap();
        assert_eq!(import.spec.ports, []);
    }

    #[test]
    fn a_spec_survives_the_way_through_json() {
        let spec = ServiceImportSpec {
            type_: ImportType::Headless,
            ips: vec!["10.0.0.1".to_owned()],
            ..Default::default()
        };
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<ServiceImportSpec>(&text).unwrap(), spec);
    }
}
