// SPDX-License-Identifier: Apache-2.0
//! The Go project's cnitool takes namespaces through lists of our plugins.

use std::path::Path;

use isthmus_cni_kit::version::Version;
use isthmus_testkit::Namespace;
use serde_json::{Value, json};

use crate::node::{Node, Pod, go_programs, with};

/// In a mount namespace, so that its cache is the test's own in place of the machine's.
const SCRIPT: &str = r#"
dir=$1 tool=$2 command=$3 netns=$4
mkdir -p "$dir/var"
mount --bind "$dir/var" /var/lib
export NETCONFPATH="$dir/net.d" CNI_PATH="$dir/bin"
export CAP_ARGS='{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}'
exec "$tool" "$command" net "$netns"
"#;

/// Runs the tool in the node's namespace, with our plugins.
fn tool(node: &Node, command: &str, pod: &Namespace) -> anyhow::Result<String> {
    let script = node.dir.path().join("tool.sh");
    std::fs::write(&script, SCRIPT)?;
    let words = [&script, node.dir.path(), &go_programs().join("cnitool"), Path::new(command), &pod.path()];
    let words: Vec<String> = words.iter().map(|word| word.display().to_string()).collect();
    node.host.try_sh(&format!("unshare --mount sh -e {}", words.join(" ")))
}

fn list(node: &Node, version: Version) -> Value {
    json!({ "cniVersion": version, "name": "net", "plugins": [
        {
            "type": "bridge", "bridge": "t0", "isDefaultGateway": true, "ipMasq": true,
            "ipam": node.host_local(&["10.77.0.0/24", "fd77::/64"]),
        },
        { "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" }, "dataDir": node.dir.path().join("tuning") },
        { "type": "portmap", "capabilities": { "portMappings": true } },
        { "type": "firewall", "ingressPolicy": "same-bridge" },
        { "type": "sbr" },
    ] })
}

fn write(path: &Path, list: &Value) {
    std::fs::create_dir_all(path.parent().expect("a directory")).unwrap();
    std::fs::write(path, list.to_string()).unwrap();
}

#[test]
fn cnitool_adds_checks_and_deletes_with_our_plugins_in_every_version() {
    let Some(node) = Node::new("cnitool") else { return };
    for version in Version::ALL.into_iter().filter(|version| version.has_interfaces()) {
        let pod = node.pod("pod");
        write(&node.dir.path().join("net.d/net.conflist"), &list(&node, version));
        let printed = tool(&node, "add", &pod).unwrap();
        let result: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(
            (&result["cniVersion"], result["interfaces"].as_array().map(Vec::len)),
            (&json!(version), Some(3))
        );
        let own =
            result["ips"][0]["address"].as_str().and_then(|net| net.split('/').next()).expect("an address");
        pod.sh(&format!("ping -n -c 1 -W 5 -I {own} 10.77.0.1"));
        assert!(node.host.sh("nft list ruleset").contains("8080"));
        if version.has_check() {
            tool(&node, "check", &pod).unwrap();
            pod.sh("sysctl -qw net.ipv4.conf.eth0.arp_filter=0");
            let missed = tool(&node, "check", &pod).unwrap_err().to_string();
            assert!(missed.contains("arp_filter"), "{version}: {missed}");
        }
        if version.has_status() {
            tool(&node, "status", &pod).unwrap();
        }
        tool(&node, "del", &pod).unwrap();
        tool(&node, "del", &pod).unwrap();
        assert_eq!((node.links(), node.leases("net")), (vec!["t0".to_owned()], 0), "{version}");
        assert!(!node.host.sh("nft list ruleset").contains("8080"), "{version}");
    }
}

/// It deletes what its cache has, then asks the plugins without saying what is valid. They do not take that for "nothing is".
#[test]
fn p12_cnitool_that_names_no_valid_attachments_cannot_make_our_plugins_delete_those_of_others() {
    let Some(node) = Node::new("cnitool gc") else { return };
    let (pod, other) = (node.pod("pod"), node.pod("other"));
    let list = list(&node, Version::V1_1_0);
    write(&node.dir.path().join("net.d/net.conflist"), &list);
    tool(&node, "add", &pod).unwrap();
    let config = with(&list["plugins"][0], &json!({ "cniVersion": "1.1.0", "name": "net" }));
    let result = node.add(&Pod::of("other", &other), &config);
    let refused = tool(&node, "gc", &pod).unwrap_err().to_string();
    assert!(refused.contains("cni.dev/valid-attachments"), "{refused}");
    node.check(&Pod::of("other", &other), &config, &result).unwrap();
    assert_eq!(node.leases("net"), 2, "those of the container that was added another way");
}
