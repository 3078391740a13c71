// SPDX-License-Identifier: Apache-2.0

use isthmus_api_tests::{ADMIN, ApiServer};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

/// Creates an object, then tries to change it; returns what the server said to the change.
async fn change(kind: &str, name: &str, spec: Value, patch: Value) -> Result<(), String> {
    let server = ApiServer::shared();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("isthmus.dev", "v1alpha1", kind));
    let objects: Api<DynamicObject> = Api::all_with(server.client(ADMIN), &resource);
    let object = DynamicObject::new(name, &resource).data(json!({ "spec": spec }));
    objects.create(&PostParams::default(), &object).await.expect("the object is admitted");
    let changed = objects.patch(name, &PatchParams::default(), &Patch::Merge(json!({ "spec": patch }))).await;
    changed.map(drop).map_err(|error| error.to_string())
}

async fn refused(kind: &str, name: &str, spec: Value, patch: Value, message: &str) {
    let said = change(kind, name, spec, patch).await;
    assert!(said.as_ref().is_err_and(|said| said.contains(message)), "expected: {message}; got: {said:?}");
}

#[tokio::test]
async fn a_pool_keeps_its_cidr_and_block_size() {
    let pool = json!({ "cidr": "10.20.0.0/16", "blockSize": 26 });
    let second = "create a second pool instead and disable this one";
    refused("IPPool", "keeps-cidr", pool.clone(), json!({ "cidr": "10.21.0.0/16" }), second).await;
    refused("IPPool", "keeps-block-size", pool.clone(), json!({ "blockSize": 27 }), second).await;
    refused("IPPool", "keeps-having-a-block-size", pool, json!({ "blockSize": null }), second).await;
    let without = json!({ "cidr": "10.22.0.0/16" });
    refused("IPPool", "gains-no-block-size", without, json!({ "blockSize": 26 }), second).await;
    let ours = json!({ "cidr": "10.24.0.0/16" });
    let second = "create a second pool instead";
    refused("IPPool", "keeps-allocation", ours, json!({ "allocation": "PodCIDRs" }), second).await;
}

#[tokio::test]
async fn what_is_not_immutable_in_a_pool_can_change() {
    let pool = json!({ "cidr": "10.23.0.0/16" });
    let said =
        change("IPPool", "changes", pool, json!({ "disabled": true, "encapsulation": "Always" })).await;
    assert_eq!(said, Ok(()));
}

#[tokio::test]
async fn a_block_does_not_change() {
    let block = json!({ "pool": "v4", "cidr": "10.20.0.0/26", "node": "a" });
    refused(
        "IPBlock",
        "v4-10-20-0-0-26",
        block,
        json!({ "node": "b" }),
        "the operator deletes it and makes another",
    )
    .await;
}

#[tokio::test]
async fn a_block_that_is_kept_for_a_pods_name_moves_with_it_and_changes_in_nothing_else() {
    let pod = json!({ "namespace": "shop", "name": "web-0", "uid": "1", "statefulSet": "s" });
    let block = json!({ "pool": "v4", "cidr": "10.20.9.1/32", "node": "a", "pod": pod });
    let moves = json!({ "node": "b", "pod": { "uid": "2" } });
    assert_eq!(change("IPBlock", "kept-moves", block.clone(), moves).await, Ok(()));
    let message = "the operator deletes it and makes another";
    for (name, other) in [
        ("kept-pod", json!({ "pod": { "name": "web-1" } })),
        ("kept-address", json!({ "cidr": "10.20.9.2/32" })),
        ("kept-set", json!({ "pod": { "statefulSet": null } })),
    ] {
        refused("IPBlock", name, block.clone(), other, message).await;
    }
    let asked = json!({ "pool": "v4", "cidr": "10.20.9.3/32", "node": "a",
        "pod": { "namespace": "shop", "name": "web", "uid": "1" } });
    refused("IPBlock", "asked-for", asked, json!({ "node": "b" }), message).await;
}

#[tokio::test]
async fn a_peering_keeps_its_identity() {
    let peering = || json!({ "identity": "a".repeat(64) });
    let other = json!({ "identity": "b".repeat(64) });
    refused("ClusterPeering", "keeps-identity", peering(), other, "another key is another cluster").await;
    let none = json!({ "identity": null });
    refused(
        "ClusterPeering",
        "keeps-an-identity",
        peering(),
        none,
        "delete the peering and invite the cluster again",
    )
    .await;
}

#[tokio::test]
async fn a_peering_without_an_identity_can_gain_one_and_grants_can_change() {
    let gains = json!({ "identity": "a".repeat(64), "allowedCIDRs": ["10.2.0.0/16"] });
    assert_eq!(change("ClusterPeering", "gains-identity", json!({}), gains).await, Ok(()));
}

#[tokio::test]
async fn an_invitation_keeps_its_time_to_live() {
    let message = "delete the invitation and create another";
    refused("PeeringInvitation", "keeps-ttl", json!({}), json!({ "ttl": "1h" }), message).await;
}
