// SPDX-License-Identifier: Apache-2.0
//! Egress with a fixed address.

use std::time::Duration;

use isthmus_e2e::{Capture, EAST, Pod, apply, delete, duo, json, on_node, pod, within};

#[test]
fn selected_pods_reach_their_destination_from_the_egress_address() {
    let Some(_duo) = duo() else { return };
    // A node of the other cluster plays the world outside; the egress address is a free one of the nodes' network.
    let outside = on_node("west-control-plane", "hostname -I", &[])
        .expect("addresses")
        .split_whitespace()
        .next()
        .expect("an address")
        .to_owned();
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
        // One pod on the gateway node itself, one elsewhere.
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
