// SPDX-License-Identifier: Apache-2.0
//! The specification's check on `isthmus-cni`, with its agent.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use isthmus_cni_conformance::{Row, Verdict, run_here};
use isthmus_cni_kit::runtime::exec::Programs;
use isthmus_testkit::Lab;
use serde_json::{Map, Value};

use super::node::Node;

/// The plugin that goes into the image: what cargo builds beside the tests.
fn plugin() -> PathBuf {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--package", "isthmus-cni"]).status();
    assert!(built.is_ok_and(|status| status.success()), "cargo builds isthmus-cni");
    Path::new(env!("CARGO_BIN_EXE_netns-agent")).with_file_name("isthmus-cni")
}

/// A directory with our plugin under both its names, for the node's agent.
pub(crate) fn installed(node: &Node) -> PathBuf {
    let (bin, program, socket) = (node.path("bin"), plugin(), node.path("run/cni.sock"));
    fs::create_dir_all(bin.join("named")).unwrap();
    for name in ["isthmus-cni", "isthmus-ipam"] {
        let (named, called) = (bin.join("named").join(name), bin.join(name));
        symlink(&program, &named).unwrap();
        let script = format!("#!/bin/sh\nISTHMUS_CNI_SOCKET={} exec {}\n", socket.display(), named.display());
        fs::write(&called, script).unwrap();
        fs::set_permissions(&called, fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin
}

#[test]
fn isthmus_cni_passes_every_check() {
    let Some(lab) = Lab::new("conformance") else { return };
    let node = Node::wide(&lab);
    let _agent = node.started_agent();
    let bin = installed(&node);
    let config: Map<String, Value> =
        serde_json::from_str(r#"{"cniVersion":"1.1.0","name":"isthmus","type":"isthmus-cni"}"#).unwrap();
    let programs = Programs { path: vec![bin], deadline: Duration::from_secs(60) };
    let rows = node.namespace.run(move || run_here(programs, config)).unwrap();
    let wrong: Vec<&Row> = rows.iter().filter(|row| row.verdict != Verdict::Passed).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
