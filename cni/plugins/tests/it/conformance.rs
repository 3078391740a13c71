// SPDX-License-Identifier: Apache-2.0
//! The specification's check on each plugin that can be the only one of a network.

use isthmus_cni_conformance::{Row, Verdict, run};
use isthmus_cni_kit::runtime::exec::Programs;
use serde_json::{Value, json};

use crate::node::{Node, PATIENCE, with};

fn rows(node: &Node, plugin: &str, more: &Value) -> Vec<Row> {
    let base = json!({
        "cniVersion": "1.1.0", "name": format!("net-{plugin}"), "type": plugin,
        "ipam": node.host_local(&["10.77.0.0/24"]),
    });
    let Value::Object(config) = with(&base, more) else { unreachable!("an object") };
    let programs = Programs { path: node.path.clone(), deadline: PATIENCE };
    run(programs, config).unwrap()
}

/// Every check, or the ones that are named are skipped.
#[track_caller]
fn passes(node: &Node, plugin: &str, more: &Value) {
    let rows = rows(node, plugin, more);
    let wrong: Vec<&Row> = rows.iter().filter(|row| row.verdict != Verdict::Passed).collect();
    assert!(wrong.is_empty(), "{plugin}: {wrong:#?}");
    assert!(rows.len() > 20, "{} checks", rows.len());
}

#[test]
fn bridge_passes_every_check_of_the_specification() {
    let Some(node) = Node::new("conformance of bridge") else { return };
    passes(&node, "bridge", &json!({ "bridge": "t0", "isGateway": true, "ipMasq": true }));
}

#[test]
fn ptp_passes_every_check_of_the_specification() {
    let Some(node) = Node::new("conformance of ptp") else { return };
    passes(&node, "ptp", &json!({ "ipMasq": true }));
}

#[test]
fn tap_passes_every_check_of_the_specification() {
    let Some(node) = Node::new("conformance of tap") else { return };
    passes(&node, "tap", &json!({}));
}

/// Faults of the Go project's plugins, as the book lists them. A release that mends one shows here.
#[test]
fn the_go_projects_plugins_have_the_faults_that_the_book_names() {
    let Some(node) = Node::with_go("conformance of go") else { return };
    let (version, gc) = (
        "an error object says its cniVersion",
        "GC frees what is not valid, keeps what is, and prints nothing",
    );
    let left = "ADD that failed leaves the other container as it was";
    let shape = "ADD answers in the version that it is asked in, each of its own";
    let cases: [(&str, Value, &[&str]); 4] = [
        ("bridge", json!({ "bridge": "t0", "isGateway": true }), &[version, gc]),
        ("ptp", json!({}), &[version, gc]),
        ("tap", json!({}), &[version, left, gc]),
        ("loopback", json!({}), &[version, shape]),
    ];
    for (plugin, more, faults) in cases {
        let rows = rows(&node, plugin, &more);
        let failed = |row: &&Row| matches!(row.verdict, Verdict::Failed(_));
        let found: Vec<&str> = rows.iter().filter(failed).map(|row| row.check).collect();
        // What the check asks of an interface of the pod's own is not for loopback.
        let expected = found.iter().filter(|check| plugin != "loopback" || faults.contains(check));
        assert!(expected.eq(faults), "{plugin}: {rows:#?}");
    }
}
