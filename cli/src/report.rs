// SPDX-License-Identifier: Apache-2.0
//! What `isthmus status` says, made from the objects alone: pure, `now` comes in.

mod rows;
mod text;

use isthmus_api::condition::{READY, STALLED};
use isthmus_api::mcs::{ServiceExport, ServiceImport};
use isthmus_api::v1alpha1::{ClusterPeering, EgressPolicy, IPPool, NodeNetwork, PeeringInvitation};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde::Serialize;

pub(crate) use rows::{EgressRow, ExportRow, ImportRow, NodeRow, PeeringRow, PoolRow, TunnelRow};

/// Everything that the API told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Context that was asked.
    pub(crate) context: String,
    /// The ClusterProperty `cluster.clusterset.k8s.io`.
    pub(crate) cluster_id: Option<String>,
    /// Deployment of the operator.
    pub(crate) operator: Option<Deployment>,
    /// DaemonSet of the agent.
    pub(crate) agent: Option<DaemonSet>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) networks: Vec<NodeNetwork>,
    pub(crate) pools: Vec<IPPool>,
    pub(crate) peerings: Vec<ClusterPeering>,
    pub(crate) invitations: Vec<PeeringInvitation>,
    pub(crate) policies: Vec<EgressPolicy>,
    pub(crate) exports: Vec<ServiceExport>,
    pub(crate) imports: Vec<ServiceImport>,
}

/// The report; its JSON form is stable for programs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Context of the kubeconfig.
    pub(crate) context: String,
    /// The cluster's ID, once it has one.
    pub(crate) cluster_id: Option<String>,
    /// Ready operators and all, as `2/2`.
    pub(crate) operator: String,
    /// Ready agents and all.
    pub(crate) agent: String,
    /// What is not as it shall be; empty when all is ready.
    pub(crate) problems: Vec<Problem>,
    pub(crate) nodes: Vec<NodeRow>,
    pub(crate) pools: Vec<PoolRow>,
    pub(crate) peerings: Vec<PeeringRow>,
    pub(crate) tunnels: Vec<TunnelRow>,
    pub(crate) exports: Vec<ExportRow>,
    pub(crate) imports: Vec<ImportRow>,
    pub(crate) egress: Vec<EgressRow>,
}

/// Something that is not as it shall be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Problem {
    /// The object, as `kind/name` or `kind/namespace/name`.
    pub(crate) object: String,
    /// CamelCase reason of the condition.
    pub(crate) reason: String,
    /// What to do, in the words of the component that knows.
    pub(crate) message: String,
}

impl Report {
    /// Sums the facts up as of `now`.
    pub(crate) fn of(facts: &Facts, now: Timestamp) -> Self {
        let operator =
            facts.operator.as_ref().and_then(|deployment| deployment.status.clone()).unwrap_or_default();
        let agent = facts.agent.as_ref().and_then(|set| set.status.clone()).unwrap_or_default();
        let mut report = Self {
            context: facts.context.clone(),
            cluster_id: facts.cluster_id.clone(),
            operator: format!("{}/{}", operator.ready_replicas.unwrap_or(0), operator.replicas.unwrap_or(0)),
            agent: format!("{}/{}", agent.number_ready, agent.desired_number_scheduled),
            nodes: rows::nodes(&facts.nodes, &facts.networks),
            pools: facts.pools.iter().map(PoolRow::of).collect(),
            peerings: facts.peerings.iter().map(PeeringRow::of).collect(),
            tunnels: facts.networks.iter().flat_map(|network| rows::tunnels(network, now)).collect(),
            exports: facts.exports.iter().map(ExportRow::of).collect(),
            imports: facts.imports.iter().map(ImportRow::of).collect(),
            egress: facts.policies.iter().map(EgressRow::of).collect(),
            problems: Vec::new(),
        };
        report.problems = problems(facts, &report);
        report
    }
}

fn problems(facts: &Facts, report: &Report) -> Vec<Problem> {
    let mut found = components(facts);
    for node in &facts.nodes {
        let name = node.name_any();
        match facts.networks.iter().find(|network| network.name_any() == name) {
            Some(network) => {
                let conditions = network.status.as_ref().map(|status| status.conditions.as_slice());
                found.extend(not_ready("node", &name, conditions.unwrap_or_default()));
            }
            None => found.push(problem(
                "node",
                &name,
                "NoNodeNetwork",
                "the operator has made no NodeNetwork for it; is the operator running?",
            )),
        }
    }
    for pool in &facts.pools {
        let conditions = pool.status.as_ref().map(|status| status.conditions.as_slice());
        found.extend(not_ready("ippool", &pool.name_any(), conditions.unwrap_or_default()));
    }
    if facts.pools.is_empty() {
        found.push(problem(
            "ippool",
            "-",
            "NoPool",
            "pods get no addresses; create one, see config/samples/pools.yaml",
        ));
    }
    for peering in &facts.peerings {
        let status = peering.status.clone().unwrap_or_default();
        found.extend(not_ready("clusterpeering", &peering.name_any(), &status.conditions));
        let refused = |refusal: &isthmus_api::v1alpha1::Refusal| {
            problem(
                "clusterpeering",
                &peering.name_any(),
                "Refused",
                &format!("{}: {}", refusal.what, refusal.reason),
            )
        };
        found.extend(status.refused.iter().map(refused));
    }
    for invitation in &facts.invitations {
        let conditions =
            invitation.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let stalled = condition(conditions, STALLED).filter(|stalled| stalled.status == "True");
        found.extend(stalled.map(|stalled| {
            problem("peeringinvitation", &invitation.name_any(), &stalled.reason, &stalled.message)
        }));
    }
    for policy in &facts.policies {
        let conditions = policy.status.as_ref().map(|status| status.conditions.as_slice());
        found.extend(not_ready("egresspolicy", &policy.name_any(), conditions.unwrap_or_default()));
    }
    for export in &facts.exports {
        let conditions =
            export.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        found.extend(export_problems(&rows::full_name(export), conditions));
    }
    for tunnel in report.tunnels.iter().filter(|tunnel| !tunnel.up) {
        let message = format!(
            "probes to {} ({}) are not answered",
            tunnel.gateway,
            tunnel.endpoint.as_deref().unwrap_or("no endpoint")
        );
        found.push(problem("tunnel", &format!("{}/{}", tunnel.node, tunnel.device), "Down", &message));
    }
    found
}

fn components(facts: &Facts) -> Vec<Problem> {
    let mut found = Vec::new();
    let look = "look with `kubectl -n isthmus-system get pods -o wide`";
    let operator = facts.operator.as_ref().map(|deployment| deployment.status.clone().unwrap_or_default());
    match operator {
        None => found.push(problem("deployment", "isthmus-operator", "NotInstalled", "apply config/default")),
        Some(status) if status.ready_replicas.unwrap_or(0) == 0 => {
            found.push(problem(
                "deployment",
                "isthmus-operator",
                "NotRunning",
                &format!("no replica is ready: nothing changes until one is; {look}"),
            ));
        }
        Some(_) => {}
    }
    let agent = facts.agent.as_ref().map(|set| set.status.clone().unwrap_or_default());
    match agent {
        None => found.push(problem("daemonset", "isthmus-agent", "NotInstalled", "apply config/default")),
        Some(status) if status.number_ready < status.desired_number_scheduled => {
            let message = format!(
                "{} of {} agents are ready; {look}",
                status.number_ready, status.desired_number_scheduled
            );
            found.push(problem("daemonset", "isthmus-agent", "NotRunning", &message));
        }
        Some(_) => {}
    }
    found
}

/// The problem that a `Ready` condition tells of, if any. No condition at all is a problem too: nobody looks after the object.
fn not_ready(kind: &str, name: &str, conditions: &[Condition]) -> Option<Problem> {
    match condition(conditions, READY) {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(problem(kind, name, &ready.reason, &ready.message)),
        None => Some(problem(
            kind,
            name,
            "NoStatus",
            "nothing has reported on it yet; are operator and agent running?",
        )),
    }
}

/// KEP-1645: an export is at fault when not valid or not ready, and worth a word when in conflict.
fn export_problems(name: &str, conditions: &[Condition]) -> Vec<Problem> {
    let bad = |found: &&Condition| match found.type_.as_str() {
        "Valid" | "Ready" => found.status == "False",
        "Conflict" => found.status == "True",
        _ => false,
    };
    conditions
        .iter()
        .filter(bad)
        .map(|found| problem("serviceexport", name, &found.reason, &found.message))
        .collect()
}

fn problem(kind: &str, name: &str, reason: &str, message: &str) -> Problem {
    Problem { object: format!("{kind}/{name}"), reason: reason.to_owned(), message: message.to_owned() }
}

/// The condition of this type.
pub(crate) fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests;
