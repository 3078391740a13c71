// SPDX-License-Identifier: Apache-2.0
//! Plugins whose kind of link many kernels leave out: tried where the kernel has it, and in the virtual machine of `make test-vm`.

use std::io::Write;

use isthmus_testkit::within;
use serde_json::{Value, json};

use crate::node::{Node, PATIENCE, Pod, with};
use crate::same_as_go::{same, same_chained};

fn config(node: &Node, plugin: &str, more: &Value) -> Value {
    let base = json!({
        "cniVersion": "1.1.0", "name": "net", "type": plugin,
        "ipam": node.host_local(&["10.77.0.0/24", "fd77::/64"]),
    });
    with(&base, more)
}

/// Whether the plugin says that the kernel has what it needs.
fn has(node: &Node, config: &Value) -> bool {
    match node.call("STATUS", None, config) {
        Ok(_) => true,
        Err(missing) => {
            assert_eq!(missing.code, 50, "{missing}");
            let _ = writeln!(std::io::stderr(), "skipped: {}", missing.msg);
            false
        }
    }
}

#[test]
fn ipvlan_gives_pods_addresses_of_their_own_on_an_interface_of_the_host() {
    let Some(node) = Node::new("ipvlan") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    node.lab.cable((&node.host, "up0", &[]), (&far, "eth0", &["10.77.0.1/24", "fd77::1/64"]));
    for mode in ["l2", "l3"] {
        let config = config(&node, "ipvlan", &json!({ "master": "up0", "mode": mode, "mtu": 1400 }));
        if !has(&node, &config) {
            return;
        }
        let this = Pod::of("c", &pod);
        let mut config = config;
        // In l3 the host's side routes, and neighbours are not asked for.
        config["ipam"]["routes"] = json!([]);
        let result = node.add(&this, &config);
        assert_eq!(result["interfaces"][0]["mtu"], 1400);
        let shown = pod.sh("ip -d link show eth0");
        assert!(shown.contains(&format!("mode {mode}")), "{shown}");
        if mode == "l2" {
            within(PATIENCE, || pod.ping("10.77.0.1"));
            within(PATIENCE, || pod.ping("fd77::1"));
        }
        node.check(&this, &config, &result).unwrap();
        let other = with(&config, &json!({ "mode": "l3s" }));
        assert!(node.check(&this, &other, &result).unwrap_err().msg.contains("mode"));
        node.del(&this, &config);
        node.del(&this, &config);
        assert_eq!(node.leases("net"), 0);
    }
}

#[test]
fn vlan_tags_what_the_pod_sends() {
    let Some(node) = Node::new("vlan") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    node.lab.cable((&node.host, "up0", &[]), (&far, "eth0", &[]));
    let config = config(&node, "vlan", &json!({ "master": "up0", "vlanId": 7 }));
    if !has(&node, &config) {
        return;
    }
    far.sh("ip link add link eth0 name tagged type vlan id 7; ip addr add 10.77.0.1/24 dev tagged; ip link set tagged up");
    let this = Pod::of("c", &pod);
    let result = node.add(&this, &config);
    within(PATIENCE, || pod.ping("10.77.0.1"));
    node.check(&this, &config, &result).unwrap();
    let other = with(&config, &json!({ "vlanId": 8 }));
    assert!(node.check(&this, &other, &result).unwrap_err().msg.contains("tag"));
    node.del(&this, &config);
    assert_eq!(node.leases("net"), 0);
    let none = with(&config, &json!({ "vlanId": 4095 }));
    assert_eq!(node.call("ADD", Some(&this), &none).unwrap_err().code, 7);
}

#[test]
fn a_bridge_keeps_vlans_apart_and_a_trunk_carries_those_that_it_is_told() {
    let Some(node) = Node::new("bridge vlan") else { return };
    let of = |more: &Value| with(&config(&node, "bridge", &json!({ "bridge": "t0" })), more);
    if !has(&node, &of(&json!({ "vlan": 100 }))) {
        return;
    }
    let spaces: Vec<_> = ["a100", "b100", "c200", "trunk"].iter().map(|name| node.pod(name)).collect();
    let (hundred, other) = (of(&json!({ "vlan": 100, "isGateway": true })), of(&json!({ "vlan": 200 })));
    let first = Pod::of("a", &spaces[0]);
    let result = node.add(&first, &hundred);
    node.add(&Pod::of("b", &spaces[1]), &hundred);
    node.add(&Pod::of("c", &spaces[2]), &other);
    assert_eq!(result["interfaces"][3]["name"], "t0.100");
    // The same network: addresses are .2, .3 and .4; the gateway is in the first VLAN.
    within(PATIENCE, || spaces[0].ping("10.77.0.3"));
    within(PATIENCE, || spaces[0].ping("10.77.0.1"));
    within(PATIENCE, || spaces[0].ping("fd77::1"));
    assert!(
        spaces[0].ping("10.77.0.4").is_err() && spaces[2].ping("10.77.0.1").is_err(),
        "the VLANs are one"
    );
    node.check(&first, &hundred, &result).unwrap();
    assert!(node.check(&first, &other, &result).unwrap_err().msg.contains("VLAN 200"));

    let trunk = of(&json!({ "vlanTrunk": [{ "minID": 199, "maxID": 201 }, { "id": 300 }] }));
    let trunk = with(&trunk, &json!({ "ipam": {} }));
    let fourth = Pod::of("d", &spaces[3]);
    let carried = node.add(&fourth, &trunk);
    for (id, address) in [(200, "10.77.0.200/24"), (100, "10.77.0.201/24")] {
        spaces[3].sh(&format!(
            "ip link add link eth0 name v{id} type vlan id {id}; ip addr add {address} dev v{id}; ip link set v{id} up"
        ));
    }
    within(PATIENCE, || spaces[3].try_sh("ping -n -c 1 -W 1 -I v200 10.77.0.4"));
    assert!(
        spaces[3].try_sh("ping -n -c 1 -W 1 -I v100 10.77.0.2").is_err(),
        "it carries what it was not told"
    );
    node.check(&fourth, &trunk, &carried).unwrap();
    let port = carried["interfaces"][1]["name"].as_str().unwrap();
    let shown = node.host.sh(&format!("bridge vlan show dev {port}"));
    let ids: Vec<&str> =
        shown.split_whitespace().filter(|word| word.bytes().all(|letter| letter.is_ascii_digit())).collect();
    assert_eq!(ids, ["1", "199", "200", "201", "300"], "{shown}");
    node.host.sh(&format!("bridge vlan del dev {port} vid 300"));
    assert!(node.check(&fourth, &trunk, &carried).unwrap_err().msg.contains("VLAN 300"));

    let fifth = node.pod("kept");
    let kept = node.add(&Pod::of("e", &fifth), &with(&other, &json!({ "preserveDefaultVlan": true })));
    let port = kept["interfaces"][1]["name"].as_str().unwrap();
    assert!(node.host.sh(&format!("bridge vlan show dev {port}")).contains(" 1 "));

    node.host.sh("ip link add t1 type bridge");
    let flat = with(&hundred, &json!({ "bridge": "t1" }));
    let sixth = node.pod("flat");
    let refused = node.call("ADD", Some(&Pod::of("f", &sixth)), &flat).unwrap_err();
    assert!(refused.code == 7 && refused.details.contains("vlan_filtering 1"), "{refused}");
    node.del(&first, &hundred);
    node.del(&first, &hundred);
    assert!(!spaces[0].sh("ip -o link").contains("eth0"));
}

#[test]
fn dummy_holds_addresses_and_leads_nowhere() {
    let Some(node) = Node::new("dummy") else { return };
    let pod = node.pod("pod");
    let mut config = config(&node, "dummy", &json!({}));
    config["ipam"]["routes"] = json!([]);
    if !has(&node, &config) {
        return;
    }
    let this = Pod::of("c", &pod);
    let result = node.add(&this, &config);
    pod.ping("10.77.0.2").unwrap();
    node.check(&this, &config, &result).unwrap();
    node.del(&this, &config);
    assert!(!pod.sh("ip -o link").contains("eth0"));
}

#[test]
fn bond_goes_on_by_the_other_link_when_one_is_lost() {
    let Some(node) = Node::new("bond") else { return };
    let (pod, far) = (node.pod("pod"), node.pod("far"));
    let config = config(
        &node,
        "bond",
        &json!({
            "mode": "active-backup", "miimon": "100", "failOverMac": 1, "links": [{ "name": "nic0" }, { "name": "nic1" }],
        }),
    );
    if !has(&node, &config) {
        return;
    }
    node.lab.cable((&node.host, "nic0", &[]), (&far, "port0", &[]));
    node.lab.cable((&node.host, "nic1", &[]), (&far, "port1", &[]));
    far.sh(
        "ip link add joined type bridge; ip link set port0 master joined; ip link set port1 master joined; \
            ip addr add 10.77.0.1/24 dev joined; ip link set joined up",
    );
    let this = Pod::of("c", &pod);
    let result = node.add(&this, &config);
    within(PATIENCE, || pod.ping("10.77.0.1"));
    node.check(&this, &config, &result).unwrap();
    far.sh("ip link set port0 down");
    within(PATIENCE, || pod.ping("10.77.0.1"));
    far.sh("ip link set port0 up; ip link set port1 down");
    within(PATIENCE, || pod.ping("10.77.0.1"));
    pod.sh("ip link set nic1 nomaster");
    assert!(node.check(&this, &config, &result).unwrap_err().msg.contains("nic1"));
    node.del(&this, &config);
    node.del(&this, &config);
    assert_eq!(node.leases("net"), 0);
    assert_eq!(node.links(), ["nic0", "nic1"], "the host has its links back");
    let unreachable = with(&config, &json!({ "ipam": { "type": "none" } }));
    node.call("ADD", Some(&this), &unreachable).unwrap_err();
    assert_eq!(node.links(), ["nic0", "nic1"], "as before, after an ADD that failed");
    let one = with(&config, &json!({ "links": [{ "name": "nic0" }] }));
    assert_eq!(node.call("ADD", Some(&this), &one).unwrap_err().code, 7);
}

#[test]
fn vrf_gives_an_interface_a_routing_domain_and_keeps_its_addresses_and_routes() {
    let Some(node) = Node::new("vrf") else { return };
    let pod = node.pod("pod");
    let this = Pod::of("c", &pod);
    let bridge = config(&node, "bridge", &json!({ "bridge": "t0", "isDefaultGateway": true }));
    let result = node.add(&this, &bridge);
    let config = json!({ "cniVersion": "1.1.0", "name": "net", "type": "vrf", "vrfname": "blue", "prevResult": result });
    if !has(&node, &config) {
        return;
    }
    assert_eq!(node.add(&this, &config), result);
    let table = pod.sh("ip -d link show blue | grep -o 'vrf table [0-9]*' | grep -o '[0-9]*'");
    let routes = pod.sh(&format!("ip route show table {0}; ip -6 route show table {0}", table.trim()));
    assert!(routes.contains("default via 10.77.0.1") && routes.contains("default via fd77::1"), "{routes}");
    assert!(pod.sh("ip -6 addr show eth0").contains("fd77::2"));
    within(PATIENCE, || pod.try_sh("ping -n -c 1 -W 1 -I blue 10.77.0.1"));
    node.check(&this, &config, &result).unwrap();
    pod.sh("ip link set eth0 nomaster");
    assert!(node.check(&this, &config, &result).is_err());
    node.del(&this, &config);
    node.del(&this, &config);
    assert!(!pod.sh("ip -o link").contains("blue"));
}

/// Whether the kernel here has what the plugin needs; none where the test cannot run.
fn kernel_has(plugin: &'static str, more: &Value) -> Option<()> {
    let node = Node::new(plugin)?;
    node.host.sh("ip link add up0 type veth peer name up1");
    has(&node, &config(&node, plugin, more)).then_some(())
}

#[test]
fn links_of_each_kind_print_what_the_go_plugins_print() {
    let prepare = "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up";
    let kinds = [
        ("ipvlan", json!({ "master": "up0", "mode": "l2", "mtu": 1400 })),
        ("vlan", json!({ "master": "up0", "vlanId": 7 })),
        ("dummy", json!({})),
    ];
    for (kind, more) in kinds {
        if kernel_has(kind, &more).is_some() {
            same(kind, prepare, |node| config(node, kind, &more), "");
        }
    }
}

#[test]
fn vrf_prints_what_the_go_plugin_prints() {
    let own = json!({ "vrfname": "blue" });
    if kernel_has("vrf", &own).is_some() {
        same_chained(&with(&json!({ "type": "vrf" }), &own));
    }
}
