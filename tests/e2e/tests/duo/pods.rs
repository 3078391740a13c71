// SPDX-License-Identifier: Apache-2.0
//! Pods reach pods.

use isthmus_e2e::{EAST, Pod, WEST, duo, other, peered, pod, within};
use std::time::Duration;

/// `from` gets `to`'s own name from it, by both address families.
#[track_caller]
fn reaches(from: &Pod, to: &Pod) {
    for address in to.addresses() {
        let answer = within(Duration::from_secs(10), || {
            from.get(address, "/hostname").map_err(|error| format!("{error:#}"))
        });
        assert_eq!(answer, to.name, "asked {address}");
    }
}

#[test]
fn pods_on_one_node_reach_each_other_over_ipv4_and_ipv6() {
    let Some(_duo) = duo() else { return };
    let (one, two) = (pod(EAST, "one"), pod(EAST, "two"));

    assert_eq!(one.node, two.node);
    reaches(&one, &two);
    reaches(&two, &one);
}

#[test]
fn pods_on_different_nodes_of_a_cluster_reach_each_other_over_ipv4_and_ipv6() {
    let Some(_duo) = duo() else { return };
    for cluster in [EAST, WEST] {
        let (one, three) = (pod(cluster, "one"), pod(cluster, "three"));

        assert_ne!(one.node, three.node);
        reaches(&one, &three);
        reaches(&three, &one);
    }
}

#[test]
fn pods_of_different_clusters_reach_each_other_over_ipv4_and_ipv6() {
    let Some(_duo) = peered() else { return };
    for (from, to) in [("one", "one"), ("one", "three"), ("three", "one"), ("three", "three")] {
        reaches(&pod(EAST, from), &pod(WEST, to));
        reaches(&pod(WEST, from), &pod(EAST, to));
    }
}

#[test]
fn a_pod_is_seen_with_its_own_address_in_the_other_cluster() {
    let Some(_duo) = peered() else { return };
    for cluster in [EAST, WEST] {
        let (from, to) = (pod(cluster, "three"), pod(other(cluster), "one"));

        let seen = from.get(&to.ipv4, "/clientip").expect("an answer over IPv4");
        assert!(seen.starts_with(&format!("{}:", from.ipv4)), "{seen} instead of {}", from.ipv4);
        let seen = from.get(&to.ipv6, "/clientip").expect("an answer over IPv6");
        assert!(seen.starts_with(&format!("[{}]:", from.ipv6)), "{seen} instead of {}", from.ipv6);
    }
}

#[test]
fn a_pod_reaches_the_world_outside_with_its_nodes_address() {
    let Some(_duo) = duo() else { return };
    // The other cluster's API server is outside of pods' networks: its node answers on its own address.
    let (from, to) = (pod(EAST, "one"), pod(WEST, "one"));
    let outside = isthmus_e2e::on_node("west-control-plane", "hostname -I", &[]).expect("addresses");
    let outside = outside.split_whitespace().next().expect("an address").to_owned();

    let answer = from
        .run(&["curl", "-ksS", "-m", "5", &format!("https://{outside}:6443/version")])
        .expect("an answer");

    assert!(answer.contains("gitVersion"), "{answer}");
    assert_ne!(from.node, to.node);
}
