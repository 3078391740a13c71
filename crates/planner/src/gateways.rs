// SPDX-License-Identifier: Apache-2.0
//! Which nodes carry tunnels, and which node is the gateway of an egress policy. A choice stays while it can.

use std::net::IpAddr;

use isthmus_api::condition::READY;
use isthmus_api::v1alpha1::EgressPolicyStatus;
use kube::core::SelectorExt;

use crate::conditions::{self, Progress, is};
use crate::plan::{Kind, ObjectKey, Plan};
use crate::services::short_hash;
use crate::snapshot::{Egress, Problem, Snapshot};

/// Nodes with this label and the value `true` carry the tunnels of all peerings.
pub const GATEWAY_LABEL: &str = "isthmus.dev/gateway";
/// How many nodes carry tunnels where none is labelled.
const AUTOMATIC: usize = 2;

/// Nodes of this cluster that carry tunnels, in order: the labelled ones, else up to two that are ready.
///
/// A gateway that is not ready any more stays one: mostly its agent restarts while its tunnels carry traffic, and
/// taking them away would cut that off. Where its tunnels are dead, probes find that out within a second.
pub(crate) fn choose(snapshot: &Snapshot) -> Vec<String> {
    let labelled =
        |name: &&String| snapshot.nodes[*name].labels.get(GATEWAY_LABEL).is_some_and(|value| value == "true");
    let is_ready = |name: &String| snapshot.nodes[name].ready;
    let names = || snapshot.nodes.keys();
    if names().any(|name| labelled(&name)) {
        return names().filter(labelled).cloned().collect();
    }
    let ready = || names().filter(|name| is_ready(name));
    let workers: Vec<&String> = ready().filter(|name| !snapshot.nodes[*name].is_control_plane()).collect();
    let candidates = if workers.is_empty() { ready().collect() } else { workers };
    let mut chosen = current(snapshot);
    chosen
        .retain(|name| snapshot.nodes.contains_key(name) && (!is_ready(name) || candidates.contains(&name)));
    for name in candidates {
        if chosen.iter().filter(|name| is_ready(name)).count() < AUTOMATIC && !chosen.contains(name) {
            chosen.push(name.clone());
        }
    }
    if chosen.iter().all(is_ready) {
        chosen.truncate(AUTOMATIC);
    }
    chosen.sort();
    chosen
}

/// The nodes that carry tunnels now.
fn current(snapshot: &Snapshot) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in snapshot.peerings.values().flat_map(|seen| &seen.status.local_gateways) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// Chooses the gateway of each egress policy.
pub(crate) fn egress(snapshot: &Snapshot, plan: &mut Plan) {
    for (name, seen) in &snapshot.egress {
        let choice = match &seen.value {
            Err(problem) => Err(problem.clone()),
            Ok(egress) => gateway(snapshot, name, egress, seen.status.gateway_node.as_deref()),
        };
        let (ready, progress, gateway_node) = match choice {
            Ok(node) => (is(READY, true, "GatewayChosen", ""), Progress::Settled, Some(node)),
            Err(problem) => (is(READY, false, problem.reason, problem.message), Progress::Stalled, None),
        };
        let old = &seen.status.conditions;
        let status = EgressPolicyStatus {
            observed_generation: seen.generation,
            conditions: conditions::updated(old, &[ready], progress, seen.generation, snapshot.now),
            gateway_node,
        };
        plan.status(ObjectKey::cluster(Kind::EgressPolicy, name), &status);
    }
}

fn gateway(snapshot: &Snapshot, name: &str, egress: &Egress, now: Option<&str>) -> Result<String, Problem> {
    let own: Vec<&IpAddr> = snapshot.nodes.values().flat_map(|node| &node.addresses).collect();
    if let Some(taken) = egress.addresses.iter().find(|address| own.contains(address)) {
        return Err(Problem {
            reason: "AddressTaken",
            message: format!("egressIPs: {taken} is a node's own address; choose a free one of that network"),
        });
    }
    let matching: Vec<_> =
        snapshot.nodes.iter().filter(|(_, node)| egress.gateways.matches(&node.labels)).collect();
    let ready = || matching.iter().filter(|(_, node)| node.ready).map(|(name, _)| name.as_str());
    if let Some(now) = now.filter(|now| ready().any(|name| name == *now)) {
        return Ok(now.to_owned());
    }
    // Policies spread over the nodes by rendezvous hashing.
    let best = ready().max_by_key(|node| short_hash(&[name, node]));
    best.map(str::to_owned).ok_or_else(|| Problem {
        reason: if matching.is_empty() { "NoGatewayNode" } else { "NoReadyGatewayNode" },
        message: if matching.is_empty() {
            "gatewaySelector matches no node; label one, or change the selector".to_owned()
        } else {
            format!("none of the {} node(s) that gatewaySelector matches is Ready", matching.len())
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Node;
    use std::collections::BTreeMap;

    /// Name, readiness and labels of a node.
    type Described<'a> = (&'a str, bool, &'a [(&'a str, &'a str)]);

    fn cluster(nodes: &[Described<'_>]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, ready, labels) in nodes {
            let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let node = Node { ready: *ready, labels, ..Node::default() };
            snapshot.nodes.insert((*name).to_owned(), node);
        }
        snapshot
    }

    const CONTROL_PLANE: (&str, &str) = ("node-role.kubernetes.io/control-plane", "");
    const LABELLED: (&str, &str) = (GATEWAY_LABEL, "true");

    #[test]
    fn two_ready_workers_are_gateways_where_nobody_chose() {
        let snapshot = cluster(&[
            ("cp", true, &[CONTROL_PLANE]),
            ("a", false, &[]),
            ("b", true, &[]),
            ("c", true, &[]),
            ("d", true, &[]),
        ]);
        assert_eq!(choose(&snapshot), ["b", "c"]);
    }

    #[test]
    fn a_cluster_of_one_node_uses_that_node() {
        assert_eq!(choose(&cluster(&[("cp", true, &[CONTROL_PLANE])])), ["cp"]);
    }

    #[test]
    fn labelled_nodes_are_the_gateways_and_no_others() {
        let snapshot = cluster(&[
            ("a", true, &[]),
            ("b", true, &[LABELLED]),
            ("c", true, &[LABELLED]),
            ("d", true, &[LABELLED]),
        ]);
        assert_eq!(choose(&snapshot), ["b", "c", "d"]);
    }

    #[test]
    fn a_gateway_in_use_stays_one_when_a_node_with_a_lower_name_joins() {
        let mut snapshot = cluster(&[("a", true, &[]), ("b", true, &[]), ("c", true, &[])]);
        let status = isthmus_api::v1alpha1::ClusterPeeringStatus {
            local_gateways: vec!["b".to_owned(), "c".to_owned()],
            ..Default::default()
        };
        snapshot.peerings.insert(
            "west".to_owned(),
            crate::testing::seen_with(Err(Problem { reason: "X", message: String::new() }), status),
        );
        assert_eq!(choose(&snapshot), ["b", "c"]);
        snapshot.nodes.get_mut("b").unwrap().ready = false;
        assert_eq!(choose(&snapshot), ["a", "b", "c"], "a gateway whose agent restarts keeps its tunnels");
        snapshot.nodes.remove("b");
        assert_eq!(choose(&snapshot), ["a", "c"]);
    }

    #[test]
    fn an_egress_gateway_stays_until_its_node_is_not_ready() {
        let mut snapshot = cluster(&[("a", true, &[LABELLED]), ("b", true, &[LABELLED])]);
        let gateways = kube::core::Selector::from_iter([(GATEWAY_LABEL.to_owned(), "true".to_owned())]);
        let egress = Egress { gateways, addresses: Vec::new() };
        let first = gateway(&snapshot, "p", &egress, None).unwrap();
        assert_eq!(gateway(&snapshot, "p", &egress, Some(&first)).unwrap(), first);
        snapshot.nodes.get_mut(&first).unwrap().ready = false;
        assert_ne!(gateway(&snapshot, "p", &egress, Some(&first)).unwrap(), first);
        snapshot.nodes = BTreeMap::new();
        assert_eq!(gateway(&snapshot, "p", &egress, Some(&first)).unwrap_err().reason, "NoGatewayNode");
    }
}
