// SPDX-License-Identifier: Apache-2.0
//! One NodeNetwork for each node, gone with it.

use isthmus_api::v1alpha1::{NodeNetwork, NodeNetworkSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::plan::{Kind, ObjectKey, Plan};
use crate::snapshot::Snapshot;

pub(crate) fn plan(snapshot: &Snapshot, plan: &mut Plan) {
    for (name, node) in &snapshot.nodes {
        let mut object = NodeNetwork::new(name, NodeNetworkSpec::default());
        object.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.clone(),
            uid: node.uid.clone(),
            ..OwnerReference::default()
        }]);
        plan.ensure(&object);
    }
    for (name, seen) in &snapshot.node_networks {
        if !snapshot.nodes.contains_key(name) {
            plan.prune.insert(ObjectKey::cluster(Kind::NodeNetwork, name), seen.uid.clone());
        }
    }
}
