// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;

use isthmus_api::v1alpha1::{BlockUsage, ClusterPeeringStatus, NodeNetworkStatus};
use jiff::Timestamp;
use kube::core::Selector;
use proptest::prelude::*;

use super::*;
use crate::pools;
use crate::snapshot::{Node, Peering, Problem, Seen};
use crate::testing::{seen, seen_with};

fn pool(cidr: &str, block_prefix: u8) -> Pool {
    Pool {
        cidr: cidr.parse().unwrap(),
        block_prefix,
        nodes: Selector::default(),
        disabled: false,
        allocation: Allocation::Isthmus,
        namespaces: None,
        reserved: Vec::new(),
        on_request: Vec::new(),
        set_aside: Vec::new(),
    }
}

fn cluster(nodes: &[&str], pools: &[(&str, Pool)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for name in nodes {
        let labels = BTreeMap::from([("name".to_owned(), (*name).to_owned())]);
        snapshot.nodes.insert((*name).to_owned(), Node { labels, ready: true, ..Node::default() });
    }
    for (age, (name, pool)) in pools.iter().enumerate() {
        snapshot.pools.insert((*name).to_owned(), seen(pool.clone(), age as i64));
    }
    snapshot
}

fn assigned(snapshot: &Snapshot) -> Blocks {
    assign(snapshot, &pools::usable(snapshot))
}

/// The cluster once the plan has been applied.
fn applied(mut snapshot: Snapshot) -> Snapshot {
    let blocks = assigned(&snapshot);
    snapshot.blocks = blocks.held.into_iter().map(|(name, block)| (name, seen(block, 0))).collect();
    snapshot
}

fn report(snapshot: &mut Snapshot, node: &str, usages: &[(&str, i64)]) {
    let blocks =
        usages.iter().map(|(cidr, allocated)| BlockUsage { cidr: (*cidr).into(), allocated: *allocated });
    let status = NodeNetworkStatus { blocks: blocks.collect(), ..NodeNetworkStatus::default() };
    let mut network: Seen<(), NodeNetworkStatus> = seen((), 0);
    network.status = status;
    snapshot.node_networks.insert(node.to_owned(), network);
}

fn names(blocks: &Blocks) -> Vec<(&str, &str)> {
    blocks.held.iter().map(|(name, block)| (name.as_str(), block.node.as_str())).collect()
}

#[test]
fn what_is_reserved_of_a_block_is_no_pods() {
    let usable = |reserved: &[&str]| {
        let reserved = reserved.iter().map(|range| range.parse().unwrap()).collect();
        usable_addresses(
            &"10.1.0.0/29".parse().unwrap(),
            &Pool { set_aside: reserved, ..pool("10.1.0.0/16", 29) },
        )
    };
    assert_eq!(usable(&[]), 7);
    assert_eq!(usable(&["10.1.0.0/30"]), 4, "the node's own is among them");
    assert_eq!(usable(&["10.1.0.4/30", "10.9.0.0/16"]), 3);
    assert_eq!(usable(&["10.1.0.0/24"]), 0);
}

#[test]
fn every_node_gets_the_lowest_free_block_of_each_pool_at_once() {
    let snapshot =
        cluster(&["a", "b"], &[("v4", pool("10.1.0.0/16", 26)), ("v6", pool("fd00:10:1::/56", 122))]);
    assert_eq!(
        names(&assigned(&snapshot)),
        [
            ("v4-10-1-0-0-26", "a"),
            ("v4-10-1-0-64-26", "b"),
            ("v6-fd00-10-1---122", "a"),
            ("v6-fd00-10-1--40-122", "b"),
        ]
    );
}

#[test]
fn planning_again_after_applying_changes_nothing() {
    let once = applied(cluster(&["a", "b", "c"], &[("v4", pool("10.1.0.0/24", 26))]));
    let twice = applied(once.clone());
    assert_eq!(once.blocks.keys().collect::<Vec<_>>(), twice.blocks.keys().collect::<Vec<_>>());
}

#[test]
fn a_node_with_fewer_than_sixteen_free_addresses_gets_a_further_block() {
    let mut snapshot = applied(cluster(&["a"], &[("v4", pool("10.1.0.0/16", 26))]));
    report(&mut snapshot, "a", &[("10.1.0.0/26", 47)]);
    assert_eq!(assigned(&snapshot).held.len(), 1, "16 are free");
    report(&mut snapshot, "a", &[("10.1.0.0/26", 48)]);
    assert_eq!(names(&assigned(&snapshot)), [("v4-10-1-0-0-26", "a"), ("v4-10-1-0-64-26", "a")]);
}

#[test]
fn the_block_of_a_node_that_is_gone_is_released_and_can_be_given_again() {
    let mut snapshot = applied(cluster(&["a", "b"], &[("v4", pool("10.1.0.0/25", 26))]));
    snapshot.nodes.remove("a");
    let blocks = assigned(&snapshot);
    assert_eq!(names(&blocks), [("v4-10-1-0-64-26", "b")]);
    assert_eq!(blocks.released, BTreeSet::from(["v4-10-1-0-0-26".to_owned()]));
}

#[test]
fn a_block_in_use_survives_its_pool_and_an_empty_one_does_not() {
    let mut snapshot = applied(cluster(&["a", "b"], &[("v4", pool("10.1.0.0/25", 26))]));
    report(&mut snapshot, "a", &[("10.1.0.0/26", 3)]);
    report(&mut snapshot, "b", &[("10.1.0.64/26", 0)]);
    snapshot.pools.clear();
    assert_eq!(names(&assigned(&snapshot)), [("v4-10-1-0-0-26", "a")]);
}

#[test]
fn a_pool_without_a_free_block_names_the_nodes_that_went_without() {
    let snapshot = cluster(&["a", "b", "c"], &[("v4", pool("10.1.0.0/25", 26))]);
    let wanting = assigned(&snapshot).wanting;
    assert_eq!(wanting, BTreeMap::from([("v4".to_owned(), BTreeSet::from(["c".to_owned()]))]));
    let plan = crate::plan(&snapshot);
    let status = &plan.statuses[&ObjectKey::cluster(Kind::IpPool, "v4")];
    let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["reason"], "Exhausted");
    assert!(ready["message"].as_str().unwrap().contains("such as c; create another IPPool"), "{ready}");
}

#[test]
fn of_two_overlapping_pools_the_younger_gives_nothing_and_says_why() {
    let snapshot = cluster(&["a"], &[("old", pool("10.1.0.0/16", 26)), ("new", pool("10.1.4.0/24", 26))]);
    assert_eq!(names(&assigned(&snapshot)), [("old-10-1-0-0-26", "a")]);
    let problem = pools::usable(&snapshot).remove("new").unwrap().unwrap_err();
    assert_eq!(problem.reason, "Overlap");
    assert!(problem.message.contains("IPPool old"), "{}", problem.message);
}

/// A node's address in 10.1.0.0/16, Services in 10.3.0.0/16, a peer's pods in 10.2.0.0/16 since second 5.
fn occupied(pools: &[(&str, Pool)]) -> Snapshot {
    let mut snapshot = cluster(&["a"], pools);
    snapshot.nodes.get_mut("a").unwrap().addresses = vec!["10.1.0.9".parse().unwrap()];
    snapshot.cluster.service_cidrs = vec!["10.3.0.0/16".parse().unwrap()];
    let status = ClusterPeeringStatus { remote_cidrs: vec!["10.2.0.0/16".into()], ..Default::default() };
    let wish = Err(Problem { reason: "X", message: String::new() });
    let mut peering: Seen<Peering, _> = seen_with(wish, status);
    peering.created = Timestamp::from_second(5).unwrap();
    snapshot.peerings.insert("west".to_owned(), peering);
    for seen in snapshot.pools.values_mut() {
        seen.created = Timestamp::from_second(9).unwrap();
    }
    snapshot
}

#[test]
fn a_new_pool_never_takes_addresses_of_a_node_a_service_or_a_peer() {
    for (cidr, reason, named) in [
        ("10.1.0.0/16", "HoldsNodeAddress", "node a"),
        ("10.2.4.0/24", "OverlapsPeer", "ClusterPeering west"),
        ("10.3.0.0/24", "OverlapsServices", "10.3.0.0/16"),
    ] {
        let snapshot = occupied(&[("new", pool(cidr, 26))]);
        assert!(assigned(&snapshot).held.is_empty(), "{cidr}");
        let problem = pools::usable(&snapshot).remove("new").unwrap().unwrap_err();
        assert_eq!(problem.reason, reason);
        assert!(problem.message.contains(named), "{}", problem.message);
    }
}

#[test]
fn a_pool_in_use_stays_in_force_when_a_node_comes_with_one_of_its_addresses() {
    let mut snapshot = applied(cluster(&["a"], &[("v4", pool("10.1.0.0/16", 26))]));
    snapshot.nodes.get_mut("a").unwrap().addresses = vec!["10.1.0.9".parse().unwrap()];
    assert!(pools::usable(&snapshot)["v4"].is_ok());
    assert_eq!(names(&assigned(&snapshot)), [("v4-10-1-0-0-26", "a")]);
}

#[test]
fn another_plugins_pool_in_force_stays_when_a_node_comes_with_one_of_its_addresses() {
    let external = Pool { allocation: Allocation::External, ..pool("10.1.0.0/16", 26) };
    for ready in [false, true] {
        let mut snapshot = occupied(&[("p", external.clone())]);
        let conditions = &mut snapshot.pools.get_mut("p").unwrap().status.conditions;
        *conditions = conditions::updated(
            &[],
            &[is(READY, ready, "X", "")],
            Progress::Settled,
            None,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(pools::usable(&snapshot)["p"].is_ok(), ready);
    }
}

#[test]
fn a_pool_whose_selector_matches_no_node_says_so() {
    let mut picky = pool("10.1.0.0/16", 26);
    picky.nodes = Selector::from_iter([("name".to_owned(), "z".to_owned())]);
    let plan = crate::plan(&cluster(&["a"], &[("v4", picky)]));
    let status = &plan.statuses[&ObjectKey::cluster(Kind::IpPool, "v4")];
    let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!((&ready["status"], &ready["reason"]), (&"False".into(), &"NoNode".into()));
    assert!(ready["message"].as_str().unwrap().contains("label one"), "{ready}");
}

#[test]
fn a_malformed_pool_stops_no_other_pool() {
    let mut snapshot = cluster(&["a"], &[("good", pool("10.1.0.0/16", 26))]);
    let mut bad: Seen<Pool, _> = seen(pool("10.9.0.0/16", 26), 0);
    bad.value = Err(Problem { reason: "InvalidCIDR", message: "no".to_owned() });
    snapshot.pools.insert("bad".to_owned(), bad);
    assert_eq!(names(&assigned(&snapshot)), [("good-10-1-0-0-26", "a")]);
}

#[test]
fn a_pool_for_other_nodes_gives_this_node_nothing() {
    let mut picky = pool("10.1.0.0/16", 26);
    picky.nodes = Selector::from_iter([("name".to_owned(), "b".to_owned())]);
    let snapshot = cluster(&["a", "b"], &[("v4", picky)]);
    assert_eq!(names(&assigned(&snapshot)), [("v4-10-1-0-0-26", "b")]);
}

proptest! {
    #[test]
    fn no_two_blocks_ever_overlap_and_all_lie_in_their_pool(
        nodes in prop::collection::btree_set("[a-e]{1,2}", 1..8),
        used in prop::collection::vec(0i64..64, 8),
        prefix in 24u8..30,
        rounds in 1usize..4,
    ) {
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let mut snapshot = cluster(&nodes, &[("v4", pool("10.0.0.0/22", prefix)), ("v6", pool("fd00::/118", 122))]);
        for _ in 0..rounds {
            snapshot = applied(snapshot);
            for (index, node) in nodes.iter().enumerate() {
                let mine: Vec<(String, i64)> = snapshot.blocks.values()
                    .filter_map(|seen| seen.value.as_ref().ok())
                    .filter(|block| block.node == **node)
                    .map(|block| (block.cidr.to_string(), used[index]))
                    .collect();
                let mine: Vec<(&str, i64)> = mine.iter().map(|(cidr, used)| (cidr.as_str(), *used)).collect();
                report(&mut snapshot, node, &mine);
            }
        }
        let blocks: Vec<Block> = assigned(&snapshot).held.into_values().collect();
        for (at, block) in blocks.iter().enumerate() {
            let Ok(pool) = &snapshot.pools[&block.pool].value else { unreachable!() };
            prop_assert!(pool.cidr.contains(&block.cidr));
            for other in &blocks[at + 1..] {
                prop_assert!(!overlap(&block.cidr, &other.cidr), "{block:?} and {other:?}");
            }
        }
    }
}

#[test]
fn another_plugins_pool_gives_nodes_their_pod_cidrs_as_blocks_or_nothing() {
    for (allocation, held) in [(Allocation::PodCIDRs, vec!["10.244.1.0/24"]), (Allocation::External, vec![])]
    {
        let mut snapshot = cluster(&["a", "b"], &[("p", Pool { allocation, ..pool("10.244.0.0/16", 26) })]);
        let cidrs = ["10.244.1.0/24", "10.9.0.0/24", "fd00::/64"];
        snapshot.nodes.get_mut("a").unwrap().pod_cidrs = cidrs.map(|cidr| cidr.parse().unwrap()).into();
        let blocks = assign(&snapshot, &pools::usable(&snapshot));
        let cidrs: Vec<String> = blocks.held.values().map(|block| block.cidr.to_string()).collect();
        assert_eq!(cidrs, held, "{allocation:?}");
        assert!(blocks.held.values().all(|block| block.node == "a") && blocks.wanting.is_empty());
    }
}

#[test]
fn a_pod_cidr_that_is_another_nodes_now_is_no_block_of_the_first() {
    let its = |snapshot: &mut Snapshot, node: &str, cidrs: &[&str]| {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        snapshot.nodes.get_mut(node).unwrap().pod_cidrs = cidrs;
    };
    let theirs = Pool { allocation: Allocation::PodCIDRs, ..pool("10.244.0.0/16", 26) };
    let mut snapshot = cluster(&["a", "b"], &[("p", theirs)]);
    its(&mut snapshot, "a", &["10.244.1.0/24"]);
    let mut snapshot = applied(snapshot);
    report(&mut snapshot, "a", &[("10.244.1.0/24", 3)]);
    assert_eq!(names(&assigned(&snapshot)), [("p-10-244-1-0-24", "a")]);

    its(&mut snapshot, "a", &["10.244.2.0/24"]);
    assert_eq!(names(&assigned(&snapshot)), [("p-10-244-2-0-24", "a")], "whatever it reports");
    its(&mut snapshot, "b", &["10.244.1.0/24"]);
    let mut moved = applied(snapshot);
    assert_eq!(names(&assigned(&moved)), [("p-10-244-1-0-24", "b"), ("p-10-244-2-0-24", "a")]);

    let picky = Selector::from_iter([("name".to_owned(), "a".to_owned())]);
    moved.node_networks.clear();
    moved.pools.get_mut("p").unwrap().value.as_mut().unwrap().nodes = picky;
    assert_eq!(names(&assigned(&moved)), [("p-10-244-2-0-24", "a")], "b reports nothing of it");
}
