// SPDX-License-Identifier: Apache-2.0
//! The dependency edges of the design, held by a test: what is pure never reaches a socket, a clock or Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Crates of ours that each crate of ours may use. An edge that is missing here is a change of the architecture.
const MAY_USE: &[(&str, &[&str])] = &[
    ("isthmus-model", &[]),
    ("isthmus-delta", &[]),
    ("isthmus-packet-io", &[]),
    ("isthmus-wg-kernel", &[]),
    ("isthmus-wg-uapi", &[]),
    ("isthmus-api", &["isthmus-model"]),
    ("isthmus-mesh", &["isthmus-model"]),
    ("isthmus-mesh-link", &["isthmus-mesh", "isthmus-model"]),
    ("isthmus-wg", &["isthmus-model"]),
    ("isthmus-wg-device", &["isthmus-model", "isthmus-packet-io", "isthmus-wg", "isthmus-wg-uapi"]),
    ("isthmus-compiler", &["isthmus-model"]),
    (
        "isthmus-intake",
        &["isthmus-api", "isthmus-compiler", "isthmus-mesh", "isthmus-model", "isthmus-planner"],
    ),
    ("isthmus-planner", &["isthmus-api", "isthmus-mesh", "isthmus-model"]),
    ("isthmus-kernel", &["isthmus-delta", "isthmus-model", "isthmus-netlink"]),
    (
        "isthmus-dataplane",
        &["isthmus-model", "isthmus-packet-io", "isthmus-wg", "isthmus-wg-device", "isthmus-wg-kernel"],
    ),
    ("isthmus-cni", &[]),
    ("isthmus-cni-kit", &[]),
    ("isthmus-cni-conformance", &["isthmus-cni-kit"]),
    ("isthmus-plugins", &["isthmus-cni-kit", "isthmus-netlink"]),
    ("isthmus-netlink", &[]),
];

/// What no pure crate may use, however far down its own manifest.
const IMPURE: &[&str] =
    &["tokio", "rtnetlink", "hyper", "tokio-rustls", "kube-client", "kube-runtime", "nix", "socket2"];

/// Crates without sockets, clock or tasks. Dependencies named in their own manifests are held to [`IMPURE`].
const PURE: &[&str] = &[
    "isthmus-model",
    "isthmus-delta",
    "isthmus-mesh",
    "isthmus-wg",
    "isthmus-wg-uapi",
    "isthmus-compiler",
    "isthmus-intake",
    "isthmus-planner",
];

fn own_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let uses = package["dependencies"].as_array().into_iter().flatten();
            let normal = uses.filter(|dependency| dependency["kind"].is_null());
            (text(&package["name"]), normal.map(|dependency| text(&dependency["name"])).collect())
        })
        .collect()
}

#[test]
fn crates_use_each_other_only_along_the_lines_of_the_design() {
    let actual = own_dependencies();
    let mut wrong = Vec::new();
    for (name, allowed) in MAY_USE {
        let Some(uses) = actual.get(*name) else { continue };
        for used in uses.iter().filter(|used| used.starts_with("isthmus-")) {
            if !allowed.contains(&used.as_str()) {
                wrong.push(format!("{name} -> {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "edges that the design does not have: {wrong:#?}");
}

#[test]
fn pure_crates_name_no_crate_that_does_input_or_output() {
    let actual = own_dependencies();
    let mut wrong = Vec::new();
    for name in PURE {
        let uses = actual.get(*name).unwrap_or_else(|| panic!("{name} is gone from the workspace"));
        wrong.extend(
            uses.iter()
                .filter(|used| IMPURE.contains(&used.as_str()))
                .map(|used| format!("{name} -> {used}")),
        );
    }
    assert!(wrong.is_empty(), "pure crates reach out: {wrong:#?}");
}

#[test]
fn every_crate_of_ours_is_named_in_the_architecture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let line_count = architecture.lines().count();
    assert!(line_count <= 200, "ARCHITECTURE.md has {line_count} lines; depth belongs in docs/design/");
    let missing: Vec<String> = own_dependencies()
        .into_keys()
        .map(|name| name.trim_start_matches("isthmus-").to_owned())
        .filter(|name| !architecture.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not speak of {missing:?}");
}
