// SPDX-License-Identifier: Apache-2.0
//! `lab status`.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::site::Site;
use super::{Record, links};
use crate::places::Places;
use crate::run::output;

/// The lab as it is now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    topology: String,
    site: Site,
    complete: bool,
    kubeconfig: String,
    clusters: Vec<ClusterStatus>,
}

#[derive(Debug, Serialize)]
struct ClusterStatus {
    name: String,
    nodes: Vec<NodeStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    name: String,
    control_plane: bool,
    running: bool,
    ipv4: String,
    ipv6: String,
}

impl Status {
    /// Whether every node of every cluster is running.
    pub fn all_nodes_run(&self) -> bool {
        self.clusters.iter().flat_map(|cluster| &cluster.nodes).all(|node| node.running)
    }

    fn for_people(&self) -> String {
        let mut text =
            format!("{} ({:?} docker, kubeconfig {})\n", self.topology, self.site, self.kubeconfig);
        if !self.complete {
            text.push_str("only half up: run `make lab-up` again\n");
        }
        for node in self.clusters.iter().flat_map(|cluster| &cluster.nodes) {
            let state = if node.running { "running" } else { "NOT RUNNING" };
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{:<22} {:<12} {:<15} {}", node.name, state, node.ipv4, node.ipv6);
        }
        text
    }
}

/// Prints the lab's state, as JSON or for people.
pub fn print(places: &Places, json: bool) -> Result<()> {
    let status = Record::find(places).map(|record| observe(places, &record)).transpose()?;
    match (status, json) {
        (Some(status), true) => println!("{}", serde_json::to_string_pretty(&status)?),
        (Some(status), false) => print!("{}", status.for_people()),
        (None, true) => println!("null"),
        (None, false) => println!("the lab is down"),
    }
    Ok(())
}

/// Asks Docker about every node of the recorded lab.
pub fn observe(places: &Places, record: &Record) -> Result<Status> {
    let clusters = record
        .topology
        .clusters
        .iter()
        .map(|cluster| {
            let nodes = cluster
                .nodes()
                .into_iter()
                .map(|(name, control_plane)| node(places, record, &cluster.name, name, control_plane));
            ClusterStatus { name: cluster.name.clone(), nodes: nodes.collect() }
        })
        .collect();
    Ok(Status {
        topology: record.name.clone(),
        site: record.site,
        complete: record.complete,
        kubeconfig: places.kubeconfig().display().to_string(),
        clusters,
    })
}

/// A node that Docker does not know is one that does not run.
fn node(places: &Places, record: &Record, cluster: &str, name: String, control_plane: bool) -> NodeStatus {
    let seen = inspect(places, record, &name).unwrap_or_default();
    let text = |path: &str| seen.pointer(path).and_then(Value::as_str).unwrap_or("-").to_owned();
    let of_network = |field: &str| {
        let network = links::network(&record.topology, cluster).name;
        text(&format!("/NetworkSettings/Networks/{network}/{field}"))
    };
    NodeStatus {
        name,
        control_plane,
        running: seen.pointer("/State/Running").and_then(Value::as_bool).unwrap_or(false),
        ipv4: of_network("IPAddress"),
        ipv6: of_network("GlobalIPv6Address"),
    }
}

fn inspect(places: &Places, record: &Record, name: &str) -> Result<Value> {
    let text = output(&mut record.site.docker(places, ["container", "inspect", name]))?;
    let mut all: Vec<Value> = serde_json::from_str(&text)?;
    all.pop().context("docker inspect printed nothing")
}
