// SPDX-License-Identifier: Apache-2.0
//! `isthmus ipam check`: compares the API, the nodes' journals and their kernels.

mod check;
mod nodes;

use anyhow::{Result, bail};
use futures::{StreamExt, stream};
use ipnet::IpNet;
use isthmus_api::v1alpha1::{Allocation, IPBlock, IPBlockSpec, IPPool};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use serde::Serialize;

use crate::args::Output;
use crate::out::{put, say};
use crate::{failure, status, table, yaml};
use check::{Attachment, BlockSeen, Facts, Finding, PodSeen, check, confirmed};

/// Nodes that are asked at a time.
const NODES_AT_A_TIME: usize = 16;
/// Pods that the API server is asked for at a time.
const PODS_PER_PAGE: u32 = 500;

/// What is printed; its JSON form is stable for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    nodes: usize,
    /// Addresses that the nodes hold.
    held: usize,
    findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fixes: Vec<Fix>,
}

/// What --fix did.
#[derive(Debug, Serialize)]
struct Fix {
    node: String,
    pod: String,
    addresses: Vec<String>,
    freed: bool,
    message: String,
}

/// Prints what does not agree, and frees what is provably leaked where `fix` says so; returns the exit code.
pub(crate) async fn run(client: Client, output: Output, fix: bool) -> Result<u8> {
    let facts = facts(client.clone()).await?;
    let mut findings = check(&facts);
    if !findings.is_empty() {
        // Pods come and go while this looks: what is still there at a second look stays.
        findings = confirmed(&findings, check(&self::facts(client.clone()).await?));
    }
    let mut fixes = Vec::new();
    for finding in findings.iter().filter(|_| fix) {
        if let Some(attachment) = &finding.freeable {
            fixes.push(free(client.clone(), finding, attachment).await);
        }
    }
    let freed = fixes.iter().filter(|fix| fix.freed).count();
    let held = facts.nodes.values().flatten().flat_map(|node| &node.held).map(|held| held.addresses.len());
    let report = Report { nodes: facts.nodes.len(), held: held.sum(), findings, fixes };
    match output {
        Output::Json => say!("{}", serde_json::to_string_pretty(&report)?),
        Output::Yaml => put!("{}", yaml::print(&report)?),
        Output::Table => put!("{}", text(&report)),
    }
    Ok(if report.findings.len() == freed { crate::OK } else { crate::NOT_READY })
}

fn text(report: &Report) -> String {
    let mut text = format!("{} nodes, {} addresses held\n", report.nodes, report.held);
    let row = |found: &Finding| {
        let kind = format!("{:?}", found.kind);
        vec![kind, found.node.clone(), found.pod.clone(), found.addresses.join(","), found.message.clone()]
    };
    let rows: Vec<_> = report.findings.iter().map(row).collect();
    if !rows.is_empty() {
        text += &table::render(&["PROBLEM", "NODE", "POD", "ADDRESSES", "MESSAGE"], &rows);
    }
    for fix in &report.fixes {
        text += &format!("{} of {} on {}: {}\n", fix.addresses.join(","), fix.pod, fix.node, fix.message);
    }
    text
}

/// The nodes first, then the pods, as [`check`] wants it.
async fn facts(client: Client) -> Result<Facts> {
    let (nodes, pools, blocks, agents) = futures::try_join!(
        status::every::<Node>(client.clone(), "nodes"),
        status::every::<IPPool>(client.clone(), "pools"),
        status::every::<IPBlock>(client.clone(), "blocks"),
        nodes::agents(client.clone()),
    )?;
    let ask = |node: Node| {
        let (client, agent) = (client.clone(), agents.get(&node.name_any()).cloned());
        async move {
            let addresses = match agent {
                Some(agent) => nodes::dump(client, &agent).await.map_err(|error| format!("{error:#}")),
                None => Err("no agent runs there".to_owned()),
            };
            (node.name_any(), addresses)
        }
    };
    let ours = nodes.into_iter().filter(has_agent);
    let nodes = stream::iter(ours).map(ask).buffer_unordered(NODES_AT_A_TIME).collect().await;
    let net = |text: &str| text.parse::<IpNet>().ok();
    Ok(Facts {
        nodes,
        pools: pools.iter().filter(gives_out).filter_map(|pool| net(&pool.spec.cidr)).collect(),
        blocks: blocks
            .into_iter()
            .filter_map(|block| Some((net(&block.spec.cidr)?, seen(block.spec))))
            .collect(),
        pods: pods(client).await?,
    })
}

fn seen(block: IPBlockSpec) -> BlockSeen {
    BlockSeen { node: block.node, pod: block.pod.map(|pod| (pod.namespace, pod.name)) }
}

/// Addresses of other pools are given out by another plugin, and are in no journal of ours.
fn gives_out(pool: &&IPPool) -> bool {
    pool.spec.allocation == Allocation::Isthmus
}

/// The DaemonSet's node selector.
fn has_agent(node: &Node) -> bool {
    node.labels().get("kubernetes.io/os").is_none_or(|os| os == "linux")
}

async fn pods(client: Client) -> Result<Vec<PodSeen>> {
    let (api, mut seen) = (Api::<Pod>::all(client), Vec::new());
    let mut page = ListParams::default().limit(PODS_PER_PAGE);
    loop {
        let list = api.list(&page).await.map_err(|error| failure::explain(error, "list the pods"))?;
        seen.extend(list.items.iter().filter_map(pod));
        match list.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => page = page.continue_token(&more),
            None => return Ok(seen),
        }
    }
}

/// A pod that a node's agent serves. One that ended is served no more, and may be held until its DEL.
fn pod(object: &Pod) -> Option<PodSeen> {
    let (spec, status) = (object.spec.as_ref()?, object.status.clone().unwrap_or_default());
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let addresses = status.pod_ips.unwrap_or_default().into_iter().filter_map(|one| one.ip.parse().ok());
    Some(PodSeen {
        namespace: object.namespace()?,
        name: object.name_any(),
        node: spec.node_name.clone().filter(|_| spec.host_network != Some(true))?,
        addresses: if ended { Vec::new() } else { addresses.collect() },
    })
}

async fn free(client: Client, finding: &Finding, attachment: &Attachment) -> Fix {
    let freed = free_or_why(client, finding, attachment).await;
    Fix {
        node: finding.node.clone(),
        pod: finding.pod.clone(),
        addresses: finding.addresses.clone(),
        freed: freed.is_ok(),
        message: freed
            .map_or_else(|error| format!("not given back: {error:#}"), |()| "given back".to_owned()),
    }
}

async fn free_or_why(client: Client, finding: &Finding, attachment: &Attachment) -> Result<()> {
    let (namespace, name) = finding.pod.split_once('/').unwrap_or_default();
    let seen = Api::<Pod>::namespaced(client.clone(), namespace).get_opt(name).await;
    let seen = seen.map_err(|error| failure::explain(error, "look for the pod"))?;
    if seen.as_ref().and_then(pod).is_some_and(|pod| pod.node == finding.node) {
        bail!("a pod of this name is on the node again");
    }
    let agents = nodes::agents(client.clone()).await?;
    match agents.get(&finding.node) {
        Some(agent) => nodes::release(client, agent, attachment).await,
        None => bail!("no agent runs there"),
    }
}

#[cfg(test)]
mod tests {
    use isthmus_api::v1alpha1::IPPoolSpec;

    use super::*;

    #[test]
    fn only_what_isthmus_gives_out_is_looked_for_in_its_journals() {
        for (allocation, looked_for) in
            [(Allocation::Isthmus, true), (Allocation::PodCIDRs, false), (Allocation::External, false)]
        {
            let pool = IPPool::new("p", IPPoolSpec { allocation, ..Default::default() });
            assert_eq!(gives_out(&&pool), looked_for);
        }
    }
}
