// SPDX-License-Identifier: Apache-2.0
//! Plugins that give addresses.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::node::{Node, Pod, with};

fn host_local(node: &Node, ipam: &Value) -> Value {
    let base = json!({ "type": "host-local", "dataDir": node.dir.path().join("leases") });
    json!({ "cniVersion": "1.1.0", "name": "net", "type": "host-local", "ipam": with(&base, ipam) })
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("ips");
    ips.iter().map(|ip| ip["address"].as_str().expect("an address").to_owned()).collect()
}

#[test]
fn host_local_gives_each_address_once_and_says_when_there_is_none() {
    let Some(node) = Node::new("host-local") else { return };
    let pod = node.pod("pod");
    let config = host_local(&node, &json!({ "subnet": "10.77.0.0/29" }));
    let ids = ["a", "b", "c", "d", "e"];
    let given: Vec<String> =
        ids.iter().flat_map(|id| addresses(&node.add(&Pod::of(id, &pod), &config))).collect();
    assert_eq!(given, ["10.77.0.2/29", "10.77.0.3/29", "10.77.0.4/29", "10.77.0.5/29", "10.77.0.6/29"]);
    assert_eq!(node.call("ADD", Some(&Pod::of("f", &pod)), &config).unwrap_err().code, 11);
    assert_eq!(node.call("STATUS", None, &config).unwrap_err().code, 50);
    assert_eq!(node.call("ADD", Some(&Pod::of("a", &pod)), &config).unwrap_err().code, 103);
    node.del(&Pod::of("c", &pod), &config);
    assert_eq!(addresses(&node.add(&Pod::of("f", &pod), &config)), ["10.77.0.4/29"]);
    node.gc(&config, &["a"]).unwrap();
    assert_eq!(node.leases("net"), 1);
}

#[test]
fn host_local_gives_what_is_asked_for_by_the_runtime_before_args_before_cni_args() {
    let Some(node) = Node::new("asked for") else { return };
    let pod = node.pod("pod");
    let config = host_local(
        &node,
        &json!({ "ranges": [[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }]] }),
    );
    let this = Pod { args: "IP=10.77.0.9", ..Pod::of("c", &pod) };
    assert_eq!(addresses(&node.add(&this, &config)), ["10.77.0.9/24", "fd77::2/64"]);
    node.del(&this, &config);
    let args = with(&config, &json!({ "args": { "cni": { "ips": ["10.77.0.8"] } } }));
    assert_eq!(addresses(&node.add(&this, &args))[0], "10.77.0.8/24");
    node.del(&this, &config);
    let runtime = with(&args, &json!({ "runtimeConfig": { "ips": ["fd77::7", "10.77.0.7/24"] } }));
    assert_eq!(addresses(&node.add(&this, &runtime)), ["10.77.0.7/24", "fd77::7/64"]);
    let other = Pod::of("d", &pod);
    assert_eq!(node.call("ADD", Some(&other), &runtime).unwrap_err().code, 11, "taken");
    assert_eq!(node.leases("net"), 2, "what was reserved before the refusal is free again");
    let outside = with(&config, &json!({ "runtimeConfig": { "ips": ["192.0.2.1"] } }));
    assert_eq!(node.call("ADD", Some(&other), &outside).unwrap_err().code, 7);
    let gateway = with(&config, &json!({ "runtimeConfig": { "ips": ["10.77.0.1"] } }));
    assert_eq!(node.call("ADD", Some(&other), &gateway).unwrap_err().code, 7);
}

#[test]
fn p13_host_local_called_side_by_side_gives_no_address_twice() {
    let Some(node) = Node::new("side by side") else { return };
    let pod = node.pod("pod");
    let config = host_local(&node, &json!({ "subnet": "10.77.0.0/24" }));
    let ids: Vec<String> = (0..24).map(|number| format!("c{number}")).collect();
    let given: Vec<Vec<String>> = std::thread::scope(|scope| {
        let calls: Vec<_> =
            ids.iter().map(|id| scope.spawn(|| addresses(&node.add(&Pod::of(id, &pod), &config)))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(given.concat().into_iter().collect::<BTreeSet<_>>().len(), 24);
    assert_eq!(node.leases("net"), 24);
}

#[test]
fn static_gives_the_addresses_of_the_configuration_or_those_that_are_asked_for() {
    let Some(node) = Node::new("static") else { return };
    let pod = node.pod("pod");
    let config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "static",
        "ipam": {
            "type": "static",
            "addresses": [{ "address": "10.77.0.5/24", "gateway": "10.77.0.254" }, { "address": "fd77::5/64" }],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dns": { "nameservers": ["10.77.0.53"] },
        },
    });
    let this = Pod::of("c", &pod);
    let result = node.add(&this, &config);
    assert_eq!(addresses(&result), ["10.77.0.5/24", "fd77::5/64"]);
    assert_eq!(
        (&result["ips"][0]["gateway"], &result["dns"]["nameservers"][0]),
        (&json!("10.77.0.254"), &json!("10.77.0.53"))
    );
    let asked = Pod { args: "IP=192.0.2.9/28;GATEWAY=192.0.2.1", ..this };
    let result = node.add(&asked, &config);
    assert_eq!(
        (addresses(&result), &result["ips"][0]["gateway"]),
        (vec!["192.0.2.9/28".to_owned()], &json!("192.0.2.1"))
    );
    let none = with(&config, &json!({ "ipam": { "type": "static" } }));
    assert_eq!(node.call("ADD", Some(&this), &none).unwrap_err().code, 7);
}
