// SPDX-License-Identifier: Apache-2.0
//! Pods of another plugin, with ours behind it: Debian's `ptp` and `bridge`, which make links, give addresses and masquerade.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use isthmus_api::v1alpha1::{Allocation, IPPoolSpec};
use isthmus_intake::node::NodeObjects;
use isthmus_testkit::{Lab, Namespace, within};
use serde_json::{Value, json};

use crate::agent::{TestNode, add_pool, api_node, cluster, two_nodes};
use crate::egress::{OUTSIDE, know_pod, labels, outside, policy};
use crate::peers::{join_as, tunnels_up};

const SOON: Duration = Duration::from_secs(10);
const PLUGINS: &str = "/usr/lib/cni";

/// A plugin of Debian's that comes first, and its configuration.
struct Primary {
    kind: &'static str,
    config: Value,
}

impl Primary {
    fn new(kind: &'static str, node: &TestNode) -> Self {
        let own = match kind {
            "bridge" => json!({ "bridge": "cni0", "isGateway": true }),
            _ => json!({}),
        };
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": kind, "ipMasq": true,
            "ipam": { "type": "host-local", "dataDir": node.path("leases"),
                "ranges": [[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:244::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] },
        });
        config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        Self { kind, config }
    }

    /// One call; what it printed.
    #[track_caller]
    fn call(&self, node: &TestNode, command: &str, container: &str, pod: &Namespace) -> Value {
        let (path, netns) = (Path::new(PLUGINS).join(self.kind), pod.path());
        let (command, container, stdin) = (command.to_owned(), container.to_owned(), self.config.to_string());
        let output = node.namespace.run(move || {
            let mut child = Command::new(path)
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", container)
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", PLUGINS)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            child.stdin.take().expect("piped").write_all(stdin.as_bytes())?;
            child.wait_with_output()
        });
        let output = output.expect("the plugin of package containernetworking-plugins runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// ADD of both; the other plugin's result, which ours passed on.
    #[track_caller]
    fn add(&self, node: &TestNode, container: &str, pod: &Namespace) -> Value {
        let made = self.call(node, "ADD", container, pod);
        Self::join(node, container, pod, &made);
        made
    }

    /// ADD of ours after the other plugin's, whose result it passes on.
    #[track_caller]
    fn join(node: &TestNode, container: &str, pod: &Namespace, made: &Value) {
        let printed = within(SOON, || match node.call("ADD", container, Some(pod), &ours(made)) {
            (outcome, printed) if outcome.exit_code == 0 => Ok(printed),
            (_, printed) => Err(printed),
        });
        assert_eq!(printed, *made, "passed on as it came");
    }
}

/// The configuration of ours in the list, after a result.
fn ours(previous: &Value) -> String {
    json!({ "cniVersion": "1.0.0", "name": "pods", "type": "isthmus-cni", "prevResult": previous })
        .to_string()
}

fn gc(kept: &[&str]) -> String {
    let kept: Vec<Value> = kept.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
    json!({ "cniVersion": "1.1.0", "name": "pods", "cni.dev/valid-attachments": kept }).to_string()
}

const STATUS: &str = r#"{"cniVersion":"1.1.0","name":"pods","type":"isthmus-cni"}"#;

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

/// Pools of which another plugin gives addresses out, and the node's parts of them.
fn know_pools(objects: &mut NodeObjects) {
    objects.nodes.insert("n1".into(), api_node(&["172.18.0.1", "fd18::1"]));
    add_pool(objects, "four", "10.244.0.0/16", &[("10.244.1.0/24", "n1")]);
    add_pool(objects, "six", "fd00:244::/48", &[("fd00:244::/64", "n1")]);
    for pool in objects.pools.values_mut() {
        pool.spec = IPPoolSpec { allocation: Allocation::PodCIDRs, ..pool.spec.clone() };
    }
}

fn sets(node: &TestNode) -> String {
    node.namespace.sh("nft list table inet isthmus")
}

/// Whoever comes with another source is not heard.
fn hears_only(pod: &Namespace, sources: &[String]) {
    pod.sh(&format!(
        "nft add table inet t; nft 'add chain inet t in {{ type filter hook input priority 0; }}';
         nft add rule inet t in icmp type echo-request ip saddr != {} drop;
         nft add rule inet t in icmpv6 type echo-request ip6 saddr != {} drop",
        sources[0], sources[1]
    ));
}

async fn a_chained_pod_lives(kind: &'static str, lab: &'static str) {
    let Some(lab) = Lab::new(lab) else { return };
    let [mut east, west] = two_nodes(&lab);
    join_as(&east, &west, know_pools, ["10.244.1.0", "fd00:244::"], ["10.244.0.0/16", "fd00:244::/48"]);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    let primary = Primary::new(kind, &east);
    let made = primary.add(&east, "a", &a);
    let (from, to) = (addresses(&made), west.add("b", &b));
    hears_only(&b, &from);
    tunnels_up(&east, 1);
    tunnels_up(&west, 1);
    for target in &to {
        within(SOON, || a.ping(target).map_err(|error| format!("{error:#}\n{}", sets(&east))));
    }
    for source in &from {
        within(SOON, || b.ping(source).map_err(|error| format!("{error:#}")));
    }

    east.kill_agent().await;
    east.start_agent();
    within(SOON, || match east.call("STATUS", "", None, STATUS) {
        (outcome, _) if outcome.exit_code == 0 => Ok(()),
        (_, printed) => Err(printed),
    });
    assert!(sets(&east).contains(&from[0]), "the next agent knows the pod: {}", sets(&east));
    a.ping(&to[0]).unwrap();
    let check = |of: &TestNode| of.call("CHECK", "a", Some(&a), &ours(&made));
    assert_eq!(check(&east).0.exit_code, 0, "{}", check(&east).1);
    a.sh(&format!("ip addr del {}/24 dev eth0", from[0]));
    let (outcome, printed) = check(&east);
    assert!(outcome.exit_code == 1 && printed["msg"].as_str().unwrap().contains(&from[0]), "{printed}");
    a.sh(&format!("ip addr add {}/24 dev eth0", from[0]));
    assert_eq!(check(&east).0.exit_code, 0);

    let other = lab.namespace("other");
    let stays = primary.call(&east, "ADD", "other", &other);
    // As one that was there before Isthmus.
    for target in addresses(&stays) {
        within(SOON, || b.ping(&target).map_err(|error| format!("{error:#}")));
    }
    Primary::join(&east, "other", &other, &stays);
    assert_eq!(east.call("GC", "", None, &gc(&["other"])).0.exit_code, 0);
    assert_eq!(check(&east).1["code"], 3, "GC forgot it");
    let known = sets(&east);
    assert!(!known.contains(&from[0]) && known.contains(&addresses(&stays)[0]), "{known}");
    for _ in 0..2 {
        let (outcome, printed) = east.call("DEL", "other", Some(&other), &ours(&stays));
        assert_eq!((outcome.exit_code, outcome.stdout.len()), (0, 0), "{printed}");
    }
    assert!(!sets(&east).contains(&addresses(&stays)[0]));
    primary.call(&east, "DEL", "other", &other);
    primary.call(&east, "DEL", "a", &a);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_ptp_is_known_from_add_to_del_and_talks_to_a_peer_with_its_own_address() {
    a_chained_pod_lives("ptp", "chained-ptp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_bridge_is_known_from_add_to_del_and_talks_to_a_peer_with_its_own_address() {
    a_chained_pod_lives("bridge", "chained-bridge").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chained_pod_with_a_link_of_its_own_cannot_borrow_an_address_and_check_sees_a_port_moved() {
    let Some(lab) = Lab::new("chained-guard") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(know_pools);
    let (a, b, c) = (lab.namespace("a"), lab.namespace("b"), lab.namespace("c"));
    let primary = Primary::new("ptp", &one);
    primary.add(&one, "a", &a);
    let target = addresses(&primary.add(&one, "b", &b)).remove(0);
    a.ping(&target).unwrap();
    a.sh("ip addr add 10.244.1.77/32 dev eth0");
    assert!(a.try_sh(&format!("ping -n -c 1 -W 1 -I 10.244.1.77 {target}")).is_err());
    let dropped = sets(&one);
    let counter =
        dropped.lines().find(|line| line.contains("chained pod's own") && !line.contains("packets 0"));
    assert!(counter.is_some(), "{dropped}");
    let bridged = Primary::new("bridge", &one).add(&one, "c", &c);
    let port = bridged["interfaces"][1]["name"].as_str().unwrap().to_owned();
    one.namespace.sh(&format!("ip link set {port} nomaster"));
    let (_, printed) = one.call("CHECK", "c", Some(&c), &ours(&bridged));
    assert!(printed["msg"].as_str().unwrap().contains("in cni0"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_veth_pair_to_the_node_is_refused_with_its_kind() {
    let Some(lab) = Lab::new("chained-foreign") else { return };
    let [one, _two] = two_nodes(&lab);
    let pod = lab.namespace("pod");
    pod.sh("ip link add eth0 type bridge; ip addr add 10.244.1.9/24 dev eth0; ip link set eth0 up");
    let result = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.244.1.9/24" }] });
    let refused = |code: u32, words: &str| {
        within(SOON, || match one.call("ADD", "x", Some(&pod), &ours(&result)).1 {
            printed if printed["code"] == code && printed["msg"].as_str().unwrap().contains(words) => Ok(()),
            printed => Err(printed),
        });
    };
    one.know(cluster);
    refused(11, "no IPPool says that another plugin gives addresses out");
    one.know(|objects| {
        objects.blocks.clear();
        objects.pools.clear();
        know_pools(objects);
    });
    refused(7, "of the kind bridge");
    pod.sh(
        "ip link del eth0; ip link add eth0 type veth peer name other; ip addr add 10.244.1.9/24 dev eth0",
    );
    refused(7, "veth pair to the node");
    pod.sh("ip addr del 10.244.1.9/24 dev eth0");
    refused(100, "has no address 10.244.1.9");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chained_pod_under_an_egress_policy_leaves_by_its_gateway_and_its_neighbour_does_not() {
    let Some(lab) = Lab::new("chained-egress") else { return };
    let [one, two] = two_nodes(&lab);
    let _outside = outside(&lab, &two.namespace);
    let know = |objects: &mut NodeObjects| {
        know_pools(objects);
        objects.nodes.insert("n2".into(), api_node(&["172.18.0.2", "fd18::2"]));
        objects.egress.insert("fixed".into(), policy(Some("n2")));
        know_pod(objects, "billing", labels());
        know_pod(objects, "other", None);
    };
    one.know(know);
    two.know(know);
    // As the other plugin's own routing between nodes.
    two.namespace.sh("ip route add 10.244.1.0/24 via 172.18.0.1");
    one.namespace.sh("ip route add default via 172.18.0.2");
    let translates = || two.namespace.sh("nft list ruleset").contains("snat ip to 203.0.113.200");
    within(SOON, || if translates() { Ok(()) } else { Err("no egress address on the gateway") });
    // Both come by one bridge: they are told by their addresses.
    let primary = Primary::new("bridge", &one);
    let (billing, other) = (lab.namespace("billing"), lab.namespace("other"));
    primary.add(&one, "billing", &billing);
    primary.add(&one, "other", &other);
    within(SOON, || billing.ping(OUTSIDE).map_err(|error| format!("{error:#}\n{}", sets(&one))));
    assert!(other.ping(OUTSIDE).is_err(), "a pod that is not selected keeps its node's address");
}
