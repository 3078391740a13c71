// SPDX-License-Identifier: Apache-2.0
//! A node's agent without Kubernetes, for tests to kill: the real engine, CNI server, ledger and kernel. What the API server
//! would tell is told here.
//!
//! `netns-agent dataplane DIR` is the data plane process, `netns-agent agent DIR` the agent. Both stay in the network
//! namespace that they are started in, and end with their standard input. A line on it starts the agent, which prints a line
//! once a pod can be added; after that, each line is answered by what the ledger holds.

use std::io::{Lines, StdinLock, Write, stdin, stdout};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use isthmus_api::v1alpha1::{IPBlock, IPBlockSpec, IPPool, IPPoolSpec};
use isthmus_intake::node::NodeObjects;
use isthmus_kernel::{Kernel, PodLinks};
use isthmus_node_agent::addresses::Ledger;
use isthmus_node_agent::chained::Registry;
use isthmus_node_agent::dataplane_link::DataplaneLink;
use isthmus_node_agent::engine::{Engine, Wiring};
use isthmus_node_agent::memory::Memory;
use isthmus_node_agent::metrics::Metrics;
use isthmus_node_agent::node::Node;
use isthmus_node_agent::objects::{ObjectStore, Watch};
use isthmus_node_agent::{cni, logs};
use k8s_openapi::api::core::v1::{Node as ApiNode, NodeAddress, NodeStatus};
use serde_json::json;
use tokio::sync::{mpsc, watch};

const NODE: &str = "n1";
const NODE_ADDRESS: &str = "172.18.0.1";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    logs::start(&std::env::var("ISTHMUS_LOG").unwrap_or_else(|_| "off".to_owned()))?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["dataplane", directory] => dataplane(Path::new(directory)),
        ["agent", directory] => agent(Path::new(directory)),
        _ => bail!("usage: netns-agent dataplane|agent DIR"),
    }
}

fn dataplane(directory: &Path) -> Result<()> {
    std::thread::spawn(|| {
        stdin().lines().for_each(drop);
        std::process::exit(0);
    });
    let (socket, state_dir) = (directory.join("dataplane.sock"), directory.join("state"));
    let wireguard = isthmus_dataplane::WireGuardChoice::Userspace;
    let lanes = isthmus_dataplane::LaneChoice::default();
    Ok(isthmus_dataplane::run(&isthmus_dataplane::Options { socket, state_dir, wireguard, lanes })?)
}

fn agent(directory: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut lines = stdin().lines();
    lines.next().context("nobody starts the agent")??;
    let node = runtime.block_on(start(directory))?;
    answer(&node, lines)
}

/// As `isthmus-agent run`, without what needs the API server; returns once a pod can be added.
async fn start(directory: &Path) -> Result<Arc<Node>> {
    let state = directory.join("state");
    let store = Arc::new(ObjectStore::default());
    let links = PodLinks::open().context("cannot talk to the kernel about links")?;
    let seen = links.list()?.into_iter().map(|(link, seen)| (link, seen.alias)).collect();
    let ledger = Ledger::open(&state.join("journal").join("addresses"), &seen);
    let chained = Registry::open(&state.join("journal").join("chained"), &links.indices()?);
    let (node, advances) = Node::new(store.clone(), links, ledger, chained, Arc::new(Metrics::new()));
    let listener = cni::listen(&directory.join("run").join("cni.sock"))?;
    let (report, mut reports) = watch::channel(None);
    let (notices, _) = mpsc::unbounded_channel();
    let engine = Engine::new(Wiring {
        name: NODE.parse()?,
        node: node.clone(),
        advances,
        dataplane: DataplaneLink::start(directory.join("dataplane.sock")),
        open_kernel: Box::new(Kernel::open),
        conflist: None,
        memory: Memory::open(state.join("intent"), &NODE.parse()?),
        report,
        notices,
    });
    let wide = directory.join("wide").exists();
    store.change(|objects| know(objects, wide));
    Watch::ALL.into_iter().for_each(|watch| store.listed(watch));
    tokio::spawn(engine.run());
    tokio::spawn(cni::serve(listener, node.clone()));
    while node.view().blocked.is_some() {
        reports.changed().await?;
    }
    Ok(node)
}

fn answer(node: &Node, lines: Lines<StdinLock<'static>>) -> Result<()> {
    println!("ready");
    for line in lines {
        line?;
        let ledger = node.ledger();
        let attachments = ledger.attachments().iter();
        let attachments: Vec<_> = attachments.map(|(key, to)| json!({ "key": key, "to": to })).collect();
        let in_use: usize = ledger.usage().values().sum();
        drop(ledger);
        println!("{}", json!({ "attachments": attachments, "in_use": in_use }));
        stdout().flush()?;
    }
    Ok(())
}

/// Small blocks, so that a leaked address is missed soon; a file `wide` asks for larger ones.
fn know(objects: &mut NodeObjects, wide: bool) {
    let address = NodeAddress { type_: "InternalIP".into(), address: NODE_ADDRESS.into() };
    let status = NodeStatus { addresses: Some(vec![address]), ..Default::default() };
    objects.nodes.insert(NODE.into(), ApiNode { status: Some(status), ..Default::default() });
    let (four, six) = if wide { ("10.1.0.0/26", "fd00:1::/122") } else { ("10.1.0.0/29", "fd00:1::/125") };
    add_pool(objects, "four", "10.1.0.0/16", four);
    add_pool(objects, "six", "fd00:1::/64", six);
}

fn add_pool(objects: &mut NodeObjects, name: &str, cidr: &str, block: &str) {
    let spec = IPPoolSpec { cidr: cidr.into(), nat_outgoing: true, ..Default::default() };
    objects.pools.insert(name.into(), IPPool::new(name, spec));
    let spec = IPBlockSpec { pool: name.into(), cidr: block.into(), node: NODE.into(), pod: None };
    objects.blocks.insert(format!("{name}-block"), IPBlock::new(name, spec));
}
