// SPDX-License-Identifier: Apache-2.0
//! Programs die, traffic flows.

use std::time::Duration;

use isthmus_e2e::{
    EAST, Flow, NODES, WEST, exec, json, kubectl, on_node, other, peered, pod, processes_killed, within,
};

const BACK_AGAIN: Duration = Duration::from_secs(60);

/// Flows between the clusters, one of each family.
#[track_caller]
fn flows() -> Vec<Flow> {
    let (from, to) = (pod(EAST, "one"), pod(WEST, "three"));
    vec![Flow::start(&from, &to.ipv4), Flow::start(&from, &to.ipv6)]
}

#[track_caller]
fn nothing_lost(flows: Vec<Flow>) {
    for tally in flows.into_iter().map(Flow::stop).collect::<Vec<_>>() {
        tally.nothing_lost();
    }
}

/// How often the containers of this name were started, in all pods of a component.
fn starts(cluster: &str, component: &str, container: &str) -> u64 {
    let label = format!("app.kubernetes.io/name={component}");
    let pods = json(cluster, &["-n", "isthmus-system", "pods", "-l", &label]).unwrap_or_default();
    let statuses = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|pod| pod["status"]["containerStatuses"].as_array().into_iter().flatten());
    statuses
        .filter(|status| status["name"] == container && status["ready"] == true)
        .map(|status| 1 + status["restartCount"].as_u64().unwrap_or(0))
        .sum()
}

#[test]
fn traffic_flows_while_every_operator_is_killed() {
    let Some(duo) = peered() else { return };
    let flows = flows();
    for cluster in [EAST, WEST] {
        let line = [
            "-n",
            "isthmus-system",
            "delete",
            "pod",
            "-l",
            "app.kubernetes.io/name=isthmus-operator",
            "--force",
            "--grace-period=0",
        ];
        kubectl(cluster, &line).expect("the operators are killed");
    }
    for cluster in [EAST, WEST] {
        kubectl(
            cluster,
            &["-n", "isthmus-system", "rollout", "status", "deployment/isthmus-operator", "--timeout=60s"],
        )
        .expect("operators again");
        duo.condition(cluster, "Ready", "True", BACK_AGAIN);
    }
    nothing_lost(flows);
}

#[test]
fn no_packet_is_lost_while_agents_are_killed_and_start_again() {
    let Some(duo) = peered() else { return };
    let before: u64 = [EAST, WEST].into_iter().map(|cluster| starts(cluster, "isthmus-agent", "agent")).sum();
    let flows = flows();
    for node in NODES {
        processes_killed(node, "isthmus-agent").unwrap_or_else(|error| panic!("{error:#}"));
    }
    within(BACK_AGAIN, || {
        let after: u64 =
            [EAST, WEST].into_iter().map(|cluster| starts(cluster, "isthmus-agent", "agent")).sum();
        let wanted = before + NODES.len() as u64;
        if after >= wanted { Ok(()) } else { Err(format!("{after} starts of agents, wanted {wanted}")) }
    });
    for cluster in [EAST, WEST] {
        duo.condition(cluster, "Ready", "True", BACK_AGAIN);
    }
    nothing_lost(flows);
}

#[test]
fn no_packet_is_lost_while_the_data_plane_is_exchanged_on_every_node() {
    let Some(duo) = peered() else { return };
    let flows = flows();
    let rollout = |verb: &[&str]| {
        let line = ["-n", "isthmus-system", "rollout"];
        kubectl(EAST, &[&line, verb, &["daemonset/isthmus-dataplane"]].concat())
            .unwrap_or_else(|error| panic!("{error:#}"))
    };
    rollout(&["restart"]);
    // One node after the other, each new pod beside the old one for a while.
    rollout(&["status", "--timeout=300s"]);
    duo.condition(EAST, "Ready", "True", BACK_AGAIN);
    nothing_lost(flows);
}

#[test]
fn traffic_comes_back_after_data_planes_are_killed() {
    let Some(_duo) = peered() else { return };
    let (from, to) = (pod(EAST, "one"), pod(WEST, "three"));
    for node in ["east-worker", "east-worker2"] {
        processes_killed(node, "isthmus-dataplane").unwrap_or_else(|error| panic!("{error:#}"));
    }
    within(BACK_AGAIN, || from.get(&to.ipv4, "/hostname").map_err(|error| format!("{error:#}")));
    within(BACK_AGAIN, || from.get(&to.ipv6, "/hostname").map_err(|error| format!("{error:#}")));
}

#[test]
fn traffic_flows_while_the_api_server_of_west_is_down_and_status_says_stale() {
    let Some(duo) = peered() else { return };
    let node = pod(WEST, "three").node;
    let manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml";
    let away = "/root/kube-apiserver.yaml";
    let flows = flows();
    on_node("west-control-plane", "mv $1 $2", &[manifest, away])
        .expect("the API server's manifest is taken away");
    let down = std::time::Instant::now();
    let said = std::panic::catch_unwind(|| {
        within(Duration::from_secs(20), || match kubectl(WEST, &["version", "--request-timeout=2s"]) {
            Ok(_) => Err("the API server still answers".to_owned()),
            Err(_) => Ok(()),
        });
        // An agent that starts meanwhile goes on with what its node knew: it repairs what others break.
        processes_killed(&node, "isthmus-agent").unwrap_or_else(|error| panic!("{error:#}"));
        let routes = || on_node(&node, "ip route show proto 73 table main | sort", &[]);
        let wanted = routes().expect("routes");
        on_node(&node, "ip route flush proto 73 table main", &[]).expect("routes are deleted");
        within(Duration::from_secs(50), || match routes() {
            Ok(seen) if seen == wanted => Ok(()),
            seen => Err(format!("routes are {seen:?}, wanted {wanted:?}")),
        });
        duo.condition(EAST, "Fresh", "False", Duration::from_secs(50))
    });
    let status = exec(&["isthmus", "--context", EAST, "status"]);
    // The minute is of the claim: whatever was to time out has timed out.
    within(Duration::from_secs(70), || {
        let passed = down.elapsed();
        if passed >= Duration::from_secs(60) { Ok(()) } else { Err(format!("only {passed:?} passed")) }
    });
    on_node("west-control-plane", "mv $2 $1", &[manifest, away])
        .expect("the API server's manifest is put back");
    within(Duration::from_secs(120), || {
        kubectl(WEST, &["get", "nodes"]).map_err(|error| format!("{error:#}"))
    });
    for cluster in [EAST, WEST] {
        duo.condition(cluster, "Ready", "True", Duration::from_secs(90));
    }
    nothing_lost(flows);

    let (reason, message) = said.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert!(message.contains(other(EAST)) || message.contains("heard"), "{reason}: {message}");
    let error = format!("{:#}", status.expect_err("isthmus status ends with 1 while something is not ready"));
    assert!(error.contains("status: 1"), "{error}");
}
