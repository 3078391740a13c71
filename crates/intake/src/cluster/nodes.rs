// SPDX-License-Identifier: Apache-2.0
//! Nodes, and what their agents report.

use isthmus_api::v1alpha1::{NodeNetwork, NodeNetworkStatus};
use isthmus_planner::{Node, Seen};

use super::addresses::network;
use super::parts::{NamespacePart, NodePart};
use super::seen;

/// Takes a Node.
pub fn node(object: &NodePart) -> Node {
    let addresses = object.status.addresses.iter().filter(|one| one.type_ == "InternalIP");
    Node {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        ready: object.status.conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True"),
        addresses: addresses.filter_map(|one| one.address.parse().ok()).collect(),
        pod_cidrs: object.spec.pod_cidrs.iter().filter_map(|one| network(one).ok()).collect(),
    }
}

/// Takes a NodeNetwork.
pub fn node_network(object: &NodeNetwork) -> Seen<(), NodeNetworkStatus> {
    seen(&object.metadata, object.status.as_ref(), Ok(()))
}

/// Whether services can be imported into the namespace: nothing can be made in one that is being deleted.
pub fn is_importable_namespace(object: &NamespacePart) -> bool {
    object.metadata.deletion_timestamp.is_none()
}
