// SPDX-License-Identifier: Apache-2.0
//! Objects out of a few names and addresses, so that they meet and contradict each other.

use isthmus_intake::node::NodeObjects;
use serde_json::{Value, json};

use crate::input::Input;

const NODES: [&str; 3] = ["n1", "n2", "N_3"];
const POOLS: [&str; 3] = ["pods", "more", "six"];
const PEERINGS: [&str; 3] = ["west", "north", "South"];
const CIDRS: [&str; 16] = [
    "10.1.0.0/16",
    "10.1.128.0/17",
    "10.1.0.0/26",
    "10.1.0.64/26",
    "10.2.0.0/16",
    "10.2.0.0/24",
    "10.2.0.1/24",
    "10.3.0.0/16",
    "10.0.0.0/8",
    "172.18.0.0/16",
    "0.0.0.0/0",
    "fd00:1::/64",
    "fd00:1::/122",
    "fd00:2::/64",
    "fd00::/16",
    "::/0",
];
const ADDRESSES: [&str; 8] =
    ["172.18.0.2", "172.18.0.3", "10.1.0.9", "10.2.0.0", "10.3.0.0", "fd00:1::9", "fd00:2::", "fd18::2"];

/// Objects, each with its kind, until the input ends.
pub(super) fn objects(input: &mut Input<'_>, add: fn(&mut NodeObjects, &Value) -> Option<()>) -> NodeObjects {
    let mut objects = NodeObjects::default();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let object = match input.below(6) {
            0 => node(input),
            1 => pool(input),
            2 => block(input),
            3 => egress(input),
            4 => network(input),
            _ => peering(input),
        };
        let taken = add(&mut objects, &object);
        assert!(taken.is_some(), "the API has another form: {object}");
    }
    objects
}

fn some(input: &mut Input<'_>, of: &[&str]) -> Vec<String> {
    (0..input.below(4)).map(|_| (*input.pick(of)).to_owned()).collect()
}

fn node(input: &mut Input<'_>) -> Value {
    let name = *input.pick(&NODES);
    let addresses: Vec<Value> = some(input, &ADDRESSES)
        .iter()
        .map(|address| json!({ "type": "InternalIP", "address": address }))
        .collect();
    json!({ "kind": "Node", "metadata": { "name": name }, "status": { "addresses": addresses } })
}

fn pool(input: &mut Input<'_>) -> Value {
    let name = *input.pick(&POOLS);
    let created = format!("2026-01-01T00:00:0{}Z", input.below(10));
    json!({
        "kind": "IPPool",
        "metadata": { "name": name, "creationTimestamp": created },
        "spec": {
            "cidr": input.pick(&CIDRS),
            "encapsulation": input.pick(&["Always", "CrossSubnet", "Never"]),
            "natOutgoing": input.flag(),
            "disabled": input.flag(),
        },
    })
}

fn block(input: &mut Input<'_>) -> Value {
    let name = format!("b{}", input.below(8));
    let (pool, cidr, node) = (input.pick(&POOLS), input.pick(&CIDRS), input.pick(&NODES));
    json!({ "kind": "IPBlock", "metadata": { "name": name }, "spec": { "pool": pool, "cidr": cidr, "node": node } })
}

fn egress(input: &mut Input<'_>) -> Value {
    json!({
        "kind": "EgressPolicy",
        "metadata": { "name": format!("e{}", input.below(4)) },
        "spec": {
            "destinationCIDRs": some(input, &CIDRS),
            "gatewaySelector": {},
            "egressIPs": some(input, &ADDRESSES),
        },
        "status": { "gatewayNode": input.pick(&NODES) },
    })
}

fn network(input: &mut Input<'_>) -> Value {
    let tunnel = json!({
        "device": "iw-0", "peering": input.pick(&PEERINGS), "gateway": "g0", "up": input.flag(), "mtu": input.u16(),
    });
    let status = json!({ "vxlanMac": format!("02:00:00:00:00:{:02x}", input.u8()), "tunnels": [tunnel] });
    json!({ "kind": "NodeNetwork", "metadata": { "name": input.pick(&NODES) }, "spec": {}, "status": status })
}

fn peering(input: &mut Input<'_>) -> Value {
    let name = *input.pick(&PEERINGS);
    let gateway = |number: usize, input: &mut Input<'_>| {
        json!({
            "name": format!("g{number}"),
            "publicKey": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
            "endpoints": ["192.0.2.1:51820"],
            "meshAddresses": some(input, &ADDRESSES),
        })
    };
    let gateways: Vec<Value> = (0..input.below(3)).map(|number| gateway(number, input)).collect();
    let mut object = json!({
        "kind": "ClusterPeering",
        "metadata": { "name": name },
        "spec": { "allowedCIDRs": some(input, &CIDRS) },
        "status": {
            "remoteCIDRs": some(input, &CIDRS),
            "closedCIDRs": some(input, &CIDRS),
            "remoteGateways": gateways,
            "localGateways": some(input, &NODES),
        },
    });
    if input.below(8) == 7 {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    object
}
