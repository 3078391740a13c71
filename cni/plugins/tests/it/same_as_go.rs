// SPDX-License-Identifier: Apache-2.0
//! The same configuration to the Go project's plugins and to ours: the results are equal but for what is made up anew each time.

use std::os::unix::fs::PermissionsExt;

use isthmus_cni_kit::version::Version;
use serde_json::{Value, json};

use crate::node::{Node, Pod, with};

/// Made-up names, addresses and paths become words.
fn normalised(result: &Value) -> Value {
    let mut result = result.clone();
    for interface in result.get_mut("interfaces").and_then(Value::as_array_mut).into_iter().flatten() {
        let interface = interface.as_object_mut().expect("an interface");
        // Ours say it from 1.1.0 on, as that version has it.
        interface.remove("mtu");
        // Of pairs, and of the relay that limits what a pod sends.
        for made_up in ["veth", "bwp"] {
            if interface["name"].as_str().is_some_and(|name| name.starts_with(made_up)) {
                interface.insert("name".to_owned(), json!(made_up));
            }
        }
        for (key, word) in [("mac", "mac"), ("sandbox", "sandbox")] {
            if interface.get(key).is_some_and(|value| value != "00:00:00:00:00:00") {
                interface.insert(key.to_owned(), json!(word));
            }
        }
    }
    // Go writes an empty object where there is nothing to say.
    if result.get("dns") == Some(&json!({})) {
        result.as_object_mut().expect("a result").remove("dns");
    }
    result
}

fn result_of(node: &Node, config: &Value, args: &str) -> Value {
    let pod = node.pod("pod");
    let this = Pod { args, ..Pod::of("same", &pod) };
    let result = node.add(&this, config);
    node.del(&this, config);
    normalised(&result)
}

/// Adds and deletes with both, in each version.
pub(crate) fn same(name: &'static str, prepare: &str, config: impl Fn(&Node) -> Value, args: &str) {
    let (Some(ours), Some(go)) = (Node::new(name), Node::with_go(name)) else { return };
    for node in [&ours, &go] {
        node.host.sh(prepare);
    }
    for version in Version::ALL {
        let of = |node: &Node| result_of(node, &with(&config(node), &json!({ "cniVersion": version })), args);
        assert_eq!(of(&ours), of(&go), "{name} in {version}: ours to the left");
    }
}

fn ipam(node: &Node) -> Value {
    node.host_local(&["10.77.0.0/24", "fd77::/64"])
}

#[test]
fn bridge_prints_what_the_go_plugin_prints() {
    let config = |node: &Node| {
        json!({ "name": "net", "type": "bridge", "bridge": "t0", "isDefaultGateway": true, "ipam": {
            "type": "host-local", "dataDir": node.dir.path().join("leases"), "subnet": "10.77.0.0/24",
        }, "dns": { "nameservers": ["10.77.0.53"] } })
    };
    same("bridge", "true", config, "");
}

#[test]
fn ptp_prints_what_the_go_plugin_prints() {
    same("ptp", "true", |node| json!({ "name": "net", "type": "ptp", "ipam": ipam(node) }), "");
}

#[test]
fn macvlan_prints_what_the_go_plugin_prints() {
    let prepare = "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up";
    let config =
        |node: &Node| json!({ "name": "net", "type": "macvlan", "master": "up0", "ipam": ipam(node) });
    same("macvlan", prepare, config, "");
}

#[test]
fn host_local_and_static_print_what_the_go_plugins_print() {
    let config = |node: &Node| json!({ "name": "net", "type": "host-local", "ipam": ipam(node) });
    same("host-local", "true", config, "IP=10.77.0.17");
    let config = |_: &Node| {
        json!({ "name": "net", "type": "static", "ipam": {
            "type": "static", "addresses": [{ "address": "10.77.0.5/24", "gateway": "10.77.0.1" }],
            "routes": [{ "dst": "10.9.0.0/16", "gw": "10.77.0.9", "priority": 7 }, { "dst": "0.0.0.0/0", "mtu": 1400 }],
            "dns": { "nameservers": ["10.77.0.53"], "search": ["example"] },
        } })
    };
    same("static", "true", config, "");
}

#[test]
fn loopback_prints_what_the_go_plugin_prints() {
    let (Some(ours), Some(go)) = (Node::new("loopback"), Node::with_go("loopback")) else { return };
    // In older versions the Go plugin prints the shape of 1.0.0 under their number, which those do not have.
    let config = json!({ "cniVersion": "1.0.0", "name": "lo", "type": "loopback" });
    assert_eq!(result_of(&ours, &config, ""), result_of(&go, &config, ""), "ours to the left");
}

/// What a plugin prints that follows `bridge`, or that it refuses; then both delete.
fn chained(node: &Node, version: Version, config: &Value) -> Result<Value, String> {
    let pod = node.pod("pod");
    let this = Pod::of("same", &pod);
    let own = json!({ "cniVersion": version, "name": "net" });
    let bridge = with(
        &json!({ "type": "bridge", "bridge": "t0", "isDefaultGateway": true, "ipam": {
            "type": "host-local", "dataDir": node.dir.path().join("leases"), "subnet": "10.77.0.0/24",
        } }),
        &own,
    );
    let before = node.add(&this, &bridge);
    let config = with(&with(config, &own), &json!({ "prevResult": before }));
    let printed = node.call("ADD", Some(&this), &config);
    let deleted = node.call("DEL", Some(&this), &config);
    assert_eq!(deleted.err().filter(|_| printed.is_ok()), None);
    node.del(&this, &bridge);
    assert_eq!(node.leases("net"), 0);
    printed.map(|result| normalised(&result)).map_err(|error| error.to_string())
}

/// Adds behind `bridge` and deletes with both, in each version.
#[track_caller]
pub(crate) fn same_chained(config: &Value) {
    let name = "chained";
    let (Some(ours), Some(go)) = (Node::new(name), Node::with_go(name)) else { return };
    for version in Version::ALL {
        match (chained(&ours, version, config), chained(&go, version, config)) {
            (Err(_), Err(_)) => {}
            // Ours speak each version, those of the Go project not all.
            (Ok(_), Err(refused)) if refused.contains("incompatible CNI versions") => {}
            (ours, go) => assert_eq!(ours, go, "{} in {version}: ours to the left", config["type"]),
        }
    }
}

#[test]
fn portmap_prints_what_the_go_plugin_prints() {
    let mappings = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
    same_chained(&json!({ "type": "portmap", "runtimeConfig": { "portMappings": mappings } }));
}

#[test]
fn bandwidth_prints_what_the_go_plugin_prints() {
    let limits = json!({ "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 800_000 });
    same_chained(&with(&json!({ "type": "bandwidth" }), &limits));
}

#[test]
fn firewall_prints_what_the_go_plugin_prints() {
    same_chained(&json!({ "type": "firewall" }));
    same_chained(&json!({ "type": "firewall", "ingressPolicy": "same-bridge" }));
}

#[test]
fn tuning_prints_what_the_go_plugin_prints() {
    let dir = tempfile::tempdir().unwrap();
    same_chained(&json!({
        "type": "tuning", "dataDir": dir.path(), "mtu": 1300, "mac": "02:00:00:00:00:77", "promisc": true,
        "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" },
    }));
}

#[test]
fn sbr_prints_what_the_go_plugin_prints() {
    same_chained(&json!({ "type": "sbr" }));
}

/// A chain of ours and theirs, mixed both ways, with the result handed on.
#[test]
fn go_plugins_and_ours_follow_each_other_in_a_chain() {
    let (Some(ours), Some(go)) = (Node::new("mixed"), Node::with_go("mixed")) else { return };
    for (first, then) in [(&ours.path, &go.path), (&go.path, &ours.path)] {
        let Some(mut node) = Node::new("mixed") else { return };
        let pod = node.pod("pod");
        let this = Pod::of("c", &pod);
        let bridge = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "t0", "isGateway": true,
            "ipam": node.host_local(&["10.77.0.0/24"]),
        });
        let tuning = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "tuning", "mtu": 1300,
            "dataDir": node.dir.path().join("tuning"), "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" },
        });
        node.path.clone_from(first);
        let result = node.add(&this, &bridge);
        node.path.clone_from(then);
        let result = node.add(&this, &with(&tuning, &json!({ "prevResult": result })));
        assert!(pod.sh("ip link show eth0").contains("mtu 1300"));
        node.check(&this, &tuning, &result).unwrap();
        node.path.clone_from(first);
        node.check(&this, &bridge, &result).unwrap();
        pod.ping("10.77.0.1").unwrap();
        node.path.clone_from(then);
        node.del(&this, &with(&tuning, &json!({ "prevResult": result })));
        node.path.clone_from(first);
        node.del(&this, &with(&bridge, &json!({ "prevResult": result })));
        assert_eq!(node.leases("net"), 0);
    }
}

/// A plugin for addresses of an older version, that prints what the test wrote.
const OLD: &str = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] && cat \"$(dirname \"$0\")/printed\" || true\n";

/// The plugin that called it has to bring the result into its own version (CNI 0.3.0 turned `ip4` and `ip6` into lists).
#[test]
fn results_of_0_1_0_and_0_2_0_are_raised_as_the_go_library_raises_them() {
    let (Some(ours), Some(go)) = (Node::new("raised"), Node::with_go("raised")) else { return };
    let mut nodes = [ours, go];
    for node in &mut nodes {
        let dir = node.dir.path().join("old");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("old"), OLD).unwrap();
        std::fs::set_permissions(dir.join("old"), PermissionsExt::from_mode(0o755)).unwrap();
        node.path.push(dir);
    }
    let four = json!({ "ip": "10.77.0.5/24", "gateway": "10.77.0.1",
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.77.0.1" }] });
    let six = json!({ "ip": "fd77::5/64", "gateway": "fd77::1", "routes": [{ "dst": "::/0" }] });
    let bare = json!({ "ip": "10.77.0.6/24", "gateway": "10.77.0.1" });
    let dns = json!({ "nameservers": ["10.77.0.53"], "domain": "d", "search": ["s"], "options": ["o"] });
    let printed = [
        json!({ "ip4": four, "dns": dns }),
        json!({ "ip4": four, "ip6": six }),
        json!({ "ip6": six }),
        json!({ "ip4": bare, "ip6": null }),
        json!({ "ip4": { "ip": "10.77.0.7/24" } }),
    ];
    for (printed, old, new) in printed.iter().flat_map(|printed| {
        let news = [Version::V0_3_1, Version::V1_1_0];
        ["0.1.0", "0.2.0"].into_iter().flat_map(move |old| news.map(|new| (printed, old, new)))
    }) {
        let config = json!({ "cniVersion": new, "name": "net", "type": "ptp", "ipam": { "type": "old" } });
        let [ours, go] = nodes.each_ref().map(|node| {
            let printed = with(printed, &json!({ "cniVersion": old }));
            std::fs::write(node.dir.path().join("old/printed"), printed.to_string()).unwrap();
            let pod = node.pod("pod");
            let this = Pod::of("raised", &pod);
            let result = node.call("ADD", Some(&this), &config).map(|result| normalised(&result));
            node.del(&this, &config);
            result
        });
        match (&ours, &go) {
            (Ok(ours), Ok(go)) => assert_eq!(ours, go, "{printed} of {old} in {new}: ours to the left"),
            (Err(_), Err(_)) => {}
            _ => panic!("{printed} of {old} in {new}: ours {ours:?}, theirs {go:?}"),
        }
    }
}
