// SPDX-License-Identifier: Apache-2.0
//! What does not agree between the API, the nodes' journals and their kernels. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_model::addresses::{Held, NodeAddresses};
use isthmus_model::ids::LinkName;
use serde::Serialize;

/// All that is compared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Pods that have or will get an address of ours: on a node, not on its own network, not ended.
    pub(crate) pods: Vec<PodSeen>,
    /// Addresses of the pools that Isthmus gives out.
    pub(crate) pools: Vec<IpNet>,
    /// Blocks, and who holds them.
    pub(crate) blocks: BTreeMap<IpNet, BlockSeen>,
    /// Nodes, and what they hold or why that is not known.
    pub(crate) nodes: BTreeMap<String, Result<NodeAddresses, String>>,
}

/// A block as the API has it.
#[derive(Clone, Debug)]
pub(crate) struct BlockSeen {
    pub(crate) node: String,
    /// Namespace and name of the pod whose alone it is.
    pub(crate) pod: Option<(String, String)>,
}

/// A pod as the API has it.
#[derive(Clone, Debug)]
pub(crate) struct PodSeen {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
}

/// What does not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Kind {
    /// One address is held twice.
    Duplicate,
    /// Held for a pod that is not on the node.
    Leaked,
    /// Held for a pod that has other addresses.
    Stale,
    /// A pod has an address that its node's journal does not know.
    NotInJournal,
    /// Held, and in no block of the node.
    OutsideBlocks,
    /// Held, and another pod's own.
    OthersOwn,
    /// A route leads to a pod's link that nobody holds.
    RouteWithoutOwner,
    /// The node was not asked, or did not answer.
    NodeUnknown,
}

/// One disagreement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) node: String,
    /// Namespace and name, `/` between; empty where none is known.
    pub(crate) pod: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) message: String,
    /// What holds the addresses, where that may be freed: pod and link are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) freeable: Option<Attachment>,
}

/// An interface of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Attachment {
    pub(crate) container: String,
    pub(crate) ifname: String,
}

/// All disagreements, in order.
///
/// The nodes have to be read before the pods: then an address whose pod is not there has lost it, and is not ahead of it.
pub(crate) fn check(facts: &Facts) -> Vec<Finding> {
    let mut found = BTreeSet::new();
    for (node, addresses) in &facts.nodes {
        match addresses {
            Ok(addresses) => of_node(facts, node, addresses, &mut found),
            Err(why) => {
                found.insert(finding(Kind::NodeUnknown, node, "", &[], why));
            }
        }
    }
    not_in_journals(facts, &mut found);
    duplicates(facts, &mut found);
    found.into_iter().collect()
}

/// What two checks in a row found: what was only under way at one of them is no disagreement.
pub(crate) fn confirmed(first: &[Finding], second: Vec<Finding>) -> Vec<Finding> {
    second.into_iter().filter(|finding| first.contains(finding)).collect()
}

fn of_node(facts: &Facts, node: &str, addresses: &NodeAddresses, found: &mut BTreeSet<Finding>) {
    for held in &addresses.held {
        found.extend(lost(facts, node, held, addresses.links.contains(&held.link)));
        let own: Vec<&IpNet> =
            facts.blocks.iter().filter(|(_, block)| block.node == node).map(|(cidr, _)| cidr).collect();
        let outside: Vec<IpAddr> = held
            .addresses
            .iter()
            .copied()
            .filter(|one| !own.iter().any(|block| block.contains(one)))
            .collect();
        if !outside.is_empty() {
            let message = "no IPBlock of the node holds it: other nodes do not lead to it, and it may be given again; replace the pod";
            found.insert(finding(Kind::OutsideBlocks, node, &pod_of(held), &outside, message));
        }
    }
    others_own(facts, node, addresses, found);
    let owned = |link: &LinkName| addresses.held.iter().any(|held| held.link == *link);
    for (destination, links) in &addresses.routes {
        for link in links.iter().filter(|link| !owned(link)) {
            let message = format!(
                "a route leads to the link {link}, which no pod of the journal has; see the agent's log"
            );
            found.insert(finding(Kind::RouteWithoutOwner, node, "", &[destination.addr()], &message));
        }
    }
}

/// Addresses that one pod asked for, and that another holds.
fn others_own(facts: &Facts, node: &str, addresses: &NodeAddresses, found: &mut BTreeSet<Finding>) {
    for held in addresses.held.iter().filter(|held| !held.pod.is_empty()) {
        for address in &held.addresses {
            let Some(block) = facts.blocks.get(&IpNet::from(*address)) else { continue };
            let Some((namespace, name)) = &block.pod else { continue };
            if (namespace, name) != (&held.namespace, &held.pod) {
                let message = format!(
                    "its IPBlock says that it is the pod {namespace}/{name}'s; replace the pod that holds it"
                );
                found.insert(finding(Kind::OthersOwn, node, &pod_of(held), &[*address], &message));
            }
        }
    }
}

/// An address that its pod has not, or has not any more.
fn lost(facts: &Facts, node: &str, held: &Held, has_link: bool) -> Option<Finding> {
    // Without a name (one too long for the kernel's alias, or no pod of Kubernetes) nothing can be told.
    if held.pod.is_empty() {
        return None;
    }
    let its = |pod: &&PodSeen| pod.namespace == held.namespace && pod.name == held.pod && pod.node == node;
    let (kind, message) = match (facts.pods.iter().find(its), has_link) {
        (None, true) => (
            Kind::Leaked,
            "its pod is gone and its link is not: the container runtime has not called DEL; look for the container there",
        ),
        (None, false) => (
            Kind::Leaked,
            "its pod is gone and no link of ours is there; --fix gives it back, unless another plugin made the link: then DEL or GC of its network does",
        ),
        (Some(pod), false) if others(pod, held) => (
            Kind::Stale,
            "an earlier container of the pod held it and its link is gone; the runtime's GC or DEL gives it back",
        ),
        _ => return None,
    };
    let mut finding = finding(kind, node, &pod_of(held), &held.addresses, message);
    let attachment = || Attachment { container: held.container.clone(), ifname: held.ifname.clone() };
    finding.freeable = (kind == Kind::Leaked && !has_link).then(attachment);
    Some(finding)
}

/// Whether the pod has addresses and none is among those that are held.
fn others(pod: &PodSeen, held: &Held) -> bool {
    !pod.addresses.is_empty() && !pod.addresses.iter().any(|address| held.addresses.contains(address))
}

fn not_in_journals(facts: &Facts, found: &mut BTreeSet<Finding>) {
    for pod in &facts.pods {
        let Some(Ok(node)) = facts.nodes.get(&pod.node) else { continue };
        let held: BTreeSet<&IpAddr> = node.held.iter().flat_map(|held| &held.addresses).collect();
        let ours = |address: &&IpAddr| facts.pools.iter().any(|pool| pool.contains(*address));
        let missing: Vec<IpAddr> =
            pod.addresses.iter().filter(ours).filter(|address| !held.contains(address)).copied().collect();
        if !missing.is_empty() {
            let message = "its node's journal does not know it: it may be given again, and nothing reaches the pod; replace the pod";
            let name = format!("{}/{}", pod.namespace, pod.name);
            found.insert(finding(Kind::NotInJournal, &pod.node, &name, &missing, message));
        }
    }
}

fn duplicates(facts: &Facts, found: &mut BTreeSet<Finding>) {
    let mut holders: BTreeMap<IpAddr, Vec<(&str, &Held)>> = BTreeMap::new();
    for (node, addresses) in facts.nodes.iter().filter_map(|(node, of)| Some((node, of.as_ref().ok()?))) {
        for held in &addresses.held {
            for address in &held.addresses {
                holders.entry(*address).or_default().push((node, held));
            }
        }
    }
    for (address, holders) in holders.iter().filter(|(_, holders)| holders.len() > 1) {
        for (node, held) in holders {
            let others = holders.iter().filter(|other| **other != (*node, *held));
            let others: Vec<String> =
                others.map(|(node, other)| format!("{} on {node}", pod_of(other))).collect();
            let message = format!("{} has it too; replace all of these pods but one", others.join(", "));
            found.insert(finding(Kind::Duplicate, node, &pod_of(held), &[*address], &message));
        }
    }
}

fn pod_of(held: &Held) -> String {
    if held.pod.is_empty() {
        format!("container {}", held.container)
    } else {
        format!("{}/{}", held.namespace, held.pod)
    }
}

fn finding(kind: Kind, node: &str, pod: &str, addresses: &[IpAddr], message: &str) -> Finding {
    Finding {
        kind,
        node: node.to_owned(),
        pod: pod.to_owned(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        message: message.to_owned(),
        freeable: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(container: &str, pod: &str, address: &str) -> Held {
        Held {
            container: container.to_owned(),
            ifname: "eth0".to_owned(),
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            link: format!("ist{container}").parse().unwrap(),
            addresses: vec![address.parse().unwrap()],
        }
    }

    /// A node whose kernel agrees with its journal.
    fn node(held: &[Held]) -> Result<NodeAddresses, String> {
        let links = held.iter().map(|held| held.link.clone()).collect();
        let routes = held.iter().map(|held| (held.addresses[0].into(), [held.link.clone()].into())).collect();
        Ok(NodeAddresses { held: held.to_vec(), links, routes })
    }

    fn pod(name: &str, node: &str, address: &str) -> PodSeen {
        let addresses = address.parse().into_iter().collect();
        PodSeen { namespace: "shop".into(), name: name.into(), node: node.into(), addresses }
    }

    /// Two nodes with a pod each, all as it shall be.
    fn cluster() -> Facts {
        Facts {
            pods: vec![pod("web", "n1", "10.1.0.1"), pod("db", "n2", "10.1.0.65")],
            pools: vec!["10.1.0.0/16".parse().unwrap()],
            blocks: [("10.1.0.0/26", "n1"), ("10.1.0.64/26", "n2")]
                .map(|(cidr, node)| (cidr.parse().unwrap(), BlockSeen { node: node.to_owned(), pod: None }))
                .into(),
            nodes: [
                ("n1".to_owned(), node(&[held("a", "web", "10.1.0.1")])),
                ("n2".to_owned(), node(&[held("b", "db", "10.1.0.65")])),
            ]
            .into(),
        }
    }

    fn first(facts: &mut Facts) -> &mut NodeAddresses {
        facts.nodes.get_mut("n1").unwrap().as_mut().unwrap()
    }

    fn kinds(facts: &Facts) -> Vec<(Kind, String, String)> {
        check(facts).into_iter().map(|found| (found.kind, found.node, found.pod)).collect()
    }

    fn one(kind: Kind, node: &str, pod: &str) -> Vec<(Kind, String, String)> {
        vec![(kind, node.to_owned(), pod.to_owned())]
    }

    #[test]
    fn nothing_is_found_where_all_agree_and_pods_of_other_networks_are_none_of_ours() {
        let mut facts = cluster();
        facts.pods.push(pod("elsewhere", "n1", "192.0.2.7"));
        facts.pods.push(pod("coming", "n1", ""));
        assert_eq!(check(&facts), []);
    }

    #[test]
    fn what_a_pod_left_behind_may_be_freed_once_its_link_is_gone() {
        let mut facts = cluster();
        facts.pods.remove(0);
        assert_eq!(kinds(&facts), one(Kind::Leaked, "n1", "shop/web"));
        assert_eq!(check(&facts)[0].freeable, None, "the link is there: somebody may use it");
        first(&mut facts).links.clear();
        let expected = Attachment { container: "a".into(), ifname: "eth0".into() };
        assert_eq!(check(&facts)[0].freeable, Some(expected));
    }

    #[test]
    fn a_pod_of_the_same_name_on_another_node_keeps_nothing_here() {
        let mut facts = cluster();
        facts.pods[0].node = "n2".to_owned();
        facts.pods[0].addresses.clear();
        first(&mut facts).links.clear();
        assert!(check(&facts)[0].freeable.is_some());
    }

    #[test]
    fn what_an_earlier_container_of_a_living_pod_holds_is_told_and_not_freed() {
        let mut facts = cluster();
        let old = held("old", "web", "10.1.0.9");
        first(&mut facts).held.push(old);
        assert_eq!(kinds(&facts), one(Kind::Stale, "n1", "shop/web"));
        assert_eq!(check(&facts)[0].freeable, None);
        facts.pods[0].addresses.clear();
        assert_eq!(check(&facts), [], "its ADD may be under way");
    }

    #[test]
    fn an_entry_without_a_name_is_never_taken_for_lost() {
        let mut facts = cluster();
        let mut nameless = held("c", "", "10.1.0.3");
        nameless.namespace.clear();
        first(&mut facts).held.push(nameless);
        assert_eq!(check(&facts), []);
    }

    #[test]
    fn a_pod_that_its_nodes_journal_does_not_know_is_found() {
        let mut facts = cluster();
        facts.pods.push(pod("lost", "n1", "10.1.0.5"));
        assert_eq!(kinds(&facts), one(Kind::NotInJournal, "n1", "shop/lost"));
    }

    #[test]
    fn an_address_on_two_nodes_is_told_of_both_holders() {
        let mut facts = cluster();
        facts.pods.push(pod("twin", "n2", "10.1.0.1"));
        let both = node(&[held("b", "db", "10.1.0.65"), held("t", "twin", "10.1.0.1")]);
        facts.nodes.insert("n2".to_owned(), both);
        let duplicates: Vec<_> =
            check(&facts).into_iter().filter(|found| found.kind == Kind::Duplicate).collect();
        assert_eq!(duplicates.len(), 2);
        assert!(duplicates[0].message.contains("shop/twin on n2"), "{}", duplicates[0].message);
        assert!(kinds(&facts).contains(&(Kind::OutsideBlocks, "n2".into(), "shop/twin".into())));
    }

    #[test]
    fn an_address_outside_of_the_nodes_blocks_is_found() {
        let mut facts = cluster();
        facts.blocks.remove(&"10.1.0.0/26".parse().unwrap());
        assert_eq!(kinds(&facts), one(Kind::OutsideBlocks, "n1", "shop/web"));
    }

    #[test]
    fn an_address_of_a_pods_own_lies_in_its_block_and_is_found_where_another_pod_holds_it() {
        let mut facts = cluster();
        let own = |name: &str| BlockSeen { node: "n1".into(), pod: Some(("shop".into(), name.into())) };
        facts.nodes.insert("n1".to_owned(), node(&[held("a", "web", "10.1.9.7")]));
        facts.pods[0] = pod("web", "n1", "10.1.9.7");
        facts.blocks.insert("10.1.9.7/32".parse().unwrap(), own("web"));
        assert_eq!(check(&facts), []);
        facts.blocks.insert("10.1.9.7/32".parse().unwrap(), own("db"));
        assert_eq!(kinds(&facts), one(Kind::OthersOwn, "n1", "shop/web"));
        assert!(check(&facts)[0].message.contains("the pod shop/db's"));
    }

    #[test]
    fn a_route_to_a_link_that_nobody_holds_is_found() {
        let mut facts = cluster();
        let route = ("10.1.0.8/32".parse().unwrap(), ["istdead".parse().unwrap()].into());
        first(&mut facts).routes.extend([route]);
        assert_eq!(kinds(&facts), one(Kind::RouteWithoutOwner, "n1", ""));
        assert_eq!(check(&facts)[0].addresses, ["10.1.0.8"]);
    }

    #[test]
    fn of_a_node_that_does_not_answer_only_that_is_told() {
        let mut facts = cluster();
        facts.nodes.insert("n1".to_owned(), Err("its agent does not run".to_owned()));
        assert_eq!(kinds(&facts), one(Kind::NodeUnknown, "n1", ""));
    }

    #[test]
    fn what_was_only_under_way_is_not_confirmed() {
        let (mut during, after) = (cluster(), cluster());
        during.pods.remove(0);
        assert_eq!(confirmed(&check(&during), check(&after)), []);
        assert_eq!(confirmed(&check(&during), check(&during)).len(), 1);
    }
}
