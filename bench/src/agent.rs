// SPDX-License-Identifier: Apache-2.0
//! A node's agent without Kubernetes: the real engine, CNI server and kernel; what the API server would tell is told here.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use isthmus_api::v1alpha1::{IPBlock, IPBlockSpec, IPPool, IPPoolSpec};
use isthmus_intake::node::NodeObjects;
use isthmus_kernel::{Kernel, PodLinks};
use isthmus_node_agent::addresses::Ledger;
use isthmus_node_agent::chained::Registry;
use isthmus_node_agent::cni;
use isthmus_node_agent::dataplane_link::DataplaneLink;
use isthmus_node_agent::engine::{Engine, Wiring};
use isthmus_node_agent::memory::Memory;
use isthmus_node_agent::metrics::Metrics;
use isthmus_node_agent::node::Node;
use isthmus_node_agent::objects::{ObjectStore, Watch};
use k8s_openapi::api::core::v1::{Node as ApiNode, NodeAddress, NodeStatus};
use tokio::sync::{mpsc, watch};

/// This node's name and address.
const NODE: &str = "n1";
pub(crate) const NODE_ADDRESS: &str = "172.18.0.1";

/// Where the agent listens for the plugin, below its directory.
pub(crate) const CNI_SOCKET: &str = "run/cni.sock";
/// Where it finds the data plane process.
pub(crate) const DATAPLANE_SOCKET: &str = "dataplane.sock";

/// Runs in the calling process' network namespace until it is killed.
pub(crate) fn run(directory: &Path, dual_stack: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(directory, dual_stack))
}

async fn serve(directory: &Path, dual_stack: bool) -> Result<()> {
    let store = Arc::new(ObjectStore::default());
    let links = PodLinks::open().context("cannot talk to the kernel about links")?;
    let ledger = Ledger::open(&directory.join("journal"), &Default::default());
    let chained = Registry::open(&directory.join("chained"), &Default::default());
    let (node, advances) = Node::new(store.clone(), links, ledger, chained, Arc::new(Metrics::new()));
    let listener = cni::listen(&directory.join(CNI_SOCKET))?;
    let (report, _reports) = watch::channel(None);
    let (notices, _notices) = mpsc::unbounded_channel();
    let engine = Engine::new(Wiring {
        name: NODE.parse()?,
        node: node.clone(),
        advances,
        dataplane: DataplaneLink::start(directory.join(DATAPLANE_SOCKET)),
        open_kernel: Box::new(Kernel::open),
        conflist: None,
        memory: Memory::open(directory.join("intent"), &NODE.parse()?),
        report,
        notices,
    });
    store.change(|objects| know(objects, dual_stack));
    Watch::ALL.into_iter().for_each(|watch| store.listed(watch));
    // As the agent does.
    let mut serving = tokio::spawn(cni::serve(listener, node));
    let mut running = tokio::spawn(engine.run());
    tokio::select! {
        served = &mut serving => served?.context("the CNI socket failed"),
        ended = &mut running => Ok(ended?),
    }
}

fn know(objects: &mut NodeObjects, dual_stack: bool) {
    let address = NodeAddress { type_: "InternalIP".into(), address: NODE_ADDRESS.into() };
    let status = NodeStatus { addresses: Some(vec![address]), ..Default::default() };
    objects.nodes.insert(NODE.into(), ApiNode { status: Some(status), ..Default::default() });
    add_pool(objects, "four", "10.1.0.0/16", "10.1.0.0/22");
    if dual_stack {
        add_pool(objects, "six", "fd00:1::/64", "fd00:1::/118");
    }
}

fn add_pool(objects: &mut NodeObjects, name: &str, cidr: &str, block: &str) {
    let spec = IPPoolSpec { cidr: cidr.into(), nat_outgoing: true, ..Default::default() };
    objects.pools.insert(name.into(), IPPool::new(name, spec));
    let spec = IPBlockSpec { pool: name.into(), cidr: block.into(), node: NODE.into(), pod: None };
    objects.blocks.insert(format!("{name}-block"), IPBlock::new(name, spec));
}
