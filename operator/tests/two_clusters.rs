// SPDX-License-Identifier: Apache-2.0
//! Two real API servers with one operator each, peered: what the operators write, and how soon.
//!
//! No node runs here: Nodes, EndpointSlices and what agents report are written by the tests.

mod duo;

use std::time::{Duration, Instant};

use duo::{Cluster, Duo};
use isthmus_api::mcs::{ServiceExport, ServiceExportSpec, ServiceImport};
use isthmus_api::v1alpha1::{ClusterPeering, IPBlock, IPPool, IPPoolSpec, NodeNetwork};
use isthmus_mesh::wire::RefusedReason;
use isthmus_mesh_link::LinkError;
use isthmus_testkit::within_async;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// What the issue allows from one cluster to the other.
const SOON: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_operators_do_what_their_clusters_objects_say() {
    let duo = Duo::start().await;
    a_node_gets_its_blocks_and_they_go_with_it(&duo.east).await;
    an_address_that_is_kept_follows_its_pod_and_goes_with_the_stateful_set(&duo.east).await;
    a_token_that_was_redeemed_is_refused_to_whoever_shows_it_again(&duo).await;
    an_export_is_imported_soon(&duo).await;
    an_endpoint_that_becomes_unready_is_so_in_the_other_cluster_soon(&duo).await;
    an_import_survives_a_restart_while_the_peer_is_away(&duo).await;
    unexporting_removes_everything_soon(&duo).await;
    the_end_of_a_peering_is_told_to_the_other_side(&duo).await;
}

async fn an_address_that_is_kept_follows_its_pod_and_goes_with_the_stateful_set(east: &Cluster) {
    east.create_namespace("db").await;
    let nodes: Api<Node> = Api::all(east.admin.clone());
    for name in ["one", "two"] {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        nodes.create(&PostParams::default(), &node).await.expect("a node");
    }
    let range = "10.9.0.0/24".to_owned();
    let spec = IPPoolSpec { cidr: range.clone(), on_request: vec![range], ..IPPoolSpec::default() };
    let pools: Api<IPPool> = Api::all(east.admin.clone());
    pools.create(&PostParams::default(), &IPPool::new("fixed", spec)).await.expect("a pool");
    let set = east.create_stateful_set("db", "pg").await;
    let asks = |uid: &str| json!([{ "namespace": "db", "name": "pg-0", "uid": uid, "statefulSet": set, "keepFrom": ["fixed"] }]);
    let unused = json!([{ "cidr": "10.9.0.0/32", "allocated": 0 }]);

    tell(east, "one", asks("1"), json!([])).await;
    block_is(east, Some(("one", "1"))).await;
    tell(east, "two", asks("2"), json!([])).await;
    tell(east, "one", json!([]), json!([{ "cidr": "10.9.0.0/32", "allocated": 1 }])).await;
    block_is(east, Some(("one", "1"))).await;
    tell(east, "one", json!([]), unused.clone()).await;
    block_is(east, Some(("two", "2"))).await;
    tell(east, "two", json!([]), unused).await;
    block_is(east, Some(("two", "2"))).await;

    let sets: Api<StatefulSet> = Api::namespaced(east.admin.clone(), "db");
    sets.delete("pg", &DeleteParams::default()).await.expect("the StatefulSet goes");
    block_is(east, None).await;
    for name in ["one", "two"] {
        nodes.delete(name, &DeleteParams::default()).await.expect("the node goes");
    }
    pools.delete("fixed", &DeleteParams::default()).await.expect("the pool goes");
}

/// What the agent of a node tells of pods that ask and of its blocks.
async fn tell(cluster: &Cluster, node: &str, requests: Value, blocks: Value) {
    let networks: Api<NodeNetwork> = Api::all(cluster.admin.clone());
    within_async(SOON * 5, async || networks.get(node).await.map(drop)).await;
    let object = json!({
        "apiVersion": "isthmus.dev/v1alpha1",
        "kind": "NodeNetwork",
        "metadata": { "name": node },
        "status": { "requests": requests, "blocks": blocks },
    });
    let params = PatchParams::apply("test").force();
    networks.patch_status(node, &params, &Patch::Apply(&object)).await.expect("a status");
}

/// The block of 10.9.0.0 is at this node, for the pod with this UID; or there is none.
async fn block_is(cluster: &Cluster, wanted: Option<(&str, &str)>) {
    let blocks: Api<IPBlock> = Api::all(cluster.admin.clone());
    within_async(SOON * 10, async || {
        let block = blocks.get_opt("fixed-10-9-0-0-32").await.map_err(|error| error.to_string())?;
        let seen = block.and_then(|block| Some((block.spec.node, block.spec.pod?.uid)));
        let same = seen.as_ref().map(|(node, uid)| (node.as_str(), uid.as_str())) == wanted;
        if same { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

async fn a_node_gets_its_blocks_and_they_go_with_it(east: &Cluster) {
    let nodes: Api<Node> = Api::all(east.admin.clone());
    let mut node = Node::default();
    node.metadata.name = Some("spare".to_owned());
    nodes.create(&PostParams::default(), &node).await.expect("a node");
    let blocks: Api<IPBlock> = Api::all(east.admin.clone());
    let held = async || {
        let list = blocks.list(&ListParams::default()).await?;
        Ok::<_, kube::Error>(list.items.into_iter().filter(|block| block.spec.node == "spare").count())
    };
    let count = async |wanted: usize| {
        within_async(SOON * 5, async || match held().await {
            Ok(count) if count == wanted => Ok(()),
            seen => Err(format!("{seen:?} blocks")),
        })
        .await;
    };
    count(1).await;
    let networks: Api<NodeNetwork> = Api::all(east.admin.clone());
    let network = within_async(SOON, async || networks.get("spare").await).await;
    assert_eq!(network.owner_references()[0].kind, "Node");
    nodes.delete("spare", &DeleteParams::default()).await.expect("the node goes");
    count(0).await;
}

async fn a_token_that_was_redeemed_is_refused_to_whoever_shows_it_again(duo: &Duo) {
    let error = duo.dial_as_a_stranger().await;
    let LinkError::Refused { reason, message } = error else { panic!("{error}") };
    assert_eq!(reason, RefusedReason::TokenUsed);
    assert!(message.contains("ask for a new invitation"), "{message}");
}

async fn an_export_is_imported_soon(duo: &Duo) {
    for cluster in [&duo.east, &duo.west] {
        cluster.create_namespace("shop").await;
    }
    duo.west.create_service("shop", "web").await;
    duo.west.write_slice("shop", "web", true).await;
    let exports: Api<ServiceExport> = Api::namespaced(duo.west.admin.clone(), "shop");
    let export = ServiceExport::new("web", ServiceExportSpec::default());
    exports.create(&PostParams::default(), &export).await.expect("an export");
    let start = Instant::now();
    let imports: Api<ServiceImport> = Api::namespaced(duo.east.admin.clone(), "shop");
    let import = within_async(SOON * 5, async || match imports.get_opt("web").await {
        Ok(Some(import)) if !import.spec.ips.is_empty() => Ok(import),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    let took = start.elapsed();
    assert!(took < SOON, "imported after {took:?}");
    assert_eq!(import.spec.ips.len(), import.spec.ip_families.len());
    let derived = &import.annotations()["multicluster.kubernetes.io/derived-service"];
    let services: Api<Service> = Api::namespaced(duo.east.admin.clone(), "shop");
    let service = services.get(derived).await.expect("the derived Service");
    let addresses = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    assert!(addresses.contains(&import.spec.ips[0]), "{addresses:?}");
    wait_for_the_endpoint(&duo.east).await;
    let took = start.elapsed();
    assert!(took < SOON, "endpoints after {took:?}");
}

async fn wait_for_the_endpoint(cluster: &Cluster) {
    within_async(SOON * 5, async || {
        let ready = ready_endpoints(cluster).await;
        if ready == ["10.2.0.7"] { Ok(()) } else { Err(format!("{ready:?} are ready")) }
    })
    .await;
}

/// Addresses of the endpoints that the other cluster's export has here and that are ready.
async fn ready_endpoints(cluster: &Cluster) -> Vec<String> {
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.admin.clone(), "shop");
    let mirrored = ListParams::default().labels("multicluster.kubernetes.io/source-cluster=west");
    let slices = slices.list(&mirrored).await.expect("slices").items;
    let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default());
    let ready = |one: &k8s_openapi::api::discovery::v1::Endpoint| {
        one.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
    };
    endpoints.filter(ready).flat_map(|one| one.addresses).collect()
}

async fn an_endpoint_that_becomes_unready_is_so_in_the_other_cluster_soon(duo: &Duo) {
    duo.west.write_slice("shop", "web", false).await;
    let start = Instant::now();
    within_async(SOON * 5, async || {
        let ready = ready_endpoints(&duo.east).await;
        if ready.is_empty() { Ok(()) } else { Err(format!("{ready:?} are ready")) }
    })
    .await;
    let took = start.elapsed();
    assert!(took < SOON, "unready after {took:?}");
    duo.west.write_slice("shop", "web", true).await;
    wait_for_the_endpoint(&duo.east).await;
}

async fn an_import_survives_a_restart_while_the_peer_is_away(duo: &Duo) {
    duo.west.operator.stop();
    duo.east.operator.restart();
    let peerings: Api<ClusterPeering> = Api::all(duo.east.admin.clone());
    let silent = within_async(Duration::from_secs(60), async || {
        let peering = peerings.get("west").await.map_err(|error| error.to_string())?;
        let conditions = peering.status.map(|status| status.conditions).unwrap_or_default();
        let fresh = conditions.into_iter().find(|one| one.type_ == "Fresh").ok_or("no condition")?;
        if fresh.status == "False" { Ok(fresh.message) } else { Err(format!("{fresh:?}")) }
    })
    .await;
    assert!(silent.contains("what it announced stays"), "{silent}");
    assert_eq!(ready_endpoints(&duo.east).await, ["10.2.0.7"]);
    duo.west.operator.restart();
    duo.wait_until_fresh().await;
    assert_eq!(ready_endpoints(&duo.east).await, ["10.2.0.7"]);
}

async fn unexporting_removes_everything_soon(duo: &Duo) {
    let exports: Api<ServiceExport> = Api::namespaced(duo.west.admin.clone(), "shop");
    exports.delete("web", &DeleteParams::default()).await.expect("the export goes");
    let start = Instant::now();
    within_async(SOON * 5, async || {
        let left = leftovers(&duo.east).await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are left")) }
    })
    .await;
    let took = start.elapsed();
    assert!(took < SOON, "gone after {took:?}");
}

/// What of an import is still there.
async fn leftovers(cluster: &Cluster) -> Vec<String> {
    let ours = ListParams::default().labels("isthmus.dev/managed-by=isthmus-operator");
    let client = || cluster.admin.clone();
    let imports = Api::<ServiceImport>::namespaced(client(), "shop").list(&ours).await.expect("imports");
    let services = Api::<Service>::namespaced(client(), "shop").list(&ours).await.expect("services");
    let slices = Api::<EndpointSlice>::namespaced(client(), "shop").list(&ours).await.expect("slices");
    let names = imports.items.iter().map(ResourceExt::name_any);
    names
        .chain(services.items.iter().map(ResourceExt::name_any))
        .chain(slices.items.iter().map(ResourceExt::name_any))
        .collect()
}

async fn the_end_of_a_peering_is_told_to_the_other_side(duo: &Duo) {
    let east: Api<ClusterPeering> = Api::all(duo.east.admin.clone());
    east.delete("west", &DeleteParams::default()).await.expect("the peering goes");
    let west: Api<ClusterPeering> = Api::all(duo.west.admin.clone());
    let told = within_async(Duration::from_secs(30), async || {
        let peering = west.get("east").await.map_err(|error| error.to_string())?;
        let conditions = peering.status.map(|status| status.conditions).unwrap_or_default();
        let connected = conditions.into_iter().find(|one| one.type_ == "Connected").ok_or("no condition")?;
        if connected.reason == "TokenUsed" { Ok(connected.message) } else { Err(format!("{connected:?}")) }
    })
    .await;
    assert!(told.contains("used before"), "{told}");
    // A change of the spec wakes it up again; nothing else was lost.
    let patch = json!({"spec": {"allowedNamespaces": ["shop", "bank"]}});
    west.patch("east", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("still there");
}
