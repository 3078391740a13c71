// SPDX-License-Identifier: Apache-2.0
//! What a user sees on two peered kind clusters whose CNI plugin is another one: Debian's `bridge` in east, `ptp` in west.
//! Run with `--test-threads=1`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isthmus_e2e::{
    CLUSTERS, EAST, Flow, NODES, Pod, WEST, chained, delete, exec, json, kubectl, leaves_by_policy, on_node,
    other, pod, processes_killed, within,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// CoreDNS runs before Isthmus does here. The kubelet brings it the changed Corefile within some 90 s, and it looks for another one every 30 to 45 s.
const COREFILE_READ: Duration = Duration::from_secs(180);
const PODS: [&str; 3] = ["one", "two", "three"];

/// The cluster that a node is of.
fn cluster(node: &str) -> &'static str {
    if node.starts_with(EAST) { EAST } else { WEST }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[track_caller]
fn reaches(from: &Pod, to: &Pod) {
    for address in to.addresses() {
        let ask = || from.get(address, "/hostname").map_err(|error| format!("{error:#}"));
        assert_eq!(within(SOON, ask), to.name, "asked {address}");
    }
}

#[test]
fn the_other_plugins_list_stays_as_it_is_and_isthmus_comes_behind_it() {
    let Some(_duo) = chained() else { return };
    for node in NODES {
        let read = |name: &str| on_node(node, "cat /etc/cni/net.d/$1", &[name]).unwrap();
        let (primary, ours) = (parsed(&read("10-primary.conflist")), parsed(&read("00-isthmus.conflist")));
        let kind = if cluster(node) == EAST { "bridge" } else { "ptp" };
        assert_eq!(
            (&primary["plugins"][0]["type"], primary["plugins"].as_array().map(Vec::len)),
            (&kind.into(), Some(2))
        );
        let mut expected = primary.clone();
        expected["plugins"].as_array_mut().unwrap().push(json!({ "type": "isthmus-cni" }));
        assert_eq!(ours, expected, "{node}");
    }
}

#[test]
fn pods_have_the_links_and_addresses_that_the_other_plugin_gave_them_and_containerd_its_result() {
    let Some(_duo) = chained() else { return };
    for (cluster, name) in CLUSTERS.into_iter().flat_map(|cluster| PODS.map(|name| (cluster, name))) {
        let pod = pod(cluster, name);
        for address in pod.addresses() {
            let reserved = on_node(&pod.node, "head -n 1 \"/var/lib/cni/networks/primary/$1\"", &[address])
                .unwrap_or_else(|error| panic!("{name} has {address}, and not by host-local: {error:#}"));
            // What the last plugin of the list printed, as the Go library keeps it for DEL.
            let kept = format!("/var/lib/cni/results/primary-{}-eth0", reserved.trim());
            let kept = parsed(&on_node(&pod.node, "cat \"$1\"", &[&kept]).unwrap());
            let ips: BTreeSet<String> = kept["result"]["ips"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|ip| Some(ip["address"].as_str()?.split('/').next()?.to_owned()))
                .collect();
            assert_eq!(ips, pod.addresses().map(str::to_owned).into(), "{kept}");
            assert!(!kept["result"].to_string().contains("\"ist"), "a link of ours: {kept}");
        }
    }
    for node in NODES {
        let links = on_node(node, "ls /sys/class/net", &[]).unwrap();
        assert!(!links.split_whitespace().any(|name| name.starts_with("ist")), "{node}: {links}");
    }
}

#[test]
fn pods_reach_pods_on_their_node_on_others_and_in_the_other_cluster() {
    let Some(_duo) = chained() else { return };
    for cluster in CLUSTERS {
        let (one, three) = (pod(cluster, "one"), pod(cluster, "three"));
        reaches(&one, &pod(cluster, "two"));
        reaches(&one, &three);
        for name in ["one", "three"] {
            reaches(&one, &pod(other(cluster), name));
            reaches(&three, &pod(other(cluster), name));
        }
    }
}

#[test]
fn a_pod_is_seen_with_its_own_address_in_the_other_cluster_though_its_plugin_masquerades() {
    let Some(_duo) = chained() else { return };
    for cluster in CLUSTERS {
        let (from, to) = (pod(cluster, "three"), pod(other(cluster), "one"));
        for (address, own) in [(&to.ipv4, format!("{}:", from.ipv4)), (&to.ipv6, format!("[{}]:", from.ipv6))]
        {
            let seen = from.get(address, "/clientip").expect("an answer");
            assert!(seen.starts_with(&own), "{seen} instead of {own}");
        }
    }
}

#[test]
fn a_service_of_the_other_cluster_answers_by_its_name() {
    let Some(_duo) = chained() else { return };
    let client = Pod::find(EAST, "shop", "client").unwrap();
    let line = ["curl", "-sS", "--fail", "-m", "3", "http://web.shop.svc.clusterset.local/hostname"];
    let answer = within(COREFILE_READ, || client.exec(&line).map_err(|error| format!("{error:#}")));
    let web: Vec<String> =
        Pod::labelled(WEST, "shop", "app=web").unwrap().into_iter().map(|pod| pod.name).collect();
    assert!(web.contains(&answer), "{answer:?} is none of {web:?}");
}

#[test]
fn selected_pods_behind_the_bridge_leave_from_the_egress_address() {
    let Some(_duo) = chained() else { return };
    leaves_by_policy();
}

#[test]
fn traffic_flows_and_pods_come_and_go_while_agents_are_killed() {
    let Some(_duo) = chained() else { return };
    let (from, to) = (pod(EAST, "one"), pod(WEST, "three"));
    let flows = [Flow::start(&from, &to.ipv4), Flow::start(&from, &to.ipv6)];
    for node in [&from.node, &to.node] {
        processes_killed(node, "isthmus-agent").unwrap_or_else(|error| panic!("{error:#}"));
    }
    for (cluster, node) in [(EAST, &from.node), (WEST, &to.node)] {
        passer_by(cluster, node);
    }
    for flow in flows {
        flow.stop().nothing_lost();
    }
}

/// A pod comes, reaches the other cluster, and goes; its address is free again and its node has forgotten it.
#[track_caller]
fn passer_by(cluster: &str, node: &str) {
    let image = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: passer-by, namespace: e2e}}\nspec:\n  terminationGracePeriodSeconds: 0\n  nodeSelector: {{kubernetes.io/hostname: {node}}}\n  containers: [{{name: pod, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [pause]}}]\n"
    );
    isthmus_e2e::apply(cluster, &manifest).unwrap_or_else(|error| panic!("{error:#}"));
    let ready = ["-n", "e2e", "wait", "--for=condition=Ready", "pod/passer-by", "--timeout=90s"];
    kubectl(cluster, &ready).unwrap_or_else(|error| panic!("{error:#}"));
    let passer = pod(cluster, "passer-by");
    reaches(&passer, &pod(other(cluster), "two"));
    assert!(known(node).contains("passer-by"), "{:?}", known(node));
    delete(cluster, &["-n", "e2e", "pod", "passer-by"]).unwrap_or_else(|error| panic!("{error:#}"));
    for address in passer.addresses() {
        within(SOON, || {
            on_node(node, "test ! -e \"/var/lib/cni/networks/primary/$1\"", &[address])
                .map_err(|error| format!("host-local still has {address}: {error:#}"))
        });
    }
    assert!(!known(node).contains("passer-by"), "{:?}", known(node));
}

/// Names of the pods that a node's agent knows, as its journal has them.
#[track_caller]
fn known(node: &str) -> BTreeSet<String> {
    let journal = on_node(node, "cat /var/lib/isthmus/journal/chained", &[]).unwrap();
    let mut known = BTreeMap::new();
    for record in journal.lines().filter_map(|line| Some(parsed(line.split_once(' ')?.1))) {
        if let Some(joined) = record.get("Joined") {
            known.insert(
                joined["key"].to_string(),
                joined["pod"]["pod"].as_str().unwrap_or_default().to_owned(),
            );
        }
        if let Some(left) = record.get("Left") {
            known.remove(&left["key"].to_string());
        }
    }
    known.into_values().collect()
}

#[test]
fn the_clusters_are_well_by_their_status_and_their_addresses_agree() {
    let Some(_duo) = chained() else { return };
    for cluster in CLUSTERS {
        let asked = |words: &[&str]| {
            let line: Vec<&str> = ["isthmus", "--context", cluster].iter().chain(words).copied().collect();
            exec(&line).map_err(|error| format!("{error:#}"))
        };
        within(SOON, || asked(&["status"]));
        within(SOON, || asked(&["ipam", "check"]));
        for pool in ["primary-v4", "primary-v6"] {
            let pool = json(cluster, &["ippool", pool]).unwrap();
            assert_eq!(pool["spec"]["allocation"], "PodCIDRs");
        }
    }
}
