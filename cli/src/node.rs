// SPDX-License-Identifier: Apache-2.0
//! `isthmus node`: what is asked of one node.

use std::time::Duration;

use anyhow::Result;
use isthmus_api::v1alpha1::NodeNetwork;
use isthmus_model::ids::NodeName;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use serde_json::json;

use crate::failure;
use crate::out::say;

/// How long the node's agent may take to follow.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(120);

/// Raises the generation of the node's key and waits until the node uses a new one. Returns the exit code.
pub(crate) async fn rotate_key(client: Client, node: &NodeName) -> Result<u8> {
    let networks: Api<NodeNetwork> = Api::all(client);
    let tried = format!("rotate the key of {node}");
    let explain = |error| failure::explain(error, &tried);
    let network = networks.get(node.as_str()).await.map_err(explain)?;
    let before = network.status.as_ref().and_then(|status| status.public_key.clone());
    let wanted = network.spec.key_generation + 1;
    // The version guards against two people who rotate at once: each raise is one rotation.
    let version = network.metadata.resource_version.clone();
    let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "keyGeneration": wanted } });
    networks.patch(node.as_str(), &PatchParams::default(), &Patch::Merge(patch)).await.map_err(explain)?;
    eprintln!("asked {node} for generation {wanted} of its key; waiting until its peers have tunnels to it");
    let waiting = await_condition(networks.clone(), node.as_str(), move |network: Option<&NodeNetwork>| {
        follows(network, wanted)
    });
    let Ok(answer) = tokio::time::timeout(FOLLOW_TIMEOUT, waiting).await else {
        eprintln!(
            "isthmus: {node} did not follow within {} s and goes on trying. It waits for every peer that its present key \
             reaches: `isthmus status` names one that is not connected; else see its agent's log",
            FOLLOW_TIMEOUT.as_secs()
        );
        return Ok(crate::NOT_READY);
    };
    let after = answer?.and_then(|network| network.status).and_then(|status| status.public_key);
    say!("{node}: {} -> {}", before.as_deref().unwrap_or("-"), after.as_deref().unwrap_or("-"));
    Ok(crate::OK)
}

fn follows(network: Option<&NodeNetwork>, wanted: i64) -> bool {
    let status = network.and_then(|network| network.status.as_ref());
    status.and_then(|status| status.key_generation).is_some_and(|generation| generation >= wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_api::v1alpha1::NodeNetworkStatus;

    #[test]
    fn a_node_follows_once_its_status_names_the_generation() {
        let with = |generation| {
            let mut network = NodeNetwork::new("worker", isthmus_api::v1alpha1::NodeNetworkSpec::default());
            network.status = Some(NodeNetworkStatus { key_generation: generation, ..Default::default() });
            network
        };

        assert!(!follows(None, 1));
        assert!(!follows(Some(&with(None)), 1));
        assert!(!follows(Some(&with(Some(0))), 1));
        assert!(follows(Some(&with(Some(1))), 1));
    }
}
