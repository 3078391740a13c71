// SPDX-License-Identifier: Apache-2.0
//! Kubernetes objects, to what a node is told to do and to what the operator takes from them.

use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_api::v1alpha1::{ClusterPeering, EgressPolicy, IPBlock, IPPool, NodeNetwork, PeeringInvitation};
use isthmus_compiler::{NodeIntent, PodName, Unserved};
use isthmus_intake::cluster::{self, NodePart, ServicePart};
use isthmus_intake::node::{NodeObjects, intake};
use isthmus_model::ownership::LANES_MAX;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::compiled;
use super::object_script::objects;
use crate::Seed;
use crate::input::{Input, Script};

const SCRIPT: u8 = 1;

/// The first byte says what follows: objects as JSON, one a line, or a script of objects.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let objects = if input.u8() == SCRIPT { objects(&mut input, add) } else { of_lines(input.rest()) };
    let (intent, problems) = intake(&"n1".parse().expect("a name"), &objects);
    assert!(problems.iter().all(|problem| !problem.message.is_empty() && problem.object.contains('/')));
    peers_have_what_is_granted(&objects, &intent);
    nobody_has_anothers_addresses(&intent);
    shares_are_the_pods(&objects, &intent);
    compiled::holds(&intent);
}

fn of_lines(text: &[u8]) -> NodeObjects {
    let mut objects = NodeObjects::default();
    for line in text.split(|byte| *byte == b'\n').take(64) {
        if let Ok(value) = serde_json::from_slice::<Value>(line) {
            add(&mut objects, &value);
            for_the_operator(&value);
        }
    }
    objects
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

fn add(objects: &mut NodeObjects, value: &Value) -> Option<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (text(&value["metadata"]["name"]), text(&value["metadata"]["namespace"]));
    match value["kind"].as_str()? {
        "ClusterPeering" => drop(objects.peerings.insert(name, read(value)?)),
        "EgressPolicy" => drop(objects.egress.insert(name, read(value)?)),
        "IPBlock" => drop(objects.blocks.insert(name, read(value)?)),
        "IPPool" => drop(objects.pools.insert(name, read(value)?)),
        "Namespace" => drop(objects.namespaces.insert(name, read::<Namespace>(value)?)),
        "Node" => drop(objects.nodes.insert(name, read::<Node>(value)?)),
        "NodeNetwork" => drop(objects.networks.insert(name, read::<NodeNetwork>(value)?)),
        "Pod" => drop(objects.pods.insert((namespace, name), read::<Pod>(value)?)),
        _ => {}
    }
    Some(())
}

/// Each object is a wish or a problem that says something.
fn for_the_operator(value: &Value) -> Option<()> {
    let wrong = match value["kind"].as_str()? {
        "ClusterPeering" => cluster::peering(&read::<ClusterPeering>(value)?).value.err(),
        "EgressPolicy" => cluster::egress(&read::<EgressPolicy>(value)?).value.err(),
        "IPBlock" => cluster::block(&read::<IPBlock>(value)?).value.err(),
        "IPPool" => cluster::pool(&read::<IPPool>(value)?).value.err(),
        "PeeringInvitation" => cluster::invitation(&read::<PeeringInvitation>(value)?).value.err(),
        "EndpointSlice" => {
            let object = read::<EndpointSlice>(value)?;
            let taken = cluster::service_of(&object).and_then(|service| cluster::slice(&object, &service));
            drop((taken, cluster::mirrored(&object)));
            None
        }
        "Node" => {
            cluster::node(&read::<NodePart>(value)?);
            None
        }
        "Secret" => {
            let object = read::<Secret>(value)?;
            drop((cluster::issued(&object), cluster::token(&object)));
            None
        }
        "Service" => {
            let object = read::<ServicePart>(value)?;
            drop((cluster::service(&object), cluster::derived(&object)));
            None
        }
        _ => None,
    };
    assert!(wrong.is_none_or(|problem| !problem.message.is_empty() && !problem.reason.is_empty()));
    Some(())
}

fn peers_have_what_is_granted(objects: &NodeObjects, intent: &NodeIntent) {
    for (name, peer) in &intent.peers {
        let object = &objects.peerings[name.as_str()];
        assert!(object.metadata.deletion_timestamp.is_none());
        let granted: Vec<IpNet> =
            object.spec.allowed_cidrs.iter().filter_map(|text| text.parse().ok()).collect();
        for cidr in &peer.remote_cidrs {
            assert!(granted.iter().any(|grant| grant.contains(cidr)), "{cidr} of {name} is not granted");
        }
        let inside = |address: &IpAddr| peer.remote_cidrs.iter().any(|cidr| cidr.contains(address));
        assert!(peer.gateways.values().flat_map(|gateway| &gateway.mesh_addresses).all(inside));
        for gateway in peer.gateways.values() {
            assert!(
                gateway.lanes.len() <= LANES_MAX.into() && gateway.lanes.iter().all(|lane| lane.port != 0)
            );
            assert!(gateway.lanes.first().is_none_or(|first| first.public_key == gateway.public_key));
        }
    }
}

fn nobody_has_anothers_addresses(intent: &NodeIntent) {
    let pools = intent.pools.values().map(|pool| pool.cidr);
    let peers = intent.peers.values().flat_map(|peer| peer.remote_cidrs.iter().copied());
    let owned: Vec<IpNet> = pools.chain(peers).collect();
    for (at, one) in owned.iter().enumerate() {
        let overlapping = owned[at + 1..].iter().find(|other| other.contains(one) || one.contains(*other));
        assert_eq!(overlapping, None, "overlaps {one}");
        let node =
            intent.nodes.values().flat_map(|node| &node.addresses).find(|address| one.contains(*address));
        assert_eq!(node, None, "a node's address lies in {one}");
    }
    for (cidr, block) in &intent.blocks {
        assert!(intent.pools[&block.pool].cidr.contains(cidr), "{cidr} lies outside of its pool");
    }
}

/// Whoever asks for whatever gets addresses of its own only where they are its, and else is told something.
fn shares_are_the_pods(objects: &NodeObjects, intent: &NodeIntent) {
    for (namespace, name) in objects.pods.keys() {
        let pod = PodName { namespace: namespace.clone(), name: name.clone(), uid: None };
        match intent.share_of(Some(&pod)) {
            Ok(share) => {
                assert!(!share.pools.is_empty() || !share.own.is_empty());
                for (address, id) in share.own {
                    let block = &intent.blocks[&IpNet::from(address)];
                    assert_eq!(block.pod.as_ref(), Some(&id));
                    assert!(intent.is_self(&block.node) && id.namespace == *namespace && id.name == *name);
                }
            }
            Err(Unserved::Unknown { what: text } | Unserved::Refused { why: text, .. }) => {
                assert!(!text.is_empty());
            }
        }
    }
    for request in intent.requests() {
        assert!(request.addresses.len() <= 2 && !request.pod.uid.is_empty());
    }
}

const NODES: &str = r#"
{"kind":"Node","metadata":{"name":"n1","labels":{"zone":"a"}},"status":{"addresses":[{"type":"InternalIP","address":"172.18.0.2"},{"type":"InternalIP","address":"fd18::2"}]}}
{"kind":"Node","metadata":{"name":"n2"},"status":{"addresses":[{"type":"InternalIP","address":"172.19.0.2"}],"conditions":[{"type":"Ready","status":"True"}]}}
{"kind":"NodeNetwork","metadata":{"name":"n2"},"spec":{"keyGeneration":3},"status":{"vxlanMac":"02:00:00:00:00:02","tunnels":[{"device":"iw-0","peering":"west","gateway":"g1","up":true,"mtu":1380}]}}
{"kind":"IPPool","metadata":{"name":"pods","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"cidr":"10.1.0.0/16","blockSize":26,"encapsulation":"CrossSubnet","nodeSelector":{"matchExpressions":[{"key":"zone","operator":"NotIn","values":["z"]}]}}}
{"kind":"IPPool","metadata":{"name":"six"},"spec":{"cidr":"fd00:1::/64","encapsulation":"Never","natOutgoing":false}}
{"kind":"IPBlock","metadata":{"name":"b1"},"spec":{"pool":"pods","cidr":"10.1.0.0/26","node":"n1"}}
{"kind":"IPBlock","metadata":{"name":"b2"},"spec":{"pool":"pods","cidr":"10.1.0.64/26","node":"n2"}}
"#;
const PEERING: &str = r#"
{"kind":"ClusterPeering","metadata":{"name":"west"},"spec":{"identity":"abababababababababababababababababababababababababababababababab","endpoints":["192.0.2.1:30743"],"allowedCIDRs":["10.2.0.0/15","fd00:2::/48"],"allowedNamespaces":["shop"]},"status":{"remoteCIDRs":["10.2.0.0/16","fd00:2::/64"],"closedCIDRs":["10.3.0.0/24"],"remoteGateways":[{"name":"g1","publicKey":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","endpoints":["192.0.2.1:51820"],"meshAddresses":["10.2.0.0"],"ports":[{"publicKey":"ours","port":51822}],"lanes":[{"publicKey":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","port":51820},{"publicKey":"CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=","port":51822}]}],"localGateways":["n1"]}}
"#;
const EGRESS: &str = r#"
{"kind":"Namespace","metadata":{"name":"shop","labels":{"team":"red"}}}
{"kind":"Pod","metadata":{"name":"web","namespace":"shop","labels":{"app":"web"}}}
{"kind":"EgressPolicy","metadata":{"name":"fixed"},"spec":{"namespaceSelector":{"matchLabels":{"team":"red"}},"destinationCIDRs":["203.0.113.0/24"],"gatewaySelector":{},"egressIPs":["172.19.0.200"]},"status":{"gatewayNode":"n2"}}
"#;
const WISHES: &str = r#"
{"kind":"IPPool","metadata":{"name":"team"},"spec":{"cidr":"10.7.0.0/16","namespaceSelector":{"matchLabels":{"team":"red"}},"onRequest":["10.7.9.0/24"]}}
{"kind":"Namespace","metadata":{"name":"shop","labels":{"team":"red"},"annotations":{"isthmus.dev/ip-pools":"team, six"}}}
{"kind":"Namespace","metadata":{"name":"bank"}}
{"kind":"Pod","metadata":{"name":"web","namespace":"shop","uid":"1","annotations":{"isthmus.dev/ip-addresses":"10.7.9.7","isthmus.dev/mac-address":"02:00:00:00:00:07"}}}
{"kind":"Pod","metadata":{"name":"pg-0","namespace":"shop","uid":"2","annotations":{"isthmus.dev/keep-addresses":"true"},"ownerReferences":[{"apiVersion":"apps/v1","kind":"StatefulSet","name":"pg","uid":"s","controller":true}]}}
{"kind":"Pod","metadata":{"name":"till","namespace":"bank","uid":"3","annotations":{"isthmus.dev/ip-pools":"pods"}}}
{"kind":"Pod","metadata":{"name":"odd","namespace":"bank","uid":"4","annotations":{"isthmus.dev/ip-pools":"pods,,","isthmus.dev/ip-addresses":"10.7.9.8,10.7.9.9"}}}
{"kind":"IPBlock","metadata":{"name":"o1"},"spec":{"pool":"team","cidr":"10.7.9.7/32","node":"n1","pod":{"namespace":"shop","name":"web","uid":"1"}}}
{"kind":"IPBlock","metadata":{"name":"o2"},"spec":{"pool":"team","cidr":"10.7.9.0/32","node":"n1","pod":{"namespace":"shop","name":"pg-0","uid":"2","statefulSet":"s"}}}
"#;
const WRONG: &str = r#"
{"kind":"ClusterPeering","metadata":{"name":"west"},"spec":{"allowedCIDRs":["0.0.0.0/0"]},"status":{"remoteCIDRs":["10.1.0.0/20","172.18.0.0/24","10.2.0.0/16","10.2.0.1/16"],"remoteGateways":[{"name":"g","publicKey":"short","meshAddresses":["10.1.0.7"]}],"localGateways":["n1","N1"]}}
{"kind":"ClusterPeering","metadata":{"name":"north"},"spec":{"allowedCIDRs":["10.0.0.0/8"]},"status":{"remoteCIDRs":["10.2.128.0/17"],"closedCIDRs":["10.1.0.0/16","x"]}}
{"kind":"IPPool","metadata":{"name":"late"},"spec":{"cidr":"10.1.128.0/17","blockSize":99}}
{"kind":"IPPool","metadata":{"name":"net"},"spec":{"cidr":"172.18.0.0/16"}}
{"kind":"IPBlock","metadata":{"name":"orphan"},"spec":{"pool":"gone","cidr":"10.7.0.0/26","node":"n1"}}
{"kind":"EgressPolicy","metadata":{"name":"none"},"spec":{"destinationCIDRs":["x"],"gatewaySelector":{"matchExpressions":[{"key":"a","operator":"Near"}]},"egressIPs":["10.1.0.1","10.1.0.2"]}}
"#;
const OPERATOR: &str = r#"
{"kind":"PeeringInvitation","metadata":{"name":"west"},"spec":{"ttl":"1h30m"}}
{"kind":"PeeringInvitation","metadata":{"name":"long"},"spec":{"ttl":"9999999999h"}}
{"kind":"Secret","metadata":{"name":"i","annotations":{"isthmus.dev/invitation-uid":"u"},"ownerReferences":[{"apiVersion":"isthmus.dev/v1alpha1","kind":"PeeringInvitation","name":"west","uid":"u"}]},"data":{"token":"QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQQ=="}}
{"kind":"Service","metadata":{"name":"web","namespace":"shop"},"spec":{"clusterIP":"None","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":-1}},"ports":[{"port":70000,"protocol":"TCP"},{"port":80}]}}
{"kind":"EndpointSlice","metadata":{"name":"web-1","namespace":"shop","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4","endpoints":[{"addresses":["10.2.0.5"],"nodeName":"n1","conditions":{"ready":false}},{"addresses":[]}],"ports":[{"name":"","port":8080}]}
"#;

pub(crate) fn seeds() -> Vec<Seed> {
    let lines = |parts: &[&str]| parts.concat().into_bytes();
    // A node, a pool, a block of it and a peering with a gateway.
    let script = Script::default().bytes(&[SCRIPT, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0, 2, 0, 0, 2, 0]);
    let script = script
        .bytes(&[5, 0, 1, 1, 3, 1, 4, 1, 4, 1, 7, 1, 0, 0, 3, 0, 1, 9, 1, 0, 1, 4, 0, 1, 1, 5, 0, 200, 2, 1]);
    vec![
        ("nodes", lines(&[NODES])),
        ("peering", lines(&[NODES, PEERING])),
        ("egress", lines(&[NODES, PEERING, EGRESS])),
        ("wishes", lines(&[NODES, WISHES])),
        ("wrong", lines(&[NODES, WRONG])),
        ("operator", lines(&[OPERATOR])),
        ("script", script.end()),
    ]
}
