// SPDX-License-Identifier: Apache-2.0
//! What the Go project's library sends to plugins, and what ours sends: the same, for the same list.

use std::collections::BTreeMap;
use std::path::Path;

use isthmus_cni_kit::config::load;
use isthmus_cni_kit::runtime::cache::Cache;
use isthmus_cni_kit::runtime::chain::{Container, Runtime};
use isthmus_cni_kit::runtime::exec::Programs;
use isthmus_cni_kit::version::Version;
use serde_json::{Value, json};

use crate::node::{Node, PATIENCE, go_programs};

/// A plugin that writes down what it gets: variables and standard input. Its result has a field that nobody knows.
const RECORDER: &str = r#"#!/bin/sh
at=$(dirname "$0")/../record
number=$(ls "$at" | wc -l)
env | grep '^CNI_' | grep -v '^CNI_PATH=' | sort > "$at/$number"
cat >> "$at/$number"
[ "$CNI_COMMAND" = ADD ] || exit 0
version=$(cat "$at/../version")
case "$version" in
0.1.0|0.2.0) echo "{\"cniVersion\":\"$version\",\"ip4\":{\"ip\":\"10.0.0.2/24\",\"gateway\":\"10.0.0.1\",\"routes\":[{\"dst\":\"0.0.0.0/0\"}]},\"dns\":{\"nameservers\":[\"10.0.0.53\"]}}" ;;
0.3.*|0.4.0) echo "{\"cniVersion\":\"$version\",\"interfaces\":[{\"name\":\"eth0\",\"sandbox\":\"/x\"}],\"ips\":[{\"version\":\"4\",\"address\":\"10.0.0.2/24\",\"gateway\":\"10.0.0.1\",\"interface\":0}],\"routes\":[{\"dst\":\"0.0.0.0/0\"}]}" ;;
*) echo "{\"cniVersion\":\"$version\",\"interfaces\":[{\"name\":\"eth0\",\"sandbox\":\"/x\"}],\"ips\":[{\"address\":\"10.0.0.2/24\",\"gateway\":\"10.0.0.1\",\"interface\":0}],\"routes\":[{\"dst\":\"0.0.0.0/0\",\"gw\":\"10.0.0.9\"}],\"dns\":{\"search\":[\"example\"]}}" ;;
esac
"#;

/// In a mount namespace, so that the tool's cache is the test's own.
const TOOL: &str = r#"
dir=$1 tool=$2 command=$3 netns=$4
mkdir -p "$dir/var"
mount --bind "$dir/var" /var/lib
export NETCONFPATH="$dir/net.d" CNI_PATH="$dir/bin" CNI_ARGS="IgnoreUnknown=1;Z=1;A=2" CNI_IFNAME=net1
export CAP_ARGS='{"mac":"02:00:00:00:00:01","portMappings":[{"hostPort":1}],"unasked":1}'
exec "$tool" "$command" net "$netns"
"#;

fn list(version: Version) -> Value {
    json!({ "cniVersion": version, "name": "net", "plugins": [
        {
            "type": "first", "own": { "deep": [1, { "a": null }] }, "capabilities": { "mac": true, "bandwidth": true },
            "ipam": { "type": "other", "subnet": "10.0.0.0/24" }, "dns": { "nameservers": ["10.0.0.53"] },
        },
        { "type": "second", "capabilities": { "portMappings": true, "mac": false }, "args": { "cni": { "ips": ["10.0.0.7"] } } },
    ] })
}

/// Every call since the last time: variables, then configuration.
fn recorded(dir: &Path) -> Vec<(BTreeMap<String, String>, Value)> {
    let record = dir.join("record");
    let count = std::fs::read_dir(&record).unwrap().count();
    let calls = (0..count).map(|number| {
        let text = std::fs::read_to_string(record.join(number.to_string())).unwrap();
        let (variables, config) = text.split_at(text.find('{').unwrap_or(text.len()));
        let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        // One that is empty is one that is not set.
        let set = |(key, value): (String, String)| (!value.is_empty()).then_some((key, value));
        (
            variables.lines().filter_map(pair).filter_map(set).collect(),
            serde_json::from_str(config).unwrap_or(Value::Null),
        )
    });
    let calls = calls.collect();
    std::fs::remove_dir_all(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    calls
}

#[test]
fn r7_plugins_get_the_same_from_our_library_as_from_the_go_projects() {
    use std::os::unix::fs::PermissionsExt;
    let Some(node) = Node::new("sent") else { return };
    let dir = node.dir.path().to_owned();
    for name in ["first", "second"] {
        let file = dir.join("bin").join(name);
        std::fs::write(&file, RECORDER).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["record", "net.d"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    std::fs::write(dir.join("tool.sh"), TOOL).unwrap();
    let pod = node.pod("pod");
    let netns = pod.path().display().to_string();
    let conf = dir.join("net.d/net.conflist");
    for version in Version::ALL {
        std::fs::write(&conf, list(version).to_string()).unwrap();
        std::fs::write(dir.join("version"), version.as_str()).unwrap();
        let mut commands = vec!["add", "del"];
        if version.has_check() {
            commands.insert(1, "check");
        }
        if version.has_status() {
            commands.push("status");
        }
        let mut theirs = Vec::new();
        for command in &commands {
            let words = [dir.join("tool.sh"), dir.clone(), go_programs().join("cnitool")]
                .map(|path| path.display().to_string());
            node.host.sh(&format!("unshare --mount sh -e {} {command} {netns}", words.join(" ")));
            let mut calls = recorded(&dir);
            for (_, config) in &mut calls {
                // The specification has the runtime leave them out (section 3, "Deriving request configuration"); the Go library does not.
                let config = config.as_object_mut().expect("a configuration");
                config.remove("capabilities");
                // It writes an empty object where there is nothing to say.
                if let Some(Value::Object(result)) = config.get_mut("prevResult") {
                    result.retain(|_, value| *value != json!({}));
                }
            }
            theirs.push(calls);
        }
        let container = Container {
            id: theirs[0][0].0["CNI_CONTAINERID"].clone(),
            netns: netns.clone(),
            ifname: "net1".to_owned(),
            args: [("IgnoreUnknown", "1"), ("Z", "1"), ("A", "2")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            capability_args: serde_json::from_value(json!({
                "mac": "02:00:00:00:00:01", "portMappings": [{ "hostPort": 1 }], "unasked": 1,
            }))
            .unwrap(),
        };
        let list = load::load_file(&conf, Version::NEWEST).unwrap();
        let exec = Programs { path: vec![dir.join("bin")], deadline: PATIENCE };
        let cache = Cache::new(dir.join("cache"));
        let runtime = Runtime { exec: &exec, cache: &cache, path: vec![dir.join("bin")] };
        for (command, theirs) in commands.into_iter().zip(theirs) {
            match command {
                "add" => drop(runtime.add(&list, &container).unwrap()),
                "check" => runtime.check(&list, &container).unwrap(),
                "status" => runtime.status(&list).unwrap(),
                _ => runtime.del(&list, &container).unwrap(),
            }
            assert_eq!(recorded(&dir), theirs, "{command} in {version}: ours to the left");
        }
    }
}
