// SPDX-License-Identifier: Apache-2.0
use std::collections::{BTreeMap, BTreeSet};

use isthmus_api::v1alpha1::{AddressRequest, BlockUsage, NodeNetworkStatus};
use kube::core::Selector;
use proptest::prelude::*;

use super::super::assign;
use super::*;
use crate::pools;
use crate::snapshot::{Node, Seen};
use crate::testing::seen;

const ADDRESSES: [&str; 3] = ["10.1.9.1", "10.1.9.2", "10.1.9.3"];

/// A pool of 10.1.0.0/16 that leaves 10.1.9.0/24 to those who ask.
fn pool() -> Pool {
    let aside: Vec<IpNet> = vec!["10.1.9.0/24".parse().unwrap()];
    Pool {
        cidr: "10.1.0.0/16".parse().unwrap(),
        block_prefix: 26,
        nodes: Selector::default(),
        namespaces: None,
        reserved: Vec::new(),
        on_request: aside.clone(),
        set_aside: aside,
        disabled: false,
        allocation: Allocation::Isthmus,
    }
}

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for name in ["a", "b"] {
        snapshot.nodes.insert(name.to_owned(), Node { ready: true, ..Node::default() });
    }
    snapshot.pools.insert("v4".to_owned(), seen(pool(), 0));
    snapshot.namespace_labels.insert("shop".to_owned(), BTreeMap::new());
    snapshot
}

fn pod(name: &str, uid: &str) -> BlockPod {
    BlockPod { namespace: "shop".to_owned(), name: name.to_owned(), uid: uid.to_owned(), stateful_set: None }
}

fn asking(pod: &BlockPod, addresses: &[&str]) -> AddressRequest {
    AddressRequest {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        stateful_set: pod.stateful_set.clone(),
        keep_from: pod.stateful_set.iter().map(|_| "v4".to_owned()).collect(),
    }
}

/// What a node tells.
fn report(snapshot: &mut Snapshot, node: &str, requests: Vec<AddressRequest>, usages: &[(&str, i64)]) {
    let usage = |(cidr, allocated): &(&str, i64)| BlockUsage { cidr: (*cidr).into(), allocated: *allocated };
    let blocks = usages.iter().map(usage).collect();
    let mut network: Seen<(), NodeNetworkStatus> = seen((), 0);
    network.status = NodeNetworkStatus { blocks, requests, ..NodeNetworkStatus::default() };
    snapshot.node_networks.insert(node.to_owned(), network);
}

/// The cluster once the plan is applied, as an API server does: what is there does not change.
fn applied(mut snapshot: Snapshot) -> Snapshot {
    let blocks = assign(&snapshot, &pools::usable(&snapshot));
    for name in &blocks.released {
        snapshot.blocks.remove(name);
    }
    for (name, block) in blocks.held {
        let there = snapshot.blocks.entry(name).or_insert_with(|| seen(block.clone(), 0));
        if block.pod.as_ref().is_some_and(|pod| pod.stateful_set.is_some()) {
            there.value = Ok(block);
        }
    }
    snapshot
}

/// Address, node and pod of the blocks that are a pod's.
fn owners(snapshot: &Snapshot) -> Vec<(String, String, String)> {
    let blocks = snapshot.blocks.values().filter_map(|seen| seen.value.as_ref().ok());
    let owner = |block: &Block| {
        let pod = block.pod.as_ref()?;
        Some((block.cidr.to_string(), block.node.clone(), pod.uid.clone()))
    };
    blocks.filter_map(owner).collect()
}

fn one(cidr: &str, node: &str, uid: &str) -> Vec<(String, String, String)> {
    vec![(cidr.to_owned(), node.to_owned(), uid.to_owned())]
}

#[test]
fn who_asks_first_has_the_address_and_whoever_asks_later_does_not() {
    let (web, late) = (pod("web", "1"), pod("late", "0"));
    let mut snapshot = cluster();
    report(&mut snapshot, "b", vec![asking(&web, &["10.1.9.1"])], &[]);
    let mut snapshot = applied(snapshot);
    assert_eq!(owners(&snapshot), one("10.1.9.1/32", "b", "1"));
    assert!(snapshot.blocks.contains_key("v4-10-1-9-1-32"), "one object for an address, whoever has it");
    report(&mut snapshot, "a", vec![asking(&late, &["10.1.9.1"])], &[]);
    assert_eq!(owners(&applied(snapshot)), one("10.1.9.1/32", "b", "1"));
}

#[test]
fn an_address_is_free_once_its_pod_asks_no_more_and_its_node_says_that_it_is_not_in_use() {
    let (web, next) = (pod("web", "1"), pod("web", "2"));
    let mut snapshot = cluster();
    report(&mut snapshot, "a", vec![asking(&web, &["10.1.9.1"])], &[]);
    let mut snapshot = applied(snapshot);
    report(&mut snapshot, "b", vec![asking(&next, &["10.1.9.1"])], &[("10.1.9.1/32", 0)]);
    for (requests, usages) in [
        (vec![asking(&web, &["10.1.9.1"])], vec![("10.1.9.1/32", 0)]),
        (vec![], vec![("10.1.9.1/32", 1)]),
        (vec![], vec![]),
    ] {
        report(&mut snapshot, "a", requests, &usages);
        snapshot = applied(snapshot);
        assert_eq!(owners(&snapshot), one("10.1.9.1/32", "a", "1"), "{usages:?}");
    }
    report(&mut snapshot, "a", vec![], &[("10.1.9.1/32", 0)]);
    snapshot = applied(snapshot);
    assert_eq!(owners(&snapshot), [], "its object goes first");
    assert_eq!(owners(&applied(snapshot)), one("10.1.9.1/32", "b", "2"));
}

#[test]
fn what_a_node_that_is_gone_had_is_free() {
    let mut snapshot = cluster();
    report(&mut snapshot, "a", vec![asking(&pod("web", "1"), &["10.1.9.1"])], &[]);
    let mut snapshot = applied(snapshot);
    snapshot.nodes.remove("a");
    assert_eq!(owners(&applied(snapshot)), []);
}

#[test]
fn nothing_is_given_that_pods_of_the_namespace_may_not_ask_for_there() {
    let nodes = Selector::from_iter([("zone".to_owned(), "z".to_owned())]);
    let red = Some(Selector::from_iter([("team".to_owned(), "red".to_owned())]));
    let changes: [(&str, &str, Pool); 6] = [
        ("is no range of those who ask", "10.1.8.1", pool()),
        ("lies in no pool", "10.2.0.1", pool()),
        ("disabled", "10.1.9.1", Pool { disabled: true, ..pool() }),
        ("for other nodes", "10.1.9.1", Pool { nodes, ..pool() }),
        ("for other namespaces", "10.1.9.1", Pool { namespaces: red, ..pool() }),
        ("another plugin's", "10.1.9.1", Pool { allocation: Allocation::External, ..pool() }),
    ];
    for (why, address, pool) in changes {
        let mut snapshot = cluster();
        snapshot.pools.insert("v4".to_owned(), seen(pool, 0));
        report(&mut snapshot, "a", vec![asking(&pod("web", "1"), &[address])], &[]);
        assert_eq!(owners(&applied(snapshot)), [], "{why}");
    }
}

#[test]
fn blocks_for_all_pods_lie_apart_from_what_is_asked_for() {
    let mut snapshot = cluster();
    let mut small = pool();
    small.cidr = "10.1.9.0/24".parse().unwrap();
    (small.on_request, small.set_aside) =
        (vec!["10.1.9.0/25".parse().unwrap()], vec!["10.1.9.0/25".parse().unwrap()]);
    snapshot.pools.insert("v4".to_owned(), seen(small.clone(), 0));
    let snapshot = applied(snapshot);
    assert_eq!(snapshot.blocks.keys().collect::<Vec<_>>(), ["v4-10-1-9-128-26", "v4-10-1-9-192-26"]);

    // A node has a block there since before: who asks is not given a part of it.
    small.set_aside = Vec::new();
    let mut before = cluster();
    before.pools.insert("v4".to_owned(), seen(small, 0));
    let mut before = applied(before);
    report(&mut before, "a", vec![asking(&pod("web", "1"), &["10.1.9.1"])], &[]);
    assert_eq!(owners(&applied(before)), []);
}

#[test]
fn a_pool_that_gives_nothing_unasked_gives_nodes_no_block_and_does_not_call_that_a_shortage() {
    let mut snapshot = cluster();
    let mut asked = pool();
    asked.set_aside = vec![asked.cidr];
    snapshot.pools.insert("v4".to_owned(), seen(asked, 0));
    let blocks = assign(&snapshot, &pools::usable(&snapshot));
    assert!(blocks.held.is_empty() && blocks.wanting.is_empty());
}

fn kept(name: &str, uid: &str) -> BlockPod {
    BlockPod { stateful_set: Some("set".to_owned()), ..pod(name, uid) }
}

#[test]
fn an_address_that_is_kept_follows_the_pod_of_its_name_once_nobody_has_it_where_it_was() {
    let mut snapshot = cluster();
    snapshot.stateful_sets.insert("set".to_owned());
    report(&mut snapshot, "a", vec![asking(&kept("web-0", "1"), &[]), asking(&kept("web-1", "2"), &[])], &[]);
    let mut snapshot = applied(snapshot);
    let first = |node: &str, uid: &str| ("10.1.9.0/32".to_owned(), node.to_owned(), uid.to_owned());
    let second = ("10.1.9.1/32".to_owned(), "a".to_owned(), "2".to_owned());
    assert_eq!(owners(&snapshot), [first("a", "1"), second.clone()]);

    // The next pod of the name comes to b while a still has it, and then has it no more.
    let rest = asking(&kept("web-1", "2"), &[]);
    report(&mut snapshot, "b", vec![asking(&kept("web-0", "3"), &[])], &[]);
    report(&mut snapshot, "a", vec![rest.clone()], &[("10.1.9.0/32", 1), ("10.1.9.1/32", 1)]);
    snapshot = applied(snapshot);
    assert_eq!(owners(&snapshot), [first("a", "1"), second.clone()]);
    report(&mut snapshot, "a", vec![rest.clone()], &[("10.1.9.0/32", 0), ("10.1.9.1/32", 1)]);
    let plan = crate::plan(&snapshot);
    let object = &plan.ensure[&crate::ObjectKey::cluster(crate::Kind::IpBlock, "v4-10-1-9-0-32")];
    assert_eq!(object["metadata"]["resourceVersion"], "1", "as it was seen, or not at all");
    snapshot = applied(snapshot);
    assert_eq!(owners(&snapshot), [first("b", "3"), second.clone()]);

    // Nobody asks: it stays for the name as long as the set is there.
    report(&mut snapshot, "b", vec![], &[("10.1.9.0/32", 0)]);
    snapshot = applied(snapshot);
    assert_eq!(owners(&snapshot), [first("b", "3"), second.clone()]);
    report(&mut snapshot, "b", vec![asking(&kept("other-0", "4"), &[])], &[("10.1.9.0/32", 0)]);
    snapshot = applied(snapshot);
    assert_eq!(owners(&snapshot)[2].0, "10.1.9.2/32", "another name has another address");

    snapshot.stateful_sets.clear();
    report(&mut snapshot, "b", vec![], &[("10.1.9.0/32", 0), ("10.1.9.2/32", 0)]);
    assert_eq!(owners(&applied(snapshot)), [second], "what is in use outlives the set");
}

#[test]
fn what_a_node_that_is_gone_had_is_kept_for_the_pod_of_its_name() {
    let mut snapshot = cluster();
    snapshot.stateful_sets.insert("set".to_owned());
    report(&mut snapshot, "a", vec![asking(&kept("web-0", "1"), &[])], &[]);
    let mut snapshot = applied(snapshot);
    snapshot.nodes.remove("a");
    snapshot.node_networks.remove("a");
    report(&mut snapshot, "b", vec![asking(&kept("web-0", "2"), &[])], &[]);
    assert_eq!(owners(&applied(snapshot)), one("10.1.9.0/32", "b", "2"));
}

/// A node as its agent keeps it.
#[derive(Clone, Debug, Default)]
struct Agent {
    /// Pods that it knows, and what each asks for.
    pods: BTreeMap<BlockPod, Vec<&'static str>>,
    /// Blocks of its own that it has seen.
    seen: BTreeMap<IpNet, BlockPod>,
    /// Addresses that are in use, and by whom.
    journal: BTreeMap<IpNet, BlockPod>,
}

impl Agent {
    fn sees(&mut self, node: &str, snapshot: &Snapshot) {
        let blocks = snapshot.blocks.values().filter_map(|seen| seen.value.as_ref().ok());
        let own = blocks.filter(|block| block.node == node);
        self.seen = own.filter_map(|block| Some((block.cidr, block.pod.clone()?))).collect();
    }

    /// ADD of the pod.
    fn add(&mut self, pod: &BlockPod) {
        let Some(addresses) = self.pods.get(pod) else { return };
        let asked = |cidr: &IpNet| {
            pod.stateful_set.is_some() || addresses.iter().any(|one| format!("{one}/32") == cidr.to_string())
        };
        let own = self.seen.iter().filter(|(cidr, of)| *of == pod && asked(cidr)).map(|(cidr, _)| *cidr);
        for cidr in own.collect::<Vec<_>>() {
            self.journal.entry(cidr).or_insert_with(|| pod.clone());
        }
    }

    fn tells(&self, node: &str, snapshot: &mut Snapshot) {
        let requests = self.pods.iter().map(|(pod, addresses)| asking(pod, addresses)).collect();
        let usages: Vec<(String, i64)> = self
            .seen
            .keys()
            .map(|cidr| (cidr.to_string(), i64::from(self.journal.contains_key(cidr))))
            .collect();
        let usages: Vec<(&str, i64)> = usages.iter().map(|(cidr, used)| (cidr.as_str(), *used)).collect();
        report(snapshot, node, requests, &usages);
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A pod of this name and asking for this address comes to a node.
    Comes(usize, usize, usize),
    /// It is gone from the API.
    Goes(usize, usize),
    /// The runtime's calls: ADD of it, and DEL of what holds some address.
    Add(usize, usize),
    Del(usize, usize),
    /// The node's watch catches up, and the node tells how it is.
    Sees(usize),
    Tells(usize),
    /// The operator plans.
    Plans,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // One more than there are addresses: one that is kept.
    let (node, pod, address) = (0usize..3, 0usize..3, 0usize..=ADDRESSES.len());
    let step = prop_oneof![
        (node.clone(), pod.clone(), address.clone()).prop_map(|(n, p, a)| Step::Comes(n, p, a)),
        (node.clone(), pod.clone()).prop_map(|(n, p)| Step::Goes(n, p)),
        (node.clone(), pod).prop_map(|(n, p)| Step::Add(n, p)),
        (node.clone(), address).prop_map(|(n, a)| Step::Del(n, a)),
        node.clone().prop_map(Step::Sees),
        node.prop_map(Step::Tells),
        Just(Step::Plans),
        Just(Step::Plans),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #[test]
    fn no_address_is_held_twice_and_none_is_given_that_a_journal_holds(steps in steps()) {
        let mut snapshot = cluster();
        snapshot.nodes.insert("c".to_owned(), Node { ready: true, ..Node::default() });
        snapshot.stateful_sets.insert("set".to_owned());
        let (names, mut uids) = (["a", "b", "c"], 0);
        let mut agents: [Agent; 3] = Default::default();
        for step in steps {
            match step {
                Step::Comes(node, name, address) => {
                    let name = ["web", "db", "mq"][name];
                    uids += 1;
                    let pods = &mut agents[node].pods;
                    if !pods.keys().any(|pod| pod.name == name) {
                        let uid = format!("{uids:04}");
                        match ADDRESSES.get(address) {
                            Some(address) => pods.insert(pod(name, &uid), vec![*address]),
                            None => pods.insert(kept(name, &uid), Vec::new()),
                        };
                    }
                }
                Step::Goes(node, name) => agents[node].pods.retain(|pod, _| pod.name != ["web", "db", "mq"][name]),
                Step::Add(node, name) => {
                    let pod = agents[node].pods.keys().find(|pod| pod.name == ["web", "db", "mq"][name]).cloned();
                    pod.iter().for_each(|pod| agents[node].add(pod));
                }
                Step::Del(node, address) => {
                    let cidr = agents[node].journal.keys().nth(address).copied();
                    cidr.and_then(|cidr| agents[node].journal.remove(&cidr));
                }
                Step::Sees(node) => agents[node].sees(names[node], &snapshot),
                Step::Tells(node) => agents[node].tells(names[node], &mut snapshot),
                Step::Plans => snapshot = applied(snapshot),
            }
            let held: Vec<&IpNet> = agents.iter().flat_map(|agent| agent.journal.keys()).collect();
            let once: BTreeSet<&IpNet> = held.iter().copied().collect();
            prop_assert_eq!(held.len(), once.len(), "an address is held twice: {:?}", &agents);
            for (node, agent) in agents.iter().enumerate() {
                for cidr in agent.journal.keys() {
                    let block = snapshot.blocks.values().filter_map(|seen| seen.value.as_ref().ok()).find(|block| block.cidr == *cidr);
                    prop_assert!(block.is_some_and(|block| block.node == names[node]), "{} is in use on {}", cidr, names[node]);
                }
            }
        }
    }
}
