// SPDX-License-Identifier: Apache-2.0
//! Plugins that make an interface.

use serde_json::{Value, json};

use crate::node::{Node, Pod, with};

fn config(node: &Node, plugin: &str, more: &Value) -> Value {
    let base = json!({
        "cniVersion": "1.1.0", "name": "net", "type": plugin,
        "ipam": node.host_local(&["10.77.0.0/24", "fd77::/64"]),
    });
    with(&base, more)
}

#[test]
fn bridge_joins_pods_of_both_families_and_the_first_ping_succeeds() {
    let Some(node) = Node::new("bridge") else { return };
    let (one, two) = (node.pod("one"), node.pod("two"));
    let config =
        config(&node, "bridge", &json!({ "bridge": "t0", "isDefaultGateway": true, "ipMasq": true }));
    let (first, second) = (Pod::of("c1", &one), Pod::of("c2", &two));
    let result = node.add(&first, &config);
    node.add(&second, &config);
    one.ping("10.77.0.1").unwrap();
    one.ping("10.77.0.3").unwrap();
    two.ping("fd77::2").unwrap();
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["ips"][0]["gateway"], "10.77.0.1");
    node.check(&first, &config, &result).unwrap();

    node.host.sh("ip link set t0 down; ip link set t0 up");
    node.check(&first, &config, &result).unwrap();
    one.sh("ip route del default");
    let lost = node.check(&first, &config, &result).unwrap_err();
    assert!(lost.msg.contains("0.0.0.0/0"), "{lost}");

    node.del(&first, &config);
    node.del(&first, &config);
    node.del(&Pod { space: None, ..second }, &config);
    assert_eq!((node.links(), node.leases("net")), (vec!["t0".to_owned()], 0));
    assert!(!node.host.sh("nft list ruleset").contains("10.77.0"), "rules are left");
}

#[test]
fn p12_gc_of_bridge_takes_links_leases_and_rules_of_the_stale_container_only() {
    let Some(node) = Node::new("bridge gc") else { return };
    let (one, two) = (node.pod("one"), node.pod("two"));
    let config = config(
        &node,
        "bridge",
        &json!({
            "bridge": "t0", "isGateway": true, "ipMasq": true, "macspoofchk": true,
        }),
    );
    let kept = node.add(&Pod::of("kept", &one), &config);
    node.add(&Pod::of("stale", &two), &config);
    let foreign = with(
        &config,
        &json!({ "name": "other", "bridge": "t1", "ipam": node.host_local(&["10.78.0.0/24"]) }),
    );
    let three = node.pod("three");
    node.add(&Pod::of("stale", &three), &foreign);
    node.gc(&config, &["kept"]).unwrap();
    node.check(&Pod::of("kept", &one), &config, &kept).unwrap();
    assert_eq!((node.leases("net"), node.leases("other")), (2, 1));
    assert_eq!(node.links().iter().filter(|name| name.starts_with("veth")).count(), 2);
    assert!(!two.sh("ip -o link").contains("eth0"));
    let rules = node.host.sh("nft list ruleset");
    assert!(
        rules.contains("10.77.0.2") && !rules.contains("10.77.0.3") && rules.contains("10.78.0.2"),
        "{rules}"
    );
    node.gc(&config, &[]).unwrap();
    assert_eq!(node.leases("net"), 0);
}

#[test]
fn bridge_refuses_a_pod_that_sends_from_another_ethernet_address() {
    let Some(node) = Node::new("spoofed") else { return };
    let pod = node.pod("pod");
    let config = config(&node, "bridge", &json!({ "bridge": "t0", "isGateway": true, "macspoofchk": true }));
    node.add(&Pod::of("c", &pod), &config);
    pod.ping("10.77.0.1").unwrap();
    pod.sh("ip link set eth0 address 02:00:00:00:00:99");
    assert!(pod.ping("10.77.0.1").is_err(), "the forged sender was answered");
}

#[test]
fn ptp_routes_everything_by_the_host_and_masquerades_what_leaves_it() {
    let Some(node) = Node::new("ptp") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    node.lab.cable(
        (&node.host, "up0", &["192.0.2.1/24", "fd00:2::1/64"]),
        (&far, "eth0", &["192.0.2.2/24", "fd00:2::2/64"]),
    );
    far.sh("ip -6 route add fd77::/64 via fd00:2::1");
    let config = config(&node, "ptp", &json!({ "ipMasq": true, "mtu": 1400 }));
    let this = Pod::of("c", &pod);
    let result = node.add(&this, &config);
    // The host has to ask for the pod's address on behalf of somebody else, before the pod said anything.
    far.ping("fd77::2").unwrap();
    pod.ping("10.77.0.1").unwrap();
    pod.ping("fd77::1").unwrap();
    // The far host has no route back to the pod: its answer finds the way by the node's address only.
    pod.ping("192.0.2.2").unwrap();
    assert_eq!(result["interfaces"][1]["mtu"], 1400);
    node.check(&this, &config, &result).unwrap();
    node.host.sh("nft flush ruleset");
    assert!(node.check(&this, &config, &result).is_err(), "CHECK missed the lost rules");
    node.del(&this, &config);
    assert_eq!(node.links(), ["up0"]);
}

#[test]
fn an_add_that_cannot_be_finished_leaves_neither_link_nor_lease() {
    let Some(node) = Node::new("unfinished") else { return };
    let pod = node.pod("pod");
    let mut config = config(&node, "ptp", &json!({}));
    config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "203.0.113.1" }]);
    let refused = node.call("ADD", Some(&Pod::of("c", &pod)), &config).unwrap_err();
    assert_eq!(refused.code, 100, "{refused}");
    assert_eq!((node.links(), node.leases("net")), (vec![], 0));
    assert!(!pod.sh("ip -o link").contains("eth0"));
}

/// Writes down what it sees of the interface, and fails or not.
const PROBE: &str = r#"#!/bin/sh
cat > /dev/null
[ "$CNI_COMMAND" = ADD ] || { echo "$CNI_COMMAND" >> "$0.seen"; exit 0; }
nft list chain bridge isthmus_cni spoofed > "$0.guards" 2> /dev/null
nsenter --net="$CNI_NETNS" ip -o link show "$CNI_IFNAME" >> "$0.seen" || exit 1
[ -e "$0.fails" ] && { echo '{"code":11,"msg":"no address"}'; exit 1; }
echo '{"cniVersion":"1.1.0","ips":[{"address":"10.77.0.2/24","gateway":"10.77.0.1"}]}'
"#;

/// `dhcp` asks for addresses on the interface. If there are none, both are as before.
#[test]
fn the_interface_is_in_the_pod_when_addresses_are_asked_for_and_goes_when_there_are_none() {
    use std::os::unix::fs::PermissionsExt;
    let Some(node) = Node::new("order") else { return };
    let far = node.pod("far");
    node.lab.cable((&node.host, "nic0", &[]), (&far, "eth0", &[]));
    node.host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up");
    let file = node.path[0].join("probe");
    std::fs::write(&file, PROBE).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (seen, fails) = (node.path[0].join("probe.seen"), node.path[0].join("probe.fails"));
    let before = [node.links(), vec!["t0".to_owned()]].concat();
    for (plugin, more) in [
        ("bridge", json!({ "bridge": "t0", "isGateway": true, "ipMasq": true, "macspoofchk": true })),
        ("ptp", json!({ "ipMasq": true })),
        ("macvlan", json!({ "master": "up0" })),
        ("tap", json!({})),
        ("host-device", json!({ "device": "nic0" })),
    ] {
        let config = with(&config(&node, plugin, &more), &json!({ "ipam": { "type": "probe" } }));
        let pod = node.pod("pod");
        let this = Pod::of("c", &pod);
        node.add(&this, &config);
        let guards = std::fs::read_to_string(node.path[0].join("probe.guards")).unwrap();
        assert_eq!(guards.contains("ether saddr !="), plugin == "bridge", "{plugin}: {guards}");
        node.del(&this, &config);
        std::fs::write(&fails, "").unwrap();
        assert_eq!(node.call("ADD", Some(&this), &config).unwrap_err().code, 11, "{plugin}");
        std::fs::remove_file(&fails).unwrap();
        let lines = std::fs::read_to_string(&seen).unwrap();
        let words: Vec<&str> =
            lines.lines().map(|line| if line.contains("eth0") { "eth0" } else { line }).collect();
        assert_eq!(words, ["eth0", "DEL", "eth0", "DEL"], "{plugin}");
        std::fs::remove_file(&seen).unwrap();
        assert!(!pod.sh("ip -o link").contains("eth0"), "{plugin} left its interface");
        let mut left = node.links();
        left.retain(|name| !before.contains(name));
        assert!(left.is_empty(), "{plugin} left {left:?}");
    }
    assert!(!node.host.sh("nft list ruleset").contains("10.77.0"));
}

#[test]
fn macvlan_gives_a_pod_an_ethernet_address_of_its_own() {
    let Some(node) = Node::new("macvlan") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    node.lab.cable((&node.host, "up0", &[]), (&far, "eth0", &["10.77.0.1/24"]));
    let mac = "0a:58:0a:4d:00:02";
    let config = config(&node, "macvlan", &json!({ "master": "up0", "runtimeConfig": { "mac": mac } }));
    let this = Pod::of("c", &pod);
    let result = node.add(&this, &config);
    assert_eq!(result["interfaces"][0]["mac"], mac);
    pod.ping("10.77.0.1").unwrap();
    assert!(far.sh("ip neigh").contains(mac));
    node.check(&this, &config, &result).unwrap();
    let private = with(&config, &json!({ "mode": "private" }));
    assert!(node.check(&this, &private, &result).unwrap_err().msg.contains("mode"));
    node.del(&this, &config);
    assert_eq!(node.leases("net"), 0);
    let large = with(&config, &json!({ "mtu": 9000 }));
    assert_eq!(node.call("ADD", Some(&this), &large).unwrap_err().code, 7);
}

#[test]
fn host_device_moves_an_interface_in_and_back_under_its_name() {
    let Some(node) = Node::new("host-device") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    node.lab.cable((&node.host, "nic0", &[]), (&far, "eth0", &["10.77.0.1/24"]));
    let config = config(&node, "host-device", &json!({ "device": "nic0" }));
    let this = Pod::of("c", &pod);
    let result = node.add(&this, &config);
    assert!(node.links().is_empty());
    pod.ping("10.77.0.1").unwrap();
    node.check(&this, &config, &result).unwrap();
    node.del(&this, &config);
    node.del(&this, &config);
    assert_eq!((node.links(), node.leases("net")), (vec!["nic0".to_owned()], 0));
    for bad in
        [json!({}), json!({ "device": "nic0", "hwaddr": "02:00:00:00:00:01" }), json!({ "device": "none" })]
    {
        let bad = with(&json!({ "cniVersion": "1.1.0", "name": "net", "type": "host-device" }), &bad);
        assert_eq!(node.call("ADD", Some(&this), &bad).unwrap_err().code, 7, "{bad}");
    }
}

/// Also where the kernel has no bonds: members move before.
#[test]
fn bond_moves_no_member_into_a_pod_that_has_one_of_its_name_and_brings_them_back_after_a_failure() {
    let Some(node) = Node::new("bond-members") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    for (nic, port) in [("nic0", "port0"), ("nic1", "port1")] {
        node.lab.cable((&node.host, nic, &[]), (&far, port, &[]));
    }
    pod.sh("ip link add nic1 type veth peer name other");
    let config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "bond", "mode": "active-backup", "ipam": { "type": "none" },
        "links": [{ "name": "nic0" }, { "name": "nic1" }],
    });
    let this = Pod::of("c", &pod);
    let refused = node.call("ADD", Some(&this), &config).unwrap_err();
    assert!(refused.code == 7 && refused.msg.contains("nic1"), "{refused}");
    let shown = node.host.sh("ip -o link show nic0; ip -o link show nic1");
    assert!(shown.matches("state UP").count() == 2 && !shown.contains("alias"), "{shown}");
    pod.sh("ip link set nic1 alias cni-host:stolen");
    node.del(&this, &with(&config, &json!({ "ipam": {} })));
    assert!(pod.sh("ip -o link").contains("nic1"), "an alias of another name leads nowhere");
    pod.sh("ip link del nic1");
    node.call("ADD", Some(&this), &config).unwrap_err();
    assert_eq!(node.links(), ["nic0", "nic1"]);
    assert!(!node.host.sh("ip -o link").contains("alias"));
}

#[test]
fn tap_makes_a_device_that_stays_for_its_program() {
    let Some(node) = Node::new("tap") else { return };
    let pod = node.pod("pod");
    let config = config(&node, "tap", &json!({ "mtu": 1400, "owner": 1000, "multiQueue": true }));
    let this = Pod::of("c", &pod);
    let result = node.add(&this, &config);
    let shown = pod.sh("ip -d link show eth0");
    assert!(
        shown.contains("tun type tap") && shown.contains("mtu 1400") && shown.contains("multi_queue"),
        "{shown}"
    );
    node.check(&this, &config, &result).unwrap();
    node.del(&this, &config);
    assert!(!pod.sh("ip -o link").contains("eth0"));
}

#[test]
fn loopback_takes_lo_up_and_passes_on_what_was_before() {
    let Some(node) = Node::new("loopback") else { return };
    let pod = node.pod("pod");
    pod.sh("ip link set lo down");
    let config = json!({ "cniVersion": "1.1.0", "name": "lo", "type": "loopback" });
    let this = Pod { ifname: "lo", ..Pod::of("c", &pod) };
    let result = node.add(&this, &config);
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    pod.ping("127.0.0.1").unwrap();
    node.check(&this, &config, &result).unwrap();
    let before = json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.0.0.2/24" }] });
    assert_eq!(node.add(&this, &with(&config, &json!({ "prevResult": before }))), before);
    node.del(&this, &config);
    assert!(node.check(&this, &config, &result).is_err());
}

/// On a kernel that has the feature the plugin works; on one that has not, it says which is missing.
#[test]
fn p10_a_plugin_whose_kernel_feature_is_missing_says_so_by_its_name_and_leaves_no_lease() {
    let Some(node) = Node::new("features") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    node.lab.cable((&node.host, "up0", &[]), (&far, "eth0", &["10.77.0.1/24"]));
    let cases = [
        ("ipvlan", "CONFIG_IPVLAN", json!({ "master": "up0" })),
        ("vlan", "CONFIG_VLAN_8021Q", json!({ "master": "up0", "vlanId": 7 })),
        ("dummy", "CONFIG_DUMMY", json!({})),
        ("bridge", "CONFIG_BRIDGE_VLAN_FILTERING", json!({ "bridge": "t7", "vlan": 7 })),
        (
            "bond",
            "CONFIG_BONDING",
            json!({ "mode": "active-backup", "miimon": "100", "links": [{ "name": "a" }, { "name": "b" }] }),
        ),
    ];
    for (plugin, option, more) in cases {
        let config = config(&node, plugin, &more);
        let this = Pod::of("c", &pod);
        match node.call("STATUS", None, &config) {
            Ok(_) if plugin == "bond" => {}
            Ok(_) => {
                let result = node.add(&this, &config);
                node.check(&this, &config, &result).unwrap();
                node.del(&this, &config);
            }
            Err(missing) => {
                assert!(missing.code == 50 && missing.msg.contains(option), "{plugin}: {missing}");
                node.call("ADD", Some(&this), &config).unwrap_err();
            }
        }
        assert_eq!(node.leases("net"), 0, "{plugin}");
    }
}
