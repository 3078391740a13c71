// SPDX-License-Identifier: Apache-2.0
//! The Isthmus operator.
//!
//! ```text
//! watches -> [world] Moment -> [intake] Snapshot -> [planner] Plan -> [apply] server-side apply
//! ```
//! The leader writes; the other replicas compute along, so that they are warm when they take over.

mod apply;
mod args;
mod health;
mod identity;
mod lease;
mod metrics;
mod shell;
mod table;
mod world;

use anyhow::{Context, Result};
use clap::Parser;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;
use tracing_subscriber::EnvFilter;

use args::Args;
use metrics::Metrics;

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
    let shell = shell::Shell::new(client, args, metrics);
    tokio::select! {
        () = shell.run(leading) => {}
        () = asked_to_end() => info!("asked to end"),
    }
    stop.send_replace(true);
    election.await.context("the election ended abnormally")
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
