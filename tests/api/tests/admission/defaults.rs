// SPDX-License-Identifier: Apache-2.0

use isthmus_api::v1alpha1::{Encapsulation, IPPool, IPPoolSpec, PeeringInvitation};
use isthmus_api_tests::{ADMIN, ApiServer};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

#[tokio::test]
async fn a_pool_of_a_cidr_alone_gets_its_defaults_from_the_schema() {
    let server = ApiServer::shared();
    let pools: Api<IPPool> = Api::all(server.client(ADMIN));
    let applied = json!({
        "apiVersion": "isthmus.dev/v1alpha1", "kind": "IPPool",
        "metadata": { "name": "defaults" }, "spec": { "cidr": "10.30.0.0/16" },
    });

    let apply = PatchParams::apply("test");
    let pool = pools.patch("defaults", &apply, &Patch::Apply(&applied)).await.expect("the pool is admitted");

    let expected = IPPoolSpec {
        cidr: "10.30.0.0/16".to_owned(),
        encapsulation: Encapsulation::CrossSubnet,
        nat_outgoing: true,
        ..Default::default()
    };
    assert_eq!(pool.spec, expected);
}

#[tokio::test]
async fn what_was_read_back_and_applied_again_changes_nothing() {
    let server = ApiServer::shared();
    let pools: Api<IPPool> = Api::all(server.client(ADMIN));
    let wanted = IPPool::new("twice", IPPoolSpec { cidr: "10.31.0.0/16".to_owned(), ..Default::default() });

    let apply = PatchParams::apply("test").force();
    let first = pools.patch("twice", &apply, &Patch::Apply(&wanted)).await.expect("the pool is admitted");
    let again = IPPool::new("twice", first.spec.clone());
    let second =
        pools.patch("twice", &apply, &Patch::Apply(&again)).await.expect("the pool is admitted again");

    assert_eq!(second.spec, first.spec);
    assert_eq!(second.metadata.generation, first.metadata.generation);
}

#[tokio::test]
async fn an_invitation_without_a_spec_lives_for_fifteen_minutes() {
    let server = ApiServer::shared();
    let invitations: Api<PeeringInvitation> = Api::all(server.client(ADMIN));
    let applied = json!({
        "apiVersion": "isthmus.dev/v1alpha1", "kind": "PeeringInvitation", "metadata": { "name": "bare" },
    });

    let invitation = invitations.patch("bare", &PatchParams::apply("test"), &Patch::Apply(&applied)).await;

    assert_eq!(invitation.expect("the invitation is admitted").spec.ttl, "15m");
}
