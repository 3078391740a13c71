// SPDX-License-Identifier: Apache-2.0
//! Nodes, and what their agents report.

use isthmus_api::v1alpha1::{NodeNetwork, NodeNetworkStatus};
use isthmus_planner::{Node, Seen};
use k8s_openapi::api::core::v1;

use super::seen;

/// Takes a Node.
pub fn node(object: &v1::Node) -> Node {
    let status = object.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    Node {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        ready: conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True"),
        addresses: addresses
            .filter(|one| one.type_ == "InternalIP")
            .filter_map(|one| one.address.parse().ok())
            .collect(),
    }
}

/// Takes a NodeNetwork.
pub fn node_network(object: &NodeNetwork) -> Seen<(), NodeNetworkStatus> {
    seen(&object.metadata, object.status.as_ref(), Ok(()))
}

/// Whether services can be imported into the namespace: nothing can be made in one that is being deleted.
pub fn is_importable_namespace(object: &v1::Namespace) -> bool {
    object.metadata.deletion_timestamp.is_none()
}
