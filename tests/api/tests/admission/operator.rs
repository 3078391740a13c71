// SPDX-License-Identifier: Apache-2.0

use std::time::Duration;

use isthmus_api::v1alpha1::{IPPool, IPPoolSpec};
use isthmus_api_tests::{ADMIN, ApiServer};
use isthmus_testkit::within_async;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::agents::token;

/// Whether a service account of ours may do something: `verb group/resource[/subresource] [namespace]`.
async fn may(server: &ApiServer, account: &str, deed: &str) -> bool {
    let client = server.client(&token(&server.client(ADMIN), account, None).await);
    let mut words = deed.split_whitespace();
    let verb = words.next().map(str::to_owned);
    let mut parts = words.next().unwrap_or_default().split('/').map(str::to_owned);
    let attributes = ResourceAttributes {
        verb,
        group: parts.next(),
        resource: parts.next(),
        subresource: parts.next(),
        namespace: words.next().map(str::to_owned),
        name: words.next().map(str::to_owned),
        ..Default::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..Default::default() };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client);
    reviews
        .create(&PostParams::default(), &review)
        .await
        .expect("a review")
        .status
        .is_some_and(|status| status.allowed)
}

#[tokio::test]
async fn the_operator_may_do_what_it_does_and_no_more() {
    let server = ApiServer::shared();
    let does = [
        "patch isthmus.dev/ipblocks",
        "watch apps/statefulsets",
        "patch isthmus.dev/ippools/status",
        "create isthmus.dev/clusterpeerings",
        "patch multicluster.x-k8s.io/serviceimports",
        "patch multicluster.x-k8s.io/serviceexports/status",
        "create /services shop",
        "create discovery.k8s.io/endpointslices shop",
        "get /secrets isthmus-system",
        "update coordination.k8s.io/leases isthmus-system",
        "patch /configmaps kube-system coredns",
    ];
    let does_not = [
        "list /secrets",
        "patch apps/statefulsets",
        "get /secrets shop",
        "patch isthmus.dev/ippools",
        "delete isthmus.dev/clusterpeerings",
        "patch isthmus.dev/nodenetworks/status",
        "patch /configmaps kube-system kube-proxy",
        "list /pods",
        "create /pods isthmus-system",
    ];

    for deed in does {
        assert!(may(&server, "isthmus-operator", deed).await, "may not {deed}");
    }
    for deed in does_not {
        assert!(!may(&server, "isthmus-operator", deed).await, "may {deed}");
    }
}

#[tokio::test]
async fn a_status_write_of_the_operator_leaves_the_spec_alone() {
    let server = ApiServer::shared();
    let admin = server.client(ADMIN);
    let pools: Api<IPPool> = Api::all(admin.clone());
    let spec = IPPoolSpec { cidr: "10.40.0.0/16".to_owned(), ..Default::default() };
    pools.create(&PostParams::default(), &IPPool::new("status", spec)).await.expect("a pool");
    let operator: Api<IPPool> = Api::all(server.client(&token(&admin, "isthmus-operator", None).await));

    let status = json!({
        "apiVersion": "isthmus.dev/v1alpha1", "kind": "IPPool",
        "spec": { "cidr": "10.41.0.0/16", "disabled": true },
        "status": { "observedGeneration": 1, "blocks": 3, "allocated": 70, "capacity": "65536" },
    });
    let written = operator
        .patch_status("status", &PatchParams::apply("isthmus-operator"), &Patch::Apply(&status))
        .await;

    let pool = written.expect("the status is admitted");
    assert_eq!(pool.spec.cidr, "10.40.0.0/16");
    assert_eq!(pool.status.expect("a status").blocks, 3);
}

/// What the server says to an operator that applies an object in namespace default, without keeping it.
async fn applied<K>(api: &Api<K>, name: &str, object: serde_json::Value) -> Result<(), String>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let apply = PatchParams { dry_run: true, ..PatchParams::apply("isthmus-operator").force() };
    api.patch(name, &apply, &Patch::Apply(object)).await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn the_operator_writes_no_service_but_derived_ones() {
    let server = ApiServer::shared();
    let client = server.client(&token(&server.client(ADMIN), "isthmus-operator", None).await);
    let services: Api<Service> = Api::namespaced(client, "default");
    let service = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "ports": [{ "port": 80 }] },
        })
    };

    let refusal = within_async(Duration::from_secs(10), async || {
        match applied(&services, "web", service("web")).await {
            Err(refusal) => Ok(refusal),
            Ok(()) => Err("the operator wrote Service web"),
        }
    });

    let refusal = refusal.await;
    assert!(refusal.contains("only Services named derived-*"), "{refusal}");
    assert_eq!(applied(&services, "derived-0123456789", service("derived-0123456789")).await, Ok(()));
}

#[tokio::test]
async fn the_operator_writes_no_endpoint_slice_but_mirrored_ones() {
    let server = ApiServer::shared();
    let admin = server.client(ADMIN);
    let client = server.client(&token(&admin, "isthmus-operator", None).await);
    let slices: Api<EndpointSlice> = Api::namespaced(client, "default");
    let slice = |name: &str, manager: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
            "metadata": { "name": name, "labels": { "endpointslice.kubernetes.io/managed-by": manager } },
        })
    };
    let foreign =
        serde_json::from_value(slice("foreign", "endpointslice-controller.k8s.io")).expect("a slice");
    let all: Api<EndpointSlice> = Api::namespaced(admin, "default");
    all.create(&PostParams::default(), &foreign).await.expect("the slice of another controller");

    // Neither a new one under another's name nor another's under ours.
    for (name, manager) in [("new", "endpointslice-controller.k8s.io"), ("foreign", "mirror.isthmus.dev")] {
        let refusal = within_async(Duration::from_secs(10), async || {
            match applied(&slices, name, slice(name, manager)).await {
                Err(refusal) => Ok(refusal),
                Ok(()) => Err(format!("the operator wrote EndpointSlice {name}")),
            }
        });
        let refusal = refusal.await;
        assert!(refusal.contains("only EndpointSlices labelled"), "{refusal}");
    }
    assert_eq!(applied(&slices, "mirrored", slice("mirrored", "mirror.isthmus.dev")).await, Ok(()));
}
