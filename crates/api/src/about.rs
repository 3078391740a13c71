// SPDX-License-Identifier: Apache-2.0
//! `about.k8s.io`: ClusterProperty (KEP-2149).

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the ClusterProperty that holds the cluster's ID.
pub const CLUSTER_ID: &str = "cluster.clusterset.k8s.io";
/// Name of the ClusterProperty that holds the clusterset.
pub const CLUSTER_SET: &str = "clusterset.k8s.io";

/// A property of the cluster, such as its ID in the clusterset.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "about.k8s.io",
    version = "v1alpha1",
    kind = "ClusterProperty",
    plural = "clusterproperties",
    derive = "PartialEq",
    printcolumn = r#"{"name":"value","type":"string","jsonPath":".spec.value"}"#,
    printcolumn = r#"{"name":"age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct ClusterPropertySpec {
    /// The value.
    #[schemars(length(min = 1))]
    pub value: String,
}
