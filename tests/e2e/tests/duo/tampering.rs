// SPDX-License-Identifier: Apache-2.0
//! Somebody else's hands in the kernel: repaired, and nothing leaks meanwhile.

use std::time::{Duration, Instant};

use isthmus_e2e::{Capture, EAST, Flow, NODES, Tally, WEST, json, kubectl, on_node, peered, pod, within};

/// Words that the pings' payload is filled with (`-p`, in hex: "caninecanary").
const CANARY: &str = "caninecanary";
const CANARY_HEX: &str = "63616e696e6563616e617279";

#[test]
fn a_foreign_flush_of_nftables_loses_nothing_and_leaks_nothing() {
    let Some(_duo) = peered() else { return };
    let (from, to) = (pod(EAST, "one"), pod(WEST, "three"));
    let capture = Capture::between_clusters("flush");
    let flow = Flow::start_with(&from, &to.ipv4, &["-p", CANARY_HEX]);
    let before = on_node(&from.node, "nft list table inet isthmus", &[]).expect("our table");

    // kube-proxy's and Docker's rules of the node go too, as with any such flush; Docker's are put back here.
    on_node(
        &from.node,
        "set -e; iptables-save > /run/e2e-rules; nft flush ruleset; iptables-restore < /run/e2e-rules",
        &[],
    )
    .expect("a flush");

    let after = on_node(&from.node, "nft list table inet isthmus", &[]).expect("our table is still there");
    flow.stop().nothing_lost();
    assert!(!capture.holds(CANARY), "pods' words were readable on the wire");
    assert_eq!(before.lines().count(), after.lines().count(), "before:\n{before}\nafter:\n{after}");
    kubectl(EAST, &["-n", "kube-system", "rollout", "restart", "daemonset/kube-proxy"])
        .expect("kube-proxy starts anew");
    kubectl(EAST, &["-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=90s"])
        .expect("kube-proxy is back");
    let api = json(EAST, &["-n", "default", "service", "kubernetes"]).expect("the Service of the API server");
    let url = format!("https://{}/version", api["spec"]["clusterIP"].as_str().unwrap_or_default());
    for node in NODES.into_iter().filter(|node| node.starts_with(EAST)) {
        within(Duration::from_secs(30), || {
            on_node(node, "curl -sk -m 3 -o /dev/null \"$1\"", &[&url])
                .map_err(|error| format!("{url} from {node}: {error:#}"))
        });
    }
}

#[test]
fn deleted_routes_are_back_within_a_second_lose_nothing_and_leak_nothing() {
    let Some(_duo) = peered() else { return };
    for (name, table) in [("main", "main"), ("copies", "7399")] {
        let (took, tally) = routes_deleted(name, table);
        assert!(took < Duration::from_secs(1), "the routes of table {table} were back after {took:?}");
        tally.nothing_lost();
    }
}

#[test]
fn with_every_route_deleted_at_once_nothing_is_readable_until_they_are_back() {
    let Some(_duo) = peered() else { return };
    let (took, tally) = routes_deleted("all", "all");
    assert!(took < Duration::from_secs(1), "the routes were back after {took:?}");
    assert!(tally.longest_gap < Duration::from_secs(1), "traffic stood still for {:?}", tally.longest_gap);
}

/// Deletes all routes of ours in a table under traffic to the other cluster: how long until they are back, and what was
/// lost meanwhile.
fn routes_deleted(name: &str, table: &str) -> (Duration, Tally) {
    let (from, to) = (pod(EAST, "one"), pod(WEST, "three"));
    let all =
        || on_node(&from.node, "for f in -4 -6; do ip $f route show proto 73 table all | sort; done", &[]);
    let wanted = all().expect("routes");
    assert!(wanted.lines().count() > 8, "{wanted}");
    let capture = Capture::between_clusters(&format!("routes-{name}"));
    let flow = Flow::start_with(&from, &to.ipv4, &["-p", CANARY_HEX]);

    on_node(&from.node, "for f in -4 -6; do ip $f route flush proto 73 table \"$1\"; done", &[table])
        .expect("routes are deleted");
    let deleted = Instant::now();
    within(Duration::from_secs(10), || match all() {
        Ok(seen) if seen == wanted => Ok(()),
        seen => Err(format!("routes are {seen:?}, wanted {wanted:?}")),
    });
    let took = deleted.elapsed();

    let tally = flow.stop();
    assert!(!capture.holds(CANARY), "pods' words were readable on the wire");
    (took, tally)
}

#[test]
fn a_deleted_tunnel_device_is_back_and_carries_traffic() {
    let Some(_duo) = peered() else { return };
    let (from, to) = (pod(EAST, "one"), pod(WEST, "three"));
    let tunnels = || on_node("east-worker", "ip -o link show | grep -o 'iw-[0-9a-f]*' | sort -u", &[]);
    let wanted = tunnels().expect("tunnels");
    let first = wanted.lines().next().expect("a tunnel device").to_owned();

    on_node("east-worker", "ip link delete \"$1\"", &[&first]).expect("a tunnel device is deleted");
    within(Duration::from_secs(20), || match tunnels() {
        Ok(seen) if seen == wanted => Ok(()),
        seen => Err(format!("{seen:?}, wanted {wanted}")),
    });
    within(Duration::from_secs(20), || from.get(&to.ipv4, "/hostname").map_err(|error| format!("{error:#}")));
}
