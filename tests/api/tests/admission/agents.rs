// SPDX-License-Identifier: Apache-2.0

use std::time::Duration;

use isthmus_api::v1alpha1::{NodeNetwork, NodeNetworkSpec};
use isthmus_api_tests::{ADMIN, ApiServer};
use isthmus_testkit::within_async;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, Secret, ServiceAccount};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The agent's pod of a node, and a client with the token that the kubelet would mount into it.
async fn agent_of(server: &ApiServer, node: &str) -> Client {
    let admin = server.client(ADMIN);
    let nodes: Api<Node> = Api::all(admin.clone());
    nodes
        .create(&PostParams::default(), &object(json!({ "metadata": { "name": node } })))
        .await
        .expect("a node");
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "isthmus-system");
    let pod = object::<Pod>(json!({
        "metadata": { "name": format!("agent-{node}") },
        "spec": {
            "nodeName": node, "serviceAccountName": "isthmus-agent",
            "containers": [{ "name": "agent", "image": "isthmus.dev/isthmus:dev" }],
        },
    }));
    let pod = pods.create(&PostParams::default(), &pod).await.expect("the agent's pod");
    let bound = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    };
    server.client(&token(&admin, "isthmus-agent", Some(bound)).await)
}

/// A token of a service account of ours.
pub(super) async fn token(admin: &Client, account: &str, bound: Option<BoundObjectReference>) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "isthmus-system");
    let spec = TokenRequestSpec { bound_object_ref: bound, ..Default::default() };
    let request = TokenRequest { spec: Some(spec), ..Default::default() };
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let status = answer.expect("an answer").status.expect("a status");
    status.token.expect("a token")
}

async fn node_network(server: &ApiServer, node: &str) {
    let networks: Api<NodeNetwork> = Api::all(server.client(ADMIN));
    networks
        .create(&PostParams::default(), &NodeNetwork::new(node, NodeNetworkSpec::default()))
        .await
        .expect("a NodeNetwork");
}

/// Tries to write the status of a node as the agent does; returns the server's refusal.
async fn write_status(client: &Client, node: &str) -> Result<(), String> {
    let networks: Api<NodeNetwork> = Api::all(client.clone());
    let status = json!({
        "apiVersion": "isthmus.dev/v1alpha1", "kind": "NodeNetwork", "status": { "vxlanMac": "02:00:00:00:00:01" },
    });
    let patch = PatchParams::apply("isthmus-agent").force();
    let written = networks.patch_status(node, &patch, &Patch::Apply(&status)).await;
    written.map(drop).map_err(|error| error.to_string())
}

/// What the server says to a write that must not be. It learns of a new policy a moment after that was applied.
async fn refusal_of_a_write(agent: &Client, node: &str) -> String {
    within_async(Duration::from_secs(10), async || match write_status(agent, node).await {
        Err(refusal) => Ok(refusal),
        Ok(()) => Err(format!("the status of {node} was written")),
    })
    .await
}

#[tokio::test]
async fn an_agent_writes_the_status_of_its_own_node_and_of_no_other() {
    let server = ApiServer::shared();
    let agent = agent_of(&server, "agents-a").await;
    node_network(&server, "agents-a").await;
    node_network(&server, "agents-b").await;

    let own = write_status(&agent, "agents-a").await;
    let other = refusal_of_a_write(&agent, "agents-b").await;

    assert_eq!(own, Ok(()));
    let expected = "the agent of node agents-a may write only the NodeNetwork of that name, not agents-b";
    assert!(other.contains(expected), "{other}");
}

#[tokio::test]
async fn an_agents_token_that_names_no_node_writes_nothing() {
    let server = ApiServer::shared();
    node_network(&server, "agents-c").await;
    let agent = server.client(&token(&server.client(ADMIN), "isthmus-agent", None).await);

    let refusal = refusal_of_a_write(&agent, "agents-c").await;

    assert!(refusal.contains("use the token that the kubelet mounts"), "{refusal}");
}

#[tokio::test]
async fn an_agent_reads_no_secrets_and_changes_no_spec() {
    let server = ApiServer::shared();
    let agent = agent_of(&server, "agents-d").await;
    node_network(&server, "agents-d").await;

    let secrets: Api<Secret> = Api::namespaced(agent.clone(), "isthmus-system");
    let read = secrets.list(&ListParams::default()).await.map(drop);
    let networks: Api<NodeNetwork> = Api::all(agent);
    let labelled = json!({ "metadata": { "labels": { "changed": "true" } } });
    let changed =
        networks.patch("agents-d", &PatchParams::default(), &Patch::Merge(labelled)).await.map(drop);

    for refused in [read, changed] {
        let refusal = refused.expect_err("forbidden").to_string();
        assert!(refusal.contains("is forbidden"), "{refusal}");
    }
}

fn object<T: DeserializeOwned + Serialize>(json: Value) -> T {
    serde_json::from_value(json).expect("an object")
}
