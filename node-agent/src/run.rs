// SPDX-License-Identifier: Apache-2.0
//! `isthmus-agent run`: wires the parts together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use isthmus_kernel::{Kernel, PodLinks};
use isthmus_model::ids::NodeName;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::addresses::Ledger;
use crate::chained::Registry;
use crate::conflist::Conflist;
use crate::dataplane_link::DataplaneLink;
use crate::engine::{Engine, Wiring};
use crate::memory::Memory;
use crate::metrics::{self, Metrics};
use crate::node::Node;
use crate::objects::ObjectStore;
use crate::{cni, notices, status, watches};

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    /// This node's name in Kubernetes.
    pub node: NodeName,
    /// Journal of addresses.
    pub journal: PathBuf,
    /// What the node acted on last.
    pub memory: PathBuf,
    /// Socket for the plugin.
    pub cni_socket: PathBuf,
    /// Socket of the data plane process.
    pub dataplane_socket: PathBuf,
    /// `/etc/cni/net.d`.
    pub cni_config: PathBuf,
    /// `/opt/cni/bin`.
    pub cni_plugins: PathBuf,
    /// Our plugin comes behind another one.
    pub cni_chained: bool,
    /// Health and metrics.
    pub metrics: SocketAddr,
}

/// Runs until SIGTERM or SIGINT. Kernel state stays: pods go on without us.
pub async fn run(places: Places) -> anyhow::Result<()> {
    let client = Client::try_default()
        .await
        .context("no way to the API server; in a pod this is the service account")?;
    let store = Arc::new(ObjectStore::default());
    watches::start(&client, &places.node, &store);
    let links =
        PodLinks::open().context("cannot talk to the kernel about links; the agent needs CAP_NET_ADMIN")?;
    let seen = links.list().context("cannot list pods' links")?;
    let seen = seen.into_iter().map(|(link, seen)| (link, seen.alias)).collect();
    let ledger = Ledger::open(&places.journal, &seen);
    let indices = links.indices().context("cannot list links")?;
    let chained = Registry::open(&places.journal.with_file_name("chained"), &indices);
    let metrics = Arc::new(Metrics::new());
    let (node, advances) = Node::new(store, links, ledger, chained, metrics.clone());
    let listener = cni::listen(&places.cni_socket)
        .with_context(|| format!("cannot listen on {}", places.cni_socket.display()))?;
    let (report, reports) = watch::channel(None);
    let (told, tells) = mpsc::unbounded_channel();
    let conflist = Conflist::new(places.cni_config, places.cni_plugins);
    let conflist = if places.cni_chained { conflist.chained() } else { conflist };
    let engine = Engine::new(Wiring {
        name: places.node.clone(),
        node: node.clone(),
        advances,
        dataplane: DataplaneLink::start(places.dataplane_socket),
        open_kernel: Box::new(Kernel::open),
        conflist: Some(conflist),
        memory: Memory::open(places.memory, &places.node),
        report,
        notices: told,
    });
    tokio::spawn(notices::publish(client.clone(), places.node.clone(), tells));
    tokio::spawn(status::write(client, places.node, reports));
    tokio::spawn(async move {
        if let Err(error) = metrics::serve(metrics, places.metrics).await {
            tracing::error!(%error, address = %places.metrics, "no health and metrics");
        }
    });
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // On the runtime's own threads: what they tell each other needs no other thread to wake up.
    let mut serving = tokio::spawn(cni::serve(listener, node));
    let mut running = tokio::spawn(engine.run());
    tokio::select! {
        served = &mut serving => served?.context("the CNI socket failed"),
        ended = &mut running => Ok(ended?),
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    }
}
