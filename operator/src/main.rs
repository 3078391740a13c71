// SPDX-License-Identifier: Apache-2.0
//! The Isthmus operator.
//!
//! ```text
//! watches -> [world] Moment -> [intake] Snapshot -> [planner] Plan -> [apply] server-side apply
//! peers <=> [peers] links ------------^
//! ```
//! The leader writes; the other replicas compute along, so that they are warm when they take over.

mod apply;
mod args;
mod health;
mod identity;
mod lease;
mod metrics;
mod peers;
mod shell;
mod table;
mod world;

use anyhow::{Context, Result};
use clap::Parser;
use jiff::Timestamp;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use args::Args;
use metrics::Metrics;

/// Pause between two attempts to read or make the cluster's identity.
const IDENTITY_RETRY: std::time::Duration = std::time::Duration::from_secs(2);
/// Name of the Lease of the leader.
const LEASE: &str = "isthmus-operator";

fn main() -> Result<()> {
    let args = Args::parse();
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?}", args.log))?;
    tracing_subscriber::fmt().json().with_env_filter(filter).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> Result<()> {
    let client = Client::try_default().await.context("find the API server")?;
    let metrics = Metrics::default();
    health::serve(args.health_address, metrics.clone()).await?;
    let (stop, stopped) = watch::channel(false);
    let (lead, leading) = watch::channel(false);
    let leases = Api::namespaced(client.clone(), &args.namespace);
    let candidate = lease::Candidate::new(leases, LEASE, args.pod_name.clone());
    let election = tokio::spawn(candidate.run(lead, stopped.clone()));
    info!(version = env!("CARGO_PKG_VERSION"), pod = %args.pod_name, "started");
    tokio::select! {
        () = operate(client, args, metrics, leading) => {}
        () = asked_to_end() => info!("asked to end"),
    }
    stop.send_replace(true);
    election.await.context("the election ended abnormally")
}

async fn operate(client: Client, args: Args, metrics: Metrics, leading: watch::Receiver<bool>) {
    let root = loop {
        match identity::root_key(client.clone(), &args.namespace, Timestamp::now()).await {
            Ok(root) => break root,
            Err(error) => {
                warn!(error = format!("{error:#}"), "no identity yet; trying again");
                tokio::time::sleep(IDENTITY_RETRY).await;
            }
        }
    };
    info!(identity = %root.identity(), "this cluster's identity");
    shell::Shell::new(&client, args, metrics, root).run(leading).await;
}

async fn asked_to_end() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
