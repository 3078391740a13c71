// SPDX-License-Identifier: Apache-2.0
//! The clusters of a lab: made by kind side by side, and reached through one kubeconfig.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::{Record, links, primary};
use crate::kind_config::{Machine, kind_config};
use crate::places::Places;
use crate::run::{logged, output, step};
use crate::topology::Cluster;

/// Creates all clusters of the lab at once.
pub fn create_all(places: &Places, record: &Record, node_image: &str, machine: Machine) -> Result<()> {
    links::make(places, record)?;
    let clusters = &record.topology.clusters;
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let running: Vec<_> = clusters
            .iter()
            .map(|cluster| scope.spawn(move || create(places, record, cluster, node_image, machine)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("creating a cluster panicked"))))
            .collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    merge_kubeconfigs(places, record)?;
    clusters.iter().try_for_each(|cluster| primary::install(places, record, cluster))
}

fn create(
    places: &Places,
    record: &Record,
    cluster: &Cluster,
    node_image: &str,
    machine: Machine,
) -> Result<()> {
    let config = places.state.join(format!("kind-{}.yaml", cluster.name));
    fs::write(&config, kind_config(cluster, node_image, machine)?)?;
    let mut kind = record.site.kind(places);
    kind.env("KIND_EXPERIMENTAL_DOCKER_NETWORK", links::network(&record.topology, &cluster.name).name);
    kind.args(["create", "cluster", "--retain", "--name", &cluster.name, "--config"]).arg(&config);
    kind.arg("--kubeconfig").arg(own_kubeconfig(places, cluster));
    step(&format!("creating the cluster {}", cluster.name), || {
        logged(&mut kind, &places.log(&format!("kind-create-{}", cluster.name)))
    })
    .with_context(|| {
        format!("look at `./lab exec {}/control-plane -- journalctl -u kubelet --no-pager`", cluster.name)
    })
}

fn own_kubeconfig(places: &Places, cluster: &Cluster) -> PathBuf {
    places.state.join(format!("kubeconfig-{}", cluster.name))
}

/// Writes the one kubeconfig, with a context, cluster and user per cluster, each called as the cluster.
fn merge_kubeconfigs(places: &Places, record: &Record) -> Result<()> {
    let mut merged = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {},
        "clusters": [], "contexts": [], "users": [],
        "current-context": record.topology.clusters[0].name,
    });
    for cluster in &record.topology.clusters {
        let mut kubectl = record.site.command(places, places.lab_bin().join("kubectl"));
        kubectl.env("KUBECONFIG", own_kubeconfig(places, cluster));
        let text = output(kubectl.args(["config", "view", "--raw", "--output=json"]))?;
        add_config(&mut merged, &cluster.name, &serde_json::from_str(&text)?)?;
    }
    fs::write(places.kubeconfig(), serde_json::to_vec_pretty(&merged)?).context("cannot write the kubeconfig")
}

fn add_config(merged: &mut Value, name: &str, config: &Value) -> Result<()> {
    let parts = [
        ("clusters", "cluster", config["clusters"][0]["cluster"].clone()),
        ("users", "user", config["users"][0]["user"].clone()),
        ("contexts", "context", json!({ "cluster": name, "user": name })),
    ];
    for (list, key, value) in parts {
        anyhow::ensure!(value.is_object(), "kind's kubeconfig of {name} has no {key}");
        let list = merged[list].as_array_mut().context("the merged kubeconfig has lists")?;
        list.push(json!({ "name": name, key: value }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_merged_kubeconfig_has_a_context_named_as_each_cluster() {
        let mut merged = json!({ "clusters": [], "contexts": [], "users": [] });
        let of_kind = json!({
            "clusters": [{ "name": "kind-east", "cluster": { "server": "https://127.0.0.1:1" } }],
            "users": [{ "name": "kind-east", "user": { "client-key-data": "k" } }],
        });
        add_config(&mut merged, "east", &of_kind).unwrap();
        assert_eq!(
            merged["contexts"][0],
            json!({ "name": "east", "context": { "cluster": "east", "user": "east" } })
        );
        assert_eq!(merged["clusters"][0]["cluster"]["server"], "https://127.0.0.1:1");
        assert!(add_config(&mut merged, "west", &json!({})).is_err());
    }
}
