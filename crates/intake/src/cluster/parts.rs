// SPDX-License-Identifier: Apache-2.0
//! Of objects that others write, only the parts that we use.
//!
//! What is not read cannot break a watch: a Service whose status holds a condition without time would otherwise
//! stop all Services from being seen. It also is less to keep in memory.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Serialize};

/// A Service without its status.
#[derive(Clone, Debug, Default, Deserialize, Serialize, Resource)]
#[resource(inherit = Service)]
pub struct ServicePart {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ServiceSpec>,
}

/// A Namespace's metadata.
#[derive(Clone, Debug, Default, Deserialize, Serialize, Resource)]
#[resource(inherit = Namespace)]
pub struct NamespacePart {
    /// Metadata.
    pub metadata: ObjectMeta,
}

/// A StatefulSet's metadata.
#[derive(Clone, Debug, Default, Deserialize, Serialize, Resource)]
#[resource(inherit = StatefulSet)]
pub struct StatefulSetPart {
    /// Metadata.
    pub metadata: ObjectMeta,
}

/// A Node's addresses, conditions and what pods on it have addresses from.
#[derive(Clone, Debug, Default, Deserialize, Serialize, Resource)]
#[resource(inherit = Node)]
pub struct NodePart {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    #[serde(default)]
    pub spec: NodePartSpec,
    /// Status.
    #[serde(default)]
    pub status: NodePartStatus,
}

/// The spec of a [`NodePart`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct NodePartSpec {
    /// Networks that the control plane gave the node for its pods, one of each family at most.
    #[serde(rename = "podCIDRs", default)]
    pub pod_cidrs: Vec<String>,
}

/// The status of a [`NodePart`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct NodePartStatus {
    /// Addresses.
    #[serde(default)]
    pub addresses: Vec<NodePartAddress>,
    /// Conditions.
    #[serde(default)]
    pub conditions: Vec<NodePartCondition>,
}

/// An address of a [`NodePart`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct NodePartAddress {
    /// The address.
    pub address: String,
    /// InternalIP and others.
    #[serde(rename = "type")]
    pub type_: String,
}

/// A condition of a [`NodePart`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct NodePartCondition {
    /// True, False or Unknown.
    pub status: String,
    /// Ready and others.
    #[serde(rename = "type")]
    pub type_: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_with_a_condition_without_time_is_read_all_the_same() {
        let service = json!({
            "metadata": {"name": "web"},
            "spec": {"clusterIP": "10.0.0.1"},
            "status": {"conditions": [{"type": "X", "status": "True", "reason": "", "message": "", "lastTransitionTime": null}]},
        });
        assert!(
            serde_json::from_value::<Service>(service.clone()).is_err(),
            "the full type may be used again"
        );
        assert_eq!(
            serde_json::from_value::<ServicePart>(service).unwrap().metadata.name.as_deref(),
            Some("web")
        );
    }
}
