// SPDX-License-Identifier: Apache-2.0
//! The two clusters of the test: etcd, kube-apiserver and the operator as processes on the loopback.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isthmus_api::v1alpha1::{
    ClusterPeering, ClusterPeeringSpec, IPPool, IPPoolSpec, PeeringInvitation, PeeringInvitationSpec,
    SecretRef,
};
use isthmus_api_tests::{ADMIN, ApiServer};
use isthmus_mesh::identity::RootKey;
use isthmus_mesh::invitation::Token;
use isthmus_mesh::wire::Timings;
use isthmus_mesh_link::{Credentials, DialTarget, LinkError, Peer, PeerEventKind, dial};
use isthmus_testkit::within_async;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

const SYSTEM: &str = "isthmus-system";

/// Two clusters; west was invited by east.
pub(crate) struct Duo {
    pub(crate) east: Cluster,
    pub(crate) west: Cluster,
    token: Token,
    identity: String,
    endpoint: String,
}

/// One cluster.
pub(crate) struct Cluster {
    pub(crate) admin: Client,
    pub(crate) operator: Operator,
    _server: ApiServer,
    _folder: TempDir,
}

impl Duo {
    /// Starts both and joins them by an invitation.
    pub(crate) async fn start() -> Self {
        let [east, west] = ["east", "west"].map(|id| (id, free_port()));
        let endpoint = format!("127.0.0.1:{}", east.1);
        let pods = ["10.1.0.0/16", "10.2.0.0/16"];
        let (east, west) =
            tokio::join!(Cluster::start(east.0, east.1, pods[0]), Cluster::start(west.0, west.1, pods[1]));
        let (token, identity) = invite(&east, &endpoint, pods[1]).await;
        accept(&west, &token, &identity, &endpoint, pods[0]).await;
        let duo = Self { east, west, token, identity, endpoint };
        duo.wait_until_fresh().await;
        duo
    }

    /// Waits until both sides hear each other.
    pub(crate) async fn wait_until_fresh(&self) {
        for (cluster, peer) in [(&self.east, "west"), (&self.west, "east")] {
            let peerings: Api<ClusterPeering> = Api::all(cluster.admin.clone());
            within_async(Duration::from_secs(60), async || {
                let peering = peerings.get(peer).await.map_err(|error| error.to_string())?;
                let conditions = peering.status.map(|status| status.conditions).unwrap_or_default();
                let fresh = conditions.iter().any(|one| one.type_ == "Fresh" && one.status == "True");
                if fresh { Ok(()) } else { Err(format!("{conditions:?}")) }
            })
            .await;
        }
    }

    /// Shows west's token to east with a root key of somebody else; returns east's answer.
    pub(crate) async fn dial_as_a_stranger(&self) -> LinkError {
        let root = RootKey::generate(Timestamp::now()).expect("a root key");
        let credentials = Arc::new(Credentials::new(root, "south".parse().expect("an ID")));
        let (_local, heard) = watch::channel(Arc::default());
        let peer = Peer::new(self.identity.parse().expect("an identity"), 1, heard);
        let (events, mut incoming) = mpsc::channel(16);
        let target = DialTarget {
            endpoints: vec![self.endpoint.clone()],
            token: Some(self.token.clone()),
            timings: Timings::default(),
        };
        let dialing = tokio::spawn(dial(target, peer, credentials, events, || 0));
        let answer = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let event = incoming.recv().await.expect("an answer");
                if let PeerEventKind::Disconnected { reason } = event.kind {
                    return reason;
                }
            }
        });
        let reason = answer.await.expect("an answer in time");
        dialing.abort();
        reason
    }
}

/// An invitation by a cluster: its token and the cluster's identity.
async fn invite(cluster: &Cluster, endpoint: &str, peers_pods: &str) -> (Token, String) {
    let invitations: Api<PeeringInvitation> = Api::all(cluster.admin.clone());
    let spec = PeeringInvitationSpec {
        ttl: "15m".to_owned(),
        endpoints: vec![endpoint.to_owned()],
        allowed_cidrs: vec![peers_pods.to_owned()],
        allowed_namespaces: vec!["shop".to_owned()],
    };
    invitations
        .create(&PostParams::default(), &PeeringInvitation::new("west", spec))
        .await
        .expect("an invitation");
    let secret = within_async(Duration::from_secs(60), async || {
        let invitation = invitations.get("west").await.map_err(|error| error.to_string())?;
        invitation.status.clone().and_then(|status| status.manifest_secret).ok_or(format!("{invitation:?}"))
    })
    .await;
    let secrets: Api<Secret> = Api::namespaced(cluster.admin.clone(), SYSTEM);
    let data = secrets.get(&secret).await.expect("the Secret").data.expect("data");
    let manifest = String::from_utf8(data["manifest.yaml"].0.clone()).expect("text");
    let field = |name: &str| {
        let line = manifest.lines().find(|line| line.trim_start().starts_with(name)).expect("the field");
        line.split('"').nth(1).expect("its value").to_owned()
    };
    (field("token:").parse().expect("a token"), field("identity:"))
}

/// What applying the manifest does.
async fn accept(cluster: &Cluster, token: &Token, identity: &str, endpoint: &str, peers_pods: &str) {
    let secrets: Api<Secret> = Api::namespaced(cluster.admin.clone(), SYSTEM);
    let mut secret = Secret::default();
    secret.metadata.name = Some("isthmus-token-east".to_owned());
    secret.string_data = Some([("token".to_owned(), token.to_text().to_string())].into());
    secrets.create(&PostParams::default(), &secret).await.expect("the token");
    let spec = ClusterPeeringSpec {
        identity: Some(identity.to_owned()),
        endpoints: vec![endpoint.to_owned()],
        token_secret_ref: Some(SecretRef { name: "isthmus-token-east".to_owned() }),
        allowed_cidrs: vec![peers_pods.to_owned()],
        allowed_namespaces: vec!["shop".to_owned()],
    };
    let peerings: Api<ClusterPeering> = Api::all(cluster.admin.clone());
    peerings.create(&PostParams::default(), &ClusterPeering::new("east", spec)).await.expect("the peering");
}

impl Cluster {
    async fn start(id: &str, peering_port: u16, pods: &str) -> Self {
        let server = tokio::task::spawn_blocking(ApiServer::start).await.expect("a thread");
        let server = server.expect("an API server with Isthmus installed");
        let admin = server.client(ADMIN);
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = folder.path().join("kubeconfig");
        let token = operators_token(&admin).await;
        std::fs::write(&kubeconfig, kubeconfig_of(server.url(), &token).to_string()).expect("a kubeconfig");
        let operator = Operator::start(id, kubeconfig, peering_port, folder.path().join("log"));
        let pools: Api<IPPool> = Api::all(admin.clone());
        let spec = IPPoolSpec { cidr: pods.to_owned(), nat_outgoing: true, ..IPPoolSpec::default() };
        pools.create(&PostParams::default(), &IPPool::new("pods", spec)).await.expect("a pool");
        Self { admin, operator, _server: server, _folder: folder }
    }

    pub(crate) async fn create_namespace(&self, name: &str) {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        Api::all(self.admin.clone()).create(&PostParams::default(), &namespace).await.expect("a namespace");
    }

    pub(crate) async fn create_service(&self, namespace: &str, name: &str) {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }))
        .expect("a Service");
        let services: Api<Service> = Api::namespaced(self.admin.clone(), namespace);
        services.create(&PostParams::default(), &service).await.expect("a Service");
    }

    /// A StatefulSet that no controller looks after; its UID.
    pub(crate) async fn create_stateful_set(&self, namespace: &str, name: &str) -> String {
        let labels = json!({ "app": name });
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "serviceName": name,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "none"}]}},
            },
        }))
        .expect("a StatefulSet");
        let sets: Api<StatefulSet> = Api::namespaced(self.admin.clone(), namespace);
        let made = sets.create(&PostParams::default(), &set).await.expect("a StatefulSet");
        made.metadata.uid.expect("a UID")
    }

    /// One endpoint of west's pods for a Service, as its controller would write it.
    pub(crate) async fn write_slice(&self, namespace: &str, service: &str, ready: bool) {
        let slices: Api<EndpointSlice> = Api::namespaced(self.admin.clone(), namespace);
        let name = format!("{service}-abc");
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.2.0.7"], "conditions": {"ready": ready, "serving": ready, "terminating": false}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        });
        let params = PatchParams::apply("test").force();
        slices.patch(&name, &params, &Patch::Apply(&slice)).await.expect("a slice");
    }
}

/// The operator with the rights that its service account has.
async fn operators_token(admin: &Client) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), SYSTEM);
    let spec = Some(TokenRequestSpec::default());
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let answer = accounts.create_token_request("isthmus-operator", &PostParams::default(), &request).await;
    answer.expect("a token").status.and_then(|status| status.token).expect("a token")
}

fn kubeconfig_of(url: &str, token: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "operator"}}],
        "clusters": [{"name": "test", "cluster": {"server": url, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "operator", "user": {"token": token}}],
    })
}

/// An operator as a process.
pub(crate) struct Operator {
    command: Mutex<Command>,
    running: Mutex<Option<Child>>,
    log: PathBuf,
}

impl Operator {
    fn start(id: &str, kubeconfig: PathBuf, peering_port: u16, log: PathBuf) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-operator"));
        command
            .env("KUBECONFIG", kubeconfig)
            .env_remove("KUBERNETES_SERVICE_HOST")
            .args(["--pod-name", "operator-0", "--host-ip", "192.0.2.1", "--cluster-id", id])
            .args(["--log", "info,kube_client=error"])
            .args(["--peering-address", &format!("127.0.0.1:{peering_port}")])
            .args(["--health-address", &format!("127.0.0.1:{}", free_port())]);
        let operator = Self { command: Mutex::new(command), running: Mutex::new(None), log };
        operator.restart();
        operator
    }

    /// Ends the process at once, as a lost node would.
    pub(crate) fn stop(&self) {
        if let Some(mut child) = self.running.lock().expect("no panic").take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends the process at once and starts another.
    pub(crate) fn restart(&self) {
        self.stop();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("a log");
        let mut command = self.command.lock().expect("no panic");
        let child = command.stdout(log).stderr(Stdio::inherit()).spawn().expect("the operator");
        *self.running.lock().expect("no panic") = Some(child);
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on the loopback");
    listener.local_addr().expect("its address").port()
}
