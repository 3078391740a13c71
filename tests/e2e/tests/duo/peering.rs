// SPDX-License-Identifier: Apache-2.0
//! Inviting, granting, parting.

use std::collections::BTreeSet;
use std::time::Duration;

use isthmus_e2e::{
    CLUSTERS, EAST, NODES, WEST, apply, delete, exec, json, kubectl, on_node, other, peered, pod, within,
};

const SOON: Duration = Duration::from_secs(30);

/// Waits until west's peering says no, with a reason that holds one of the words.
#[track_caller]
fn refused(words: &[&str]) {
    within(SOON, || {
        let object = json(WEST, &["clusterpeering", EAST]).map_err(|error| format!("{error:#}"))?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let said = |condition: &serde_json::Value| {
            condition["status"] == "False"
                && words.iter().any(|word| {
                    format!("{} {}", condition["reason"], condition["message"]).to_lowercase().contains(word)
                })
        };
        if conditions.iter().any(said) {
            Ok(())
        } else {
            Err(format!("no condition of west's peering speaks of {words:?}: {conditions:?}"))
        }
    });
}

#[test]
fn a_token_that_was_used_is_refused_with_the_reason() {
    let Some(duo) = peered() else { return };
    duo.part();
    let manifest = duo.invite("15m");
    apply(WEST, &manifest).expect("the manifest is applied");
    duo.condition(WEST, "Ready", "True", Duration::from_secs(60));
    let redeemed = json(EAST, &["peeringinvitation", WEST]).expect("the invitation");

    // East forgets west, but not the token; west comes again with the same manifest.
    delete(WEST, &["clusterpeering", EAST]).expect("west parts");
    delete(EAST, &["clusterpeering", WEST]).expect("east parts");
    apply(WEST, &manifest).expect("the manifest is applied again");
    refused(&["used", "redeemed"]);

    assert!(!redeemed["status"]["redeemedBy"].is_null(), "{redeemed}");
    assert!(kubectl(EAST, &["get", "clusterpeering", WEST]).is_err(), "a used token made a peering");
    duo.part();
    duo.peered();
}

#[test]
fn a_token_that_expired_is_refused_with_the_reason() {
    let Some(duo) = peered() else { return };
    duo.part();
    // The shortest time that an invitation may have.
    let manifest = duo.invite("1m");
    within(Duration::from_secs(80), || {
        let object = json(EAST, &["peeringinvitation", WEST]).map_err(|error| format!("{error:#}"))?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let expired = conditions
            .iter()
            .any(|condition| condition["type"] == "Expired" && condition["status"] == "True");
        if expired { Ok(()) } else { Err(format!("{conditions:?}")) }
    });

    apply(WEST, &manifest).expect("the manifest is applied");
    refused(&["expired"]);
    duo.part();
    duo.peered();
}

#[test]
fn an_announced_cidr_outside_the_grant_is_refused_and_named() {
    let Some(duo) = peered() else { return };
    let granted = duo.cidrs(WEST);
    let patch = |cidrs: &[&str]| {
        let patch = serde_json::json!({ "spec": { "allowedCIDRs": cidrs } }).to_string();
        kubectl(EAST, &["patch", "clusterpeering", WEST, "--type=merge", "-p", &patch])
            .unwrap_or_else(|error| panic!("{error:#}"))
    };

    patch(&granted[..1]);
    let (_, message) = duo.condition(EAST, "AnnouncementsAccepted", "False", SOON);
    let peering = json(EAST, &["clusterpeering", WEST]).expect("the peering");
    patch(&granted);
    duo.condition(EAST, "AnnouncementsAccepted", "True", SOON);

    let refused = peering["status"]["refused"].to_string();
    assert!(refused.contains(granted[1]), "{refused}");
    assert!(!peering["status"]["remoteCIDRs"].to_string().contains(granted[1]), "{}", peering["status"]);
    assert!(!message.is_empty());
    let (from, to) = (pod(EAST, "one"), pod(WEST, "one"));
    within(SOON, || from.get(&to.ipv6, "/hostname").map_err(|error| format!("{error:#}")));
}

#[test]
fn a_service_of_a_namespace_outside_the_grant_is_not_imported() {
    let Some(duo) = peered() else { return };
    let manifest = "\
apiVersion: v1\nkind: Service\nmetadata: {name: secret, namespace: e2e}\nspec: {selector: {app: none}, ports: [{port: 80}]}\n---\n\
apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: secret, namespace: e2e}\n";
    apply(WEST, manifest).expect("an export that east does not grant");

    within(SOON, || {
        let peering = json(EAST, &["clusterpeering", WEST]).map_err(|error| format!("{error:#}"))?;
        let refused = peering["status"]["refused"].to_string();
        if refused.contains("e2e/secret") { Ok(()) } else { Err(format!("refused is {refused}")) }
    });
    let imports = kubectl(EAST, &["get", "serviceimports", "-n", "e2e", "-o", "name"]).expect("a list");
    delete(WEST, &["-n", "e2e", "serviceexport,service", "secret"]).expect("it is taken back");
    assert_eq!(imports.trim(), "");
    duo.condition(EAST, "AnnouncementsAccepted", "True", SOON);
}

#[test]
fn a_peering_that_is_removed_leaves_nothing_in_either_cluster_or_kernel() {
    let Some(duo) = peered() else { return };
    duo.part();

    for cluster in CLUSTERS {
        let peer = other(cluster);
        within(SOON, || {
            let line = ["get", "serviceimports,endpointslices,services", "-A", "-o", "json"];
            let objects: serde_json::Value =
                serde_json::from_str(&kubectl(cluster, &line).map_err(|error| format!("{error:#}"))?)
                    .map_err(|error| error.to_string())?;
            let from_peer = |object: &&serde_json::Value| {
                object["metadata"]["labels"]["multicluster.kubernetes.io/source-cluster"] == peer
                    || object["status"]["clusters"]
                        .as_array()
                        .is_some_and(|list| list.iter().any(|entry| entry["cluster"] == peer))
            };
            let left: Vec<String> = objects["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(from_peer)
                .map(|o| format!("{}/{}", o["kind"], o["metadata"]["name"]))
                .collect();
            if left.is_empty() { Ok(()) } else { Err(format!("still in {cluster}: {left:?}")) }
        });
        let nodes = NODES.iter().filter(|node| node.starts_with(cluster));
        for node in nodes {
            within(SOON, || {
                let left = on_node(
                    node,
                    "ip -o link show | grep -o 'iw-[0-9a-f]*' | sort -u; for cidr in \"$@\"; do ip route show root $cidr; ip -6 route show root $cidr 2>/dev/null; done; true",
                    &duo.cidrs(peer),
                );
                match left.as_deref().map(str::trim) {
                    Ok("") => Ok(()),
                    seen => Err(format!("still on {node}: {seen:?}")),
                }
            });
            let rules = on_node(node, "nft list table inet isthmus", &[]).expect("our table");
            let left: Vec<&str> = duo.cidrs(peer).into_iter().filter(|cidr| rules.contains(*cidr)).collect();
            assert!(left.is_empty(), "nftables of {node} still speak of {left:?}: {rules}");
        }
    }
    let (from, to) = (pod(EAST, "one"), pod(WEST, "one"));
    assert!(from.get(&to.ipv4, "/hostname").is_err(), "traffic still flows");
    duo.peered();
    within(SOON, || from.get(&to.ipv4, "/hostname").map_err(|error| format!("{error:#}")));
}

#[test]
fn status_of_a_peered_cluster_shows_measured_tunnels_and_ends_with_0() {
    let Some(_duo) = peered() else { return };
    // Measures are written every half minute; a tunnel that is new has none before.
    within(Duration::from_secs(60), || {
        let line = ["isthmus", "--context", EAST, "status", "-o", "json"];
        let text = exec(&line).map_err(|error| format!("{error:#}"))?;
        let report: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let tunnels = report["tunnels"].as_array().cloned().unwrap_or_default();
        let measured = |tunnel: &serde_json::Value| {
            tunnel["up"] == true
                && tunnel["rttMicros"].as_i64().is_some_and(|micros| micros > 0)
                && tunnel["mtu"].as_i64().is_some_and(|bytes| (1280..1500).contains(&bytes))
                && tunnel["handshakeAgeSeconds"].is_i64()
        };
        // Two gateways of east times two of west, however many lanes there are between them.
        let pairs: BTreeSet<_> = tunnels
            .iter()
            .map(|tunnel| [&tunnel["node"], &tunnel["gateway"]].map(serde_json::Value::to_string))
            .collect();
        match (report["clusterId"] == EAST, pairs.len(), tunnels.iter().all(measured)) {
            (true, 4, true) => Ok(()),
            _ => Err(text),
        }
    });
}
