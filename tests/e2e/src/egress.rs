// SPDX-License-Identifier: Apache-2.0
//! Pods that leave with a fixed address.

use std::time::Duration;

use isthmus_testkit::within;

use crate::capture::Capture;
use crate::duo::{EAST, WEST};
use crate::lab::{apply, delete, json};
use crate::pod::{Pod, pod};

/// Gives the pods of east an egress policy for a while, and sees them leave by it: one on the gateway node itself, one elsewhere.
#[track_caller]
pub fn leaves_by_policy() {
    // A node of the other cluster plays the world outside; the egress address is a free one of the nodes' network.
    let node = json(WEST, &["node", "west-control-plane"]).expect("a node of west");
    let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let internal = |address: &&serde_json::Value| {
        address["type"] == "InternalIP" && address["address"].as_str().is_some_and(|text| text.contains('.'))
    };
    let outside = addresses.iter().find(internal).expect("an IPv4 address")["address"].as_str();
    let outside = outside.unwrap_or_default().to_owned();
    let prefix = outside.rsplit_once('.').expect("an IPv4 address").0.to_owned();
    let egress = format!("{prefix}.240");
    let manifest = format!(
        "apiVersion: isthmus.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: e2e}}\nspec:\n  namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: e2e}}}}\n  destinationCIDRs: [{outside}/32]\n  gatewaySelector: {{matchLabels: {{kubernetes.io/hostname: east-worker2}}}}\n  egressIPs: [{egress}]\n"
    );
    apply(EAST, &manifest).expect("the policy");

    let result = std::panic::catch_unwind(|| {
        within(Duration::from_secs(20), || {
            let policy = json(EAST, &["egresspolicy", "e2e"]).map_err(|error| format!("{error:#}"))?;
            if policy["status"]["gatewayNode"] == "east-worker2" {
                Ok(())
            } else {
                Err(policy["status"].to_string())
            }
        });
        for name in ["three", "one"] {
            leaves_from(&pod(EAST, name), &egress, &outside);
        }
    });
    delete(EAST, &["egresspolicy", "e2e"]).expect("the policy goes");
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// The pod's connections to the world outside are answered, and come from the egress address alone.
#[track_caller]
fn leaves_from(from: &Pod, egress: &str, outside: &str) {
    let url = format!("https://{outside}:6443/version");
    let ask = || from.run(&["curl", "-ksS", "-m", "2", &url]).map_err(|error| format!("{error:#}"));
    // The rules may need a moment after the status.
    within(Duration::from_secs(20), || {
        let capture = Capture::between_clusters("egress");
        let answer = ask()?;
        capture.finds(&format!("tcp dst port 6443 and dst host {outside} and src host {egress}"))?;
        let others = capture.count(&format!(
            "tcp dst port 6443 and dst host {outside} and (src host {} or src net 10.1.0.0/16)",
            from.ipv4
        ));
        match (answer.contains("gitVersion"), others) {
            (true, 0) => Ok(()),
            seen => Err(format!("{}: answered, and packets with another source: {seen:?}", from.name)),
        }
    });
}
