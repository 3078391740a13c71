// SPDX-License-Identifier: Apache-2.0
//! Egress through a gateway node with a fixed address.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_api::v1alpha1::{EgressPolicy, EgressPolicySpec, EgressPolicyStatus};
use isthmus_intake::node::NodeObjects;
use isthmus_testkit::{Lab, within};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::agent::{CONFIG, cluster, two_nodes};

const SOON: Duration = Duration::from_secs(5);
pub(crate) const OUTSIDE: &str = "203.0.113.9";

pub(crate) fn labels() -> Option<BTreeMap<String, String>> {
    Some(BTreeMap::from([("app".to_owned(), "billing".to_owned())]))
}

pub(crate) fn know_pod(objects: &mut NodeObjects, name: &str, labels: Option<BTreeMap<String, String>>) {
    let mut pod = Pod::default();
    pod.metadata.labels = labels;
    objects.pods.insert(("shop".into(), name.into()), pod);
}

/// Pods with the label reach the outside through `gateway` as 203.0.113.200.
pub(crate) fn policy(gateway: Option<&str>) -> EgressPolicy {
    let spec = EgressPolicySpec {
        pod_selector: Some(LabelSelector { match_labels: labels(), ..Default::default() }),
        destination_cidrs: vec!["203.0.113.0/24".into()],
        egress_ips: vec!["203.0.113.200".into()],
        ..Default::default()
    };
    let mut object = EgressPolicy::new("fixed", spec);
    object.status =
        Some(EgressPolicyStatus { gateway_node: gateway.map(str::to_owned), ..Default::default() });
    object
}

pub(crate) fn outside(lab: &Lab, gateway: &isthmus_testkit::Namespace) -> isthmus_testkit::Namespace {
    let outside = lab.namespace("outside");
    lab.cable((gateway, "eth1", &["203.0.113.1/24"]), (&outside, "eth0", &["203.0.113.9/24"]));
    // A cable is slow to come up, and this is not about cables.
    within(SOON, || outside.ping("203.0.113.1").map_err(|error| error.to_string()));
    // Whoever comes with another address is not heard.
    outside.sh("nft add table ip t; nft 'add chain ip t in { type filter hook input priority 0; }';
         nft add rule ip t in icmp type echo-request ip saddr != 203.0.113.200 drop");
    outside
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selected_pod_leaves_through_the_gateway_with_the_fixed_address_from_its_first_packet() {
    let Some(lab) = Lab::new("egress") else { return };
    let [one, two] = two_nodes(&lab);
    let _outside = outside(&lab, &two.namespace);
    let know = |objects: &mut NodeObjects| {
        cluster(objects);
        objects.egress.insert("fixed".into(), policy(Some("n2")));
        know_pod(objects, "billing", labels());
        know_pod(objects, "other", None);
    };
    one.know(know);
    two.know(know);
    let translates = || two.namespace.sh("nft list ruleset").contains("snat ip to 203.0.113.200");
    within(SOON, || if translates() { Ok(()) } else { Err("no egress address on the gateway") });
    assert!(two.namespace.sh("ip -br addr show eth1").contains("203.0.113.200/32"), "the gateway holds it");
    let (billing, other, local) = (lab.namespace("billing"), lab.namespace("other"), lab.namespace("local"));
    one.add("billing", &billing);
    billing.ping(OUTSIDE).unwrap();
    one.add("other", &other);
    assert!(other.ping(OUTSIDE).is_err(), "a pod that is not selected has no way there");
    two.store.change(|objects| know_pod(objects, "local", labels()));
    two.add("local", &local);
    local.ping(OUTSIDE).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_gateway_a_selected_pod_reaches_pods_but_not_the_outside() {
    let Some(lab) = Lab::new("egress-closed") else { return };
    let [one, two] = two_nodes(&lab);
    let outside = outside(&lab, &one.namespace);
    outside.sh("nft flush ruleset");
    let know = |objects: &mut NodeObjects| {
        cluster(objects);
        objects.egress.insert("fixed".into(), policy(None));
        know_pod(objects, "billing", labels());
        know_pod(objects, "other", None);
    };
    one.know(know);
    two.know(know);
    let (billing, other) = (lab.namespace("billing"), lab.namespace("other"));
    one.add("billing", &billing);
    let inside = one.add("other", &other).remove(0);
    other.ping(OUTSIDE).unwrap();
    assert!(billing.ping(OUTSIDE).is_err(), "it must not leak with the node's address");
    billing.ping(&inside).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_egress_policies_a_pod_that_is_not_known_yet_is_waited_for() {
    let Some(lab) = Lab::new("egress-wait") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(|objects| {
        cluster(objects);
        objects.egress.insert("fixed".into(), policy(None));
        know_pod(objects, "first", None);
    });
    one.add("first", &lab.namespace("first"));
    let pod = lab.namespace("late");
    let (_, printed) = one.call("ADD", "late", Some(&pod), CONFIG);
    assert_eq!(printed["code"], 11, "{printed}");
    assert!(printed["msg"].as_str().unwrap().contains("pod shop/late is not known yet"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_egress_policies_a_container_that_names_no_pod_is_refused() {
    let Some(lab) = Lab::new("egress-nameless") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(|objects| {
        cluster(objects);
        objects.egress.insert("fixed".into(), policy(None));
        know_pod(objects, "first", None);
    });
    one.add("first", &lab.namespace("first"));
    let pod = lab.namespace("nameless");
    for arguments in ["", "IgnoreUnknown=1", "K8S_POD_NAMESPACE=shop", "K8S_POD_NAME=web"] {
        let (_, printed) = one.call_with(arguments, "ADD", "nameless", Some(&pod), CONFIG);
        assert_eq!(printed["code"], 4, "CNI_ARGS {arguments:?}: {printed}");
        assert!(printed["msg"].as_str().unwrap().contains("K8S_POD_NAME"), "{printed}");
    }
}
