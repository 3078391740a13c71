// SPDX-License-Identifier: Apache-2.0
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of this kind")
}

fn conditions(entries: &[(&str, &str, &str, &str)]) -> Value {
    let one = |(kind, status, reason, message): &(&str, &str, &str, &str)| json!({ "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-11-24T08:00:00Z" });
    Value::Array(entries.iter().map(one).collect())
}

fn now() -> Timestamp {
    "2026-11-24T08:10:30Z".parse().expect("a time")
}

/// A peered cluster in which everything is as it shall be.
fn healthy() -> Facts {
    let ready = || conditions(&[("Ready", "True", "Ready", "")]);
    let tunnel = json!({
        "device": "iw-0123456789ab", "peering": "west", "gateway": "west-worker", "up": true, "endpoint": "172.18.0.6:51820",
        "lastHandshake": "2026-11-24T08:09:00Z", "rttMicros": 780, "lossPercent": 0, "mtu": 1420, "mode": "Userspace",
    });
    Facts {
        context: "east".to_owned(),
        cluster_id: Some("east".to_owned()),
        operator: Some(object(
            json!({ "metadata": { "name": "isthmus-operator" }, "status": { "replicas": 2, "readyReplicas": 2 } }),
        )),
        agent: Some(object(json!({ "metadata": { "name": "isthmus-agent" }, "status": {
            "currentNumberScheduled": 1, "numberMisscheduled": 0, "desiredNumberScheduled": 1, "numberReady": 1 } }))),
        nodes: vec![object(json!({ "metadata": { "name": "east-worker" } }))],
        networks: vec![object(
            json!({ "apiVersion": "isthmus.dev/v1alpha1", "kind": "NodeNetwork", "metadata": { "name": "east-worker" }, "spec": {},
            "status": { "conditions": ready(), "meshAddresses": ["10.1.0.64", "fd00:10:1::40"],
                "blocks": [{ "cidr": "10.1.0.64/26", "allocated": 3 }, { "cidr": "fd00:10:1::40/122", "allocated": 3 }], "tunnels": [tunnel] } }),
        )],
        pools: vec![object(
            json!({ "apiVersion": "isthmus.dev/v1alpha1", "kind": "IPPool", "metadata": { "name": "v4" }, "spec": { "cidr": "10.1.0.0/16" },
            "status": { "conditions": ready(), "blocks": 3, "allocated": 9, "capacity": "65536" } }),
        )],
        peerings: vec![object(
            json!({ "apiVersion": "isthmus.dev/v1alpha1", "kind": "ClusterPeering", "metadata": { "name": "west" }, "spec": {},
            "status": { "conditions": conditions(&[("Ready", "True", "Ready", ""), ("Connected", "True", "Connected", ""), ("Fresh", "True", "Fresh", "")]),
                "clusterID": "west", "remoteCIDRs": ["10.2.0.0/16"], "localGateways": ["east-worker"], "tunnels": "1/1" } }),
        )],
        exports: Vec::new(),
        imports: vec![object(
            json!({ "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport", "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "type": "ClusterSetIP", "ips": ["10.101.3.4"], "ports": [{ "port": 80 }] }, "status": { "clusters": [{ "cluster": "west" }] } }),
        )],
        ..Facts::default()
    }
}

#[test]
fn a_healthy_cluster_reads_like_this() {
    let expected = "\
cluster east (context east): operator 2/2 ready, agent 1/1 ready
All is ready.

NODE         READY  MESH ADDRESSES           BLOCKS  PODS' ADDRESSES
east-worker  yes    10.1.0.64,fd00:10:1::40  2       6

POOL  READY  CIDR         BLOCKS  USED
v4    yes    10.1.0.0/16  3       9/65536

PEERING  READY  CLUSTER  CONNECTED  FRESH  TUNNELS UP  REMOTE CIDRS  LOCAL GATEWAYS
west     yes    west     yes        yes    1/1         10.2.0.0/16   east-worker

TUNNEL FROM  TO           PEERING  STATE  RTT      LOSS  MTU   HANDSHAKE  ENDPOINT          MODE
east-worker  west-worker  west     up     0.78 ms  0%    1420  1 min      172.18.0.6:51820  Userspace

IMPORT                           TYPE          IP          FROM
web.shop.svc.clusterset.local    ClusterSetIP  10.101.3.4  west
";
    // The import's name column is as wide as its widest cell; keep the expectation free of that arithmetic.
    let squeezed = |text: &str| {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };

    assert_eq!(squeezed(&Report::of(&healthy(), now()).text()), squeezed(expected));
}

#[test]
fn tunnels_of_further_lanes_name_them_at_either_end() {
    let mut facts = healthy();
    let tunnels = &mut facts.networks[0].status.as_mut().expect("a status").tunnels;
    let (mut second, mut third) = (tunnels[0].clone(), tunnels[0].clone());
    (second.lane, second.remote_lane) = (Some(1), Some(1));
    third.remote_lane = Some(2);
    tunnels.extend([second, third]);
    let text = Report::of(&facts, now()).text();
    let ends = |line: &str| line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    let told: Vec<_> = text.lines().filter(|line| line.contains("172.18.0.6:")).map(ends).collect();
    assert_eq!(
        told,
        [
            ["east-worker", "west-worker"],
            ["east-worker/1", "west-worker/1"],
            ["east-worker", "west-worker/2"]
        ]
    );
}

#[test]
fn what_is_wrong_comes_before_what_is_there() {
    let mut facts = healthy();
    let status = facts.peerings[0].status.as_mut().expect("a status");
    status.conditions = object(conditions(&[(
        "Ready",
        "False",
        "Stale",
        "west was not heard for 42 s; is its operator running?",
    )]));
    status.refused = object(
        json!([{ "what": "cidr 10.9.0.0/16", "reason": "not within allowedCIDRs; add it to spec.allowedCIDRs if you want it" }]),
    );

    let text = Report::of(&facts, now()).text();
    let head: Vec<&str> = text.lines().take(4).collect();

    assert_eq!(
        head[1..],
        [
            "2 not as it shall be:",
            "  ! clusterpeering/west  Stale: west was not heard for 42 s; is its operator running?",
            "  ! clusterpeering/west  Refused: cidr 10.9.0.0/16: not within allowedCIDRs; add it to spec.allowedCIDRs if you want it",
        ]
    );
}

#[test]
fn a_tunnel_that_is_down_and_a_node_without_an_agent_are_problems() {
    let mut facts = healthy();
    facts.nodes.push(object(json!({ "metadata": { "name": "east-worker2" } })));
    facts.networks[0].status.as_mut().expect("a status").tunnels[0].up = false;

    let objects: Vec<String> =
        Report::of(&facts, now()).problems.into_iter().map(|problem| problem.object).collect();

    assert_eq!(objects, ["node/east-worker2", "tunnel/east-worker/iw-0123456789ab"]);
}

#[test]
fn an_empty_cluster_names_the_first_steps() {
    let problems = Report::of(&Facts::default(), now()).problems;
    let reasons: Vec<&str> = problems.iter().map(|problem| problem.reason.as_str()).collect();

    assert_eq!(reasons, ["NotInstalled", "NotInstalled", "NoPool"]);
}

#[test]
fn an_export_in_conflict_is_named() {
    let mut facts = healthy();
    facts.exports.push(object(json!({ "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": { "name": "web", "namespace": "shop" }, "spec": {},
        "status": { "conditions": conditions(&[("Valid", "True", "Valid", ""), ("Conflict", "True", "TypeConflict", "west exports it as Headless")]) } })));

    let problems = Report::of(&facts, now()).problems;

    assert_eq!(problems[0].object, "serviceexport/shop/web");
    assert_eq!(problems[0].reason, "TypeConflict");
}

#[test]
fn programs_get_camel_case_json() {
    let value = serde_json::to_value(Report::of(&healthy(), now())).expect("JSON");

    assert_eq!(value["tunnels"][0]["handshakeAgeSeconds"], 90);
    assert_eq!(value["peerings"][0]["remoteCIDRs"][0], "10.2.0.0/16");
    assert_eq!(value["problems"], json!([]));
}
