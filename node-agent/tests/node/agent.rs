// SPDX-License-Identifier: Apache-2.0
//! A node in a namespace: the real data plane process, the real engine and CNI server, the real kernel. The API server is
//! the one part that is not there: tests put objects into the store themselves.

use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use isthmus_api::v1alpha1::{IPBlock, IPBlockSpec, IPPool, IPPoolSpec};
use isthmus_cni::plugin::{self, Outcome};
use isthmus_cni::wire::Request;
use isthmus_intake::node::NodeObjects;
use isthmus_kernel::{Kernel, PodLinks};
use isthmus_node_agent::addresses::Ledger;
use isthmus_node_agent::chained::Registry;
use isthmus_node_agent::cni;
use isthmus_node_agent::conflist::Conflist;
use isthmus_node_agent::dataplane_link::DataplaneLink;
use isthmus_node_agent::engine::{Engine, Wiring};
use isthmus_node_agent::memory::Memory;
use isthmus_node_agent::metrics::Metrics;
use isthmus_node_agent::node::Node;
use isthmus_node_agent::notices::Notice;
use isthmus_node_agent::objects::{ObjectStore, Watch};
use isthmus_node_agent::status::Report;
use isthmus_testkit::{Lab, Namespace, within};
use k8s_openapi::api::core::v1::{Node as ApiNode, NodeAddress, NodeStatus};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(5);

/// A node of a test.
pub(crate) struct TestNode {
    pub(crate) name: &'static str,
    pub(crate) namespace: Namespace,
    pub(crate) store: Arc<ObjectStore>,
    pub(crate) directory: TempDir,
    pub(crate) report: watch::Receiver<Option<Report>>,
    pub(crate) notices: mpsc::UnboundedReceiver<Notice>,
    pub(crate) metrics: Arc<Metrics>,
    agent: JoinSet<()>,
    dataplane: Option<Child>,
}

impl TestNode {
    /// A node whose namespace is wired already; the data plane process and the agent start.
    pub(crate) fn start(name: &'static str, namespace: Namespace) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let ((_, report), (_, notices)) = (watch::channel(None), mpsc::unbounded_channel());
        let (store, metrics) = (Arc::new(ObjectStore::default()), Arc::new(Metrics::new()));
        let (agent, dataplane) = (JoinSet::new(), None);
        let mut node = Self { name, namespace, store, directory, report, notices, metrics, agent, dataplane };
        node.start_dataplane();
        node.start_agent();
        node
    }

    /// Starts the data plane process.
    pub(crate) fn start_dataplane(&mut self) {
        let (socket, state) = (self.path("dataplane.sock"), self.directory.path().display().to_string());
        let socket = socket.display().to_string();
        let arguments = ["--socket", &socket, "--state-dir", &state];
        let program = env!("CARGO_BIN_EXE_isthmus-dataplane");
        self.dataplane =
            Some(self.namespace.spawn(program, &arguments).expect("the data plane process starts"));
    }

    /// Starts an agent, as after a restart of its container.
    pub(crate) fn start_agent(&mut self) {
        let namespace = self.namespace.path();
        let links = PodLinks::open_in(&namespace).expect("links");
        let seen = links.list().expect("lists").into_iter().map(|(link, seen)| (link, seen.alias)).collect();
        let ledger = Ledger::open(&self.path("journal"), &seen);
        self.metrics = Arc::new(Metrics::new());
        let chained = Registry::open(&self.path("chained"), &links.indices().expect("lists"));
        let (node, advances) = Node::new(self.store.clone(), links, ledger, chained, self.metrics.clone());
        let listener = cni::listen(&self.path("run/cni.sock")).expect("the socket");
        let (report, reports) = watch::channel(None);
        self.report = reports;
        let (notices, told) = mpsc::unbounded_channel();
        self.notices = told;
        let engine = Engine::new(Wiring {
            name: self.name.parse().expect("a node name"),
            node: node.clone(),
            advances,
            dataplane: DataplaneLink::start(self.path("dataplane.sock")),
            open_kernel: Box::new(move |nft| Kernel::open_in(&namespace, nft)),
            conflist: Some(Conflist::new(self.directory.path().into(), "/nonexistent".into())),
            memory: Memory::open(self.path("intent"), &self.name.parse().expect("a node name")),
            report,
            notices,
        });
        self.agent.spawn(engine.run());
        self.agent.spawn(async move { drop(cni::serve(listener, node).await) });
    }

    /// From now on the API server keeps silent: an agent that starts has listed nothing.
    pub(crate) fn silence(&mut self) {
        self.store = Arc::new(ObjectStore::default());
    }

    /// Ends the agent where it stands.
    pub(crate) async fn kill_agent(&mut self) {
        self.agent.shutdown().await;
    }

    /// All watches have listed, with these objects.
    pub(crate) fn know(&self, objects: impl FnOnce(&mut NodeObjects)) {
        self.store.change(objects);
        Watch::ALL.into_iter().for_each(|watch| self.store.listed(watch));
    }

    /// One of the conditions that are reported now: its status, reason and message.
    pub(crate) fn condition(&self, kind: &str) -> Option<(Option<bool>, &'static str, String)> {
        let report = self.report.borrow();
        let wanted = report.as_ref()?.conditions().into_iter().find(|wanted| wanted.kind == kind)?;
        Some((wanted.status, wanted.reason, wanted.message.clone()))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// One CNI call through the plugin's code and the agent's socket: what is printed, as JSON.
    pub(crate) fn call(
        &self,
        command: &str,
        container: &str,
        pod: Option<&Namespace>,
        config: &str,
    ) -> (Outcome, Value) {
        let arguments = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={container}");
        self.call_with(&arguments, command, container, pod, config)
    }

    /// The same with other `CNI_ARGS`.
    pub(crate) fn call_with(
        &self,
        arguments: &str,
        command: &str,
        container: &str,
        pod: Option<&Namespace>,
        config: &str,
    ) -> (Outcome, Value) {
        let netns = pod.map(|pod| pod.path().display().to_string()).unwrap_or_default();
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", container),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &netns),
            ("CNI_ARGS", arguments),
        ];
        let env = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let request = Request { env, stdin: config.as_bytes().to_vec() };
        let outcome = plugin::run(&request, &self.path("run/cni.sock"));
        let printed = serde_json::from_slice(&outcome.stdout).unwrap_or(Value::Null);
        (outcome, printed)
    }

    /// ADD, as soon as the agent can: the addresses, IPv4 first.
    #[track_caller]
    pub(crate) fn add(&self, container: &str, pod: &Namespace) -> Vec<String> {
        let printed = within(SOON, || match self.call("ADD", container, Some(pod), CONFIG) {
            (outcome, printed) if outcome.exit_code == 0 => Ok(printed),
            (_, printed) => Err(printed),
        });
        let ips = printed["ips"].as_array().expect("addresses");
        let bare =
            |ip: &Value| ip["address"].as_str().and_then(|net| net.split('/').next()).map(str::to_owned);
        ips.iter().filter_map(bare).collect()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(mut dataplane) = self.dataplane.take() {
            let _ = dataplane.kill();
            let _ = dataplane.wait();
        }
    }
}

pub(crate) const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"isthmus","type":"isthmus-cni"}"#;

/// A Node object.
pub(crate) fn api_node(addresses: &[&str]) -> ApiNode {
    let address = |address: &&str| NodeAddress { type_: "InternalIP".into(), address: address.to_string() };
    let status =
        NodeStatus { addresses: Some(addresses.iter().map(address).collect()), ..Default::default() };
    ApiNode { status: Some(status), ..Default::default() }
}

/// Adds a pool and one block of it for each node.
pub(crate) fn add_pool(objects: &mut NodeObjects, name: &str, cidr: &str, blocks: &[(&str, &str)]) {
    let spec = IPPoolSpec { cidr: cidr.into(), nat_outgoing: true, ..Default::default() };
    objects.pools.insert(name.into(), IPPool::new(name, spec));
    for (block, node) in blocks {
        let spec =
            IPBlockSpec { pool: name.into(), cidr: block.to_string(), node: node.to_string(), pod: None };
        objects.blocks.insert(format!("{name}-{block}"), IPBlock::new(name, spec));
    }
}

/// Two nodes on one link.
pub(crate) fn two_nodes(lab: &Lab) -> [TestNode; 2] {
    let (one, two) = (lab.namespace("n1"), lab.namespace("n2"));
    lab.cable(
        (&one, "eth0", &["172.18.0.1/24", "fd18::1/64"]),
        (&two, "eth0", &["172.18.0.2/24", "fd18::2/64"]),
    );
    [TestNode::start("n1", one), TestNode::start("n2", two)]
}

/// One cluster of both nodes.
pub(crate) fn cluster(objects: &mut NodeObjects) {
    objects.nodes.insert("n1".into(), api_node(&["172.18.0.1", "fd18::1"]));
    objects.nodes.insert("n2".into(), api_node(&["172.18.0.2", "fd18::2"]));
    add_pool(objects, "four", "10.1.0.0/16", &[("10.1.0.0/29", "n1"), ("10.1.0.64/29", "n2")]);
    add_pool(objects, "six", "fd00:1::/64", &[("fd00:1::/125", "n1"), ("fd00:1::40/125", "n2")]);
}
