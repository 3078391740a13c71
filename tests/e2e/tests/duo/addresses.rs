// SPDX-License-Identifier: Apache-2.0
//! Addresses are given, kept and taken back.

use std::time::Duration;

use isthmus_e2e::{EAST, duo, json, kubectl, on_node, processes_killed, within};

/// Pods in all; 300 with `ISTHMUS_E2E_PODS=300`, fewer by default to keep the suite short.
fn pods_wanted() -> usize {
    std::env::var("ISTHMUS_E2E_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// Waves that the pods come in, at most; each kills one agent, and kubelet waits longer after each kill.
const WAVES: usize = 6;
const WAVE_AT_LEAST: usize = 20;
const WORKERS: [&str; 2] = ["east-worker", "east-worker2"];

/// Pods of east with a network of their own, alive, on a node.
fn alive(node: &str) -> usize {
    let pods =
        json(EAST, &["pods", "-A", "--field-selector", &format!("spec.nodeName={node}")]).unwrap_or_default();
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    items
        .iter()
        .filter(|pod| pod["spec"]["hostNetwork"] != true && pod["status"]["phase"] == "Running")
        .count()
}

/// Ends of pods' links on a node, as the kernel has them.
fn links(node: &str) -> usize {
    on_node(node, "ip -o link show | grep -c ' ist[0-9a-f]\\{12\\}' || true", &[])
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(usize::MAX)
}

/// Addresses in use on a node, of one family, as its agent says.
fn in_use(node: &str, v6: bool) -> u64 {
    let network = json(EAST, &["nodenetwork", node]).unwrap_or_default();
    let blocks = network["status"]["blocks"].as_array().cloned().unwrap_or_default();
    let of_family =
        blocks.iter().filter(|block| block["cidr"].as_str().is_some_and(|cidr| cidr.contains(':') == v6));
    of_family.filter_map(|block| block["allocated"].as_u64()).sum()
}

fn scale(replicas: usize) {
    kubectl(EAST, &["-n", "e2e", "scale", "deployment/wave", &format!("--replicas={replicas}")])
        .unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn no_address_is_leaked_by_waves_of_pods_while_agents_are_killed() {
    let Some(_duo) = duo() else { return };
    let image = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
    let manifest = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: wave, namespace: e2e}}\nspec:\n  replicas: 0\n  selector: {{matchLabels: {{app: wave}}}}\n  template:\n    metadata: {{labels: {{app: wave}}}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      containers: [{{name: wave, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [pause]}}]\n"
    );
    isthmus_e2e::apply(EAST, &manifest).expect("the deployment");
    let per_wave = pods_wanted().div_ceil(WAVES).max(WAVE_AT_LEAST);
    for wave in 0..pods_wanted().div_ceil(per_wave) {
        let node = WORKERS[wave / 2 % WORKERS.len()];
        scale(per_wave);
        // In the midst of creating in one wave, of deleting in the next.
        if wave % 2 == 0 {
            processes_killed(node, "isthmus-agent").unwrap_or_else(|error| panic!("{error:#}"));
        }
        let rollout = ["-n", "e2e", "rollout", "status", "deployment/wave", "--timeout=240s"];
        kubectl(EAST, &rollout).unwrap_or_else(|error| panic!("wave {wave}: {error:#}"));
        scale(0);
        if wave % 2 == 1 {
            processes_killed(node, "isthmus-agent").unwrap_or_else(|error| panic!("{error:#}"));
        }
    }
    isthmus_e2e::delete(EAST, &["-n", "e2e", "deployment", "wave"]).expect("the deployment goes");

    for node in WORKERS {
        within(Duration::from_secs(120), || {
            let seen = (alive(node), links(node), in_use(node, false), in_use(node, true));
            let pods = seen.0 as u64;
            if seen.1 as u64 == pods && seen.2 == pods && seen.3 == pods {
                Ok(())
            } else {
                Err(format!(
                    "{node}: {} pods alive, {} links in the kernel, {} IPv4 and {} IPv6 addresses in use",
                    seen.0, seen.1, seen.2, seen.3
                ))
            }
        });
    }
}
