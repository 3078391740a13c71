// SPDX-License-Identifier: Apache-2.0
//! Pods with addresses of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_api::annotation::{IP_ADDRESSES, KEEP_ADDRESSES, MAC_ADDRESS};
use isthmus_api::v1alpha1::{BlockPod, IPBlock, IPBlockSpec};
use isthmus_intake::node::NodeObjects;
use isthmus_testkit::{Lab, within};
use k8s_openapi::api::core::v1::{Namespace as ApiNamespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use crate::agent::{CONFIG, TestNode, cluster, two_nodes};
use crate::choice::{add, ready};

const SOON: Duration = Duration::from_secs(5);
const ADDRESS: &str = "10.1.9.7";

/// The cluster, whose IPv4 pool leaves a range to those who ask.
fn on_request(objects: &mut NodeObjects) {
    cluster(objects);
    objects.pools.get_mut("four").unwrap().spec.on_request = vec!["10.1.9.0/24".into()];
    objects.namespaces.insert("shop".into(), ApiNamespace::default());
}

/// A pod of the namespace shop that asks.
fn know_pod(objects: &mut NodeObjects, name: &str, asks: &[(&str, &str)]) {
    let asks: BTreeMap<String, String> =
        asks.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut pod = Pod::default();
    pod.metadata.uid = Some(format!("uid-of-{name}"));
    pod.metadata.annotations = Some(asks);
    objects.pods.insert(("shop".into(), name.into()), pod);
}

/// And a pod that asks for nothing.
fn on_request_with_far(objects: &mut NodeObjects) {
    on_request(objects);
    know_pod(objects, "far", &[]);
}

/// What the operator gives a node for a pod.
fn give(objects: &mut NodeObjects, node: &str, pod: &str) {
    let uid = format!("uid-of-{pod}");
    let pod = Some(BlockPod { namespace: "shop".into(), name: pod.into(), uid, stateful_set: None });
    let cidr = format!("{ADDRESS}/32");
    let spec = IPBlockSpec { pool: "four".into(), cidr, node: node.into(), pod };
    objects.blocks.insert("four-own".into(), IPBlock::new("four-own", spec));
}

/// What the node tells the operator: who asks, and whether the address is in use.
fn told(node: &TestNode) -> (Vec<String>, Option<i64>) {
    let report = node.report.borrow();
    let Some(status) = report.as_ref().map(|report| report.status()) else { return Default::default() };
    let asking =
        status.requests.iter().map(|request| format!("{} {}", request.name, request.addresses.join(",")));
    let block = status.blocks.iter().find(|block| block.cidr == format!("{ADDRESS}/32"));
    (asking.collect(), block.map(|block| block.allocated))
}

#[track_caller]
fn tells(node: &TestNode, asking: &[&str], in_use: Option<i64>) {
    let expected = (asking.iter().map(ToString::to_string).collect(), in_use);
    within(SOON, || if told(node) == expected { Ok(()) } else { Err(format!("{:?}", told(node))) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_the_addresses_that_it_asks_for_and_other_nodes_reach_it() {
    let Some(lab) = Lab::new("agent-own") else { return };
    let [one, two] = two_nodes(&lab);
    one.know(|objects| {
        on_request_with_far(objects);
        know_pod(objects, "web", &[(IP_ADDRESSES, ADDRESS), (MAC_ADDRESS, "02:00:00:00:00:07")]);
    });
    two.know(on_request_with_far);
    ready(&one);
    ready(&two);
    tells(&one, &["web 10.1.9.7"], None);
    let (web, far) = (lab.namespace("web"), lab.namespace("far"));
    let printed = add(&one, "shop", "web", &web).unwrap_err();
    assert_eq!(printed["code"], 11, "{printed}");
    assert!(
        printed["msg"].as_str().unwrap().contains("has not given 10.1.9.7 to this node yet"),
        "{printed}"
    );

    for node in [&one, &two] {
        node.store.change(|objects| give(objects, "n1", "web"));
    }
    tells(&one, &["web 10.1.9.7"], Some(0));
    assert_eq!(add(&one, "shop", "web", &web).unwrap(), ["10.1.9.7/32", "fd00:1::1/128"]);
    assert!(web.sh("ip link show eth0").contains("link/ether 02:00:00:00:00:07"));
    tells(&one, &["web 10.1.9.7"], Some(1));
    add(&two, "shop", "far", &far).unwrap();
    within(SOON, || far.ping(ADDRESS).map_err(|error| error.to_string()));
    assert!(
        !one.namespace.sh("ip addr show lo").contains(ADDRESS),
        "a pod's block has no address of the node's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_another_pod_has_is_refused_with_who_has_it_and_its_holder_keeps_it() {
    let Some(lab) = Lab::new("agent-own-taken") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(|objects| {
        on_request(objects);
        know_pod(objects, "web", &[(IP_ADDRESSES, ADDRESS)]);
        know_pod(objects, "thief", &[(IP_ADDRESSES, ADDRESS)]);
        know_pod(objects, "wild", &[(IP_ADDRESSES, "10.1.0.3")]);
        give(objects, "n1", "web");
    });
    ready(&one);
    let (web, other) = (lab.namespace("web"), lab.namespace("other"));
    add(&one, "shop", "web", &web).unwrap();
    for (pod, why) in [
        ("thief", "which the pod shop/web on node n1 holds"),
        ("wild", "which IPPool four does not leave to those who ask"),
    ] {
        let printed = add(&one, "shop", pod, &other).unwrap_err();
        assert!(printed["msg"].as_str().unwrap().contains(why), "{printed}");
    }
    let (outcome, printed) = one.call("DEL", "thief", None, CONFIG);
    assert_eq!(outcome.exit_code, 0, "{printed}");
    other.sh("true");
    one.namespace.ping(ADDRESS).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_a_pods_own_outlives_the_agent_and_is_told_to_be_in_use_until_it_is_not() {
    let Some(lab) = Lab::new("agent-own-kept") else { return };
    let [mut one, _two] = two_nodes(&lab);
    one.know(|objects| {
        on_request(objects);
        know_pod(objects, "web", &[(IP_ADDRESSES, ADDRESS), (MAC_ADDRESS, "02:00:00:00:00:07")]);
        know_pod(objects, "twin", &[(MAC_ADDRESS, "02:00:00:00:00:07")]);
        give(objects, "n1", "web");
    });
    ready(&one);
    let (web, twin) = (lab.namespace("web"), lab.namespace("twin"));
    let (outcome, previous) =
        one.call_with("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web", "ADD", "web", Some(&web), CONFIG);
    assert_eq!(outcome.exit_code, 0, "{previous}");
    one.kill_agent().await;
    one.start_agent();
    ready(&one);
    let check = json!({ "cniVersion": "1.1.0", "name": "isthmus", "prevResult": previous }).to_string();
    let (outcome, printed) = one.call("CHECK", "web", Some(&web), &check);
    assert_eq!(outcome.exit_code, 0, "{printed}");
    let printed = add(&one, "shop", "twin", &twin).unwrap_err();
    assert!(printed["msg"].as_str().unwrap().contains("in use by container web"), "{printed}");

    // The pod is gone from the API, and its container is not.
    one.store.change(|objects| drop(objects.pods.remove(&("shop".to_owned(), "web".to_owned()))));
    tells(&one, &[], Some(1));
    assert_eq!(one.call("DEL", "web", None, CONFIG).0.exit_code, 0);
    tells(&one, &[], Some(0));
    one.store.change(|objects| drop(objects.blocks.remove("four-own")));
    tells(&one, &[], None);
}

/// A pod of a StatefulSet whose addresses are kept, and the block of its name at `node`, for the pod with this UID.
fn know_kept(objects: &mut NodeObjects, here: bool, node: &str, uid: &str) {
    let key = ("shop".to_owned(), "web-0".to_owned());
    objects.pods.remove(&key);
    if here {
        let owner = OwnerReference {
            api_version: "apps/v1".into(),
            kind: "StatefulSet".into(),
            uid: "set".into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        know_pod(objects, "web-0", &[(KEEP_ADDRESSES, "true")]);
        let metadata = &mut objects.pods.get_mut(&key).unwrap().metadata;
        (metadata.uid, metadata.owner_references) = (Some(uid.to_owned()), Some(vec![owner]));
    }
    give(objects, node, "web-0");
    let pod = objects.blocks.get_mut("four-own").unwrap().spec.pod.as_mut().unwrap();
    (pod.uid, pod.stateful_set) = (uid.to_owned(), Some("set".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_address_is_given_where_its_block_is_and_routes_follow_it_to_another_node() {
    let Some(lab) = Lab::new("agent-kept") else { return };
    let [one, two] = two_nodes(&lab);
    one.know(|objects| {
        on_request_with_far(objects);
        know_kept(objects, true, "n1", "first");
    });
    two.know(|objects| {
        on_request_with_far(objects);
        know_kept(objects, false, "n1", "first");
    });
    ready(&one);
    ready(&two);
    let add_as = |node: &TestNode, container: &str, uid: &str, netns: &isthmus_testkit::Namespace| {
        let arguments = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID={uid}");
        node.call_with(&arguments, "ADD", container, Some(netns), CONFIG)
    };
    let (web, far, next) = (lab.namespace("web"), lab.namespace("far"), lab.namespace("next"));
    let (outcome, printed) = add_as(&one, "c1", "first", &web);
    assert_eq!((outcome.exit_code, &printed["ips"][0]["address"]), (0, &json!("10.1.9.7/32")), "{printed}");
    add(&two, "shop", "far", &far).unwrap();
    within(SOON, || far.ping(ADDRESS).map_err(|error| error.to_string()));

    // The pod comes to the other node before the operator has moved the block.
    two.store.change(|objects| know_kept(objects, true, "n1", "second"));
    two.store.change(|objects| {
        objects.blocks.get_mut("four-own").unwrap().spec.pod.as_mut().unwrap().uid = "first".into();
    });
    let (_, printed) = add_as(&two, "c2", "second", &next);
    assert!(printed["msg"].as_str().unwrap().contains("is still at node n1"), "{printed}");
    one.store.change(|objects| know_kept(objects, false, "n1", "first"));
    assert_eq!(one.call("DEL", "c1", None, CONFIG).0.exit_code, 0);
    tells(&one, &[], Some(0));
    one.store.change(|objects| know_kept(objects, false, "n2", "second"));
    two.store.change(|objects| know_kept(objects, true, "n2", "second"));
    let (outcome, printed) = add_as(&two, "c2", "second", &next);
    assert_eq!((outcome.exit_code, &printed["ips"][0]["address"]), (0, &json!("10.1.9.7/32")), "{printed}");
    within(SOON, || one.namespace.ping(ADDRESS).map_err(|error| error.to_string()));
    far.ping(ADDRESS).unwrap();
}
