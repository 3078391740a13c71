// SPDX-License-Identifier: Apache-2.0
//! Pools for some namespaces, and pools that pods name.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use isthmus_api::annotation::IP_POOLS;
use isthmus_intake::node::NodeObjects;
use isthmus_testkit::{Lab, Namespace, within};
use k8s_openapi::api::core::v1::{Namespace as ApiNamespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use crate::agent::{CONFIG, TestNode, add_pool, cluster, two_nodes};

const SOON: Duration = Duration::from_secs(5);

fn map(key: &str, value: &str) -> Option<BTreeMap<String, String>> {
    Some([(key.to_owned(), value.to_owned())].into())
}

/// The cluster, a pool for namespaces of the team red and one more for all; the namespaces shop (red) and bank.
fn teams(objects: &mut NodeObjects) {
    cluster(objects);
    add_pool(objects, "team", "10.7.0.0/16", &[("10.7.0.0/29", "n1"), ("10.7.0.64/29", "n2")]);
    let selector = LabelSelector { match_labels: map("team", "red"), match_expressions: None };
    objects.pools.get_mut("team").unwrap().spec.namespace_selector = Some(selector);
    for (name, labels) in [("shop", map("team", "red")), ("bank", None)] {
        let mut namespace = ApiNamespace::default();
        namespace.metadata.labels = labels;
        objects.namespaces.insert(name.into(), namespace);
    }
}

/// A pod that the API server has told of, perhaps with pools that it names.
fn know_pod(objects: &mut NodeObjects, namespace: &str, name: &str, pools: Option<&str>) {
    let mut pod = Pod::default();
    pod.metadata.uid = Some(format!("uid-of-{name}"));
    pod.metadata.annotations = pools.and_then(|pools| map(IP_POOLS, pools));
    objects.pods.insert((namespace.into(), name.into()), pod);
}

/// ADD of a pod of this namespace, as containerd makes it.
pub(crate) fn add(
    node: &TestNode,
    namespace: &str,
    name: &str,
    netns: &Namespace,
) -> Result<Vec<String>, Value> {
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=uid-of-{name}"
    );
    let (outcome, printed) = node.call_with(&arguments, "ADD", name, Some(netns), CONFIG);
    if outcome.exit_code != 0 {
        return Err(printed);
    }
    let text = |ip: &Value| ip["address"].as_str().unwrap_or_default().to_owned();
    Ok(printed["ips"].as_array().into_iter().flatten().map(text).collect())
}

/// An agent that can add pods.
pub(crate) fn ready(node: &TestNode) {
    within(SOON, || match node.call("STATUS", "", None, CONFIG) {
        (outcome, _) if outcome.exit_code == 0 => Ok(()),
        (_, printed) => Err(printed),
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_addresses_of_the_pool_for_their_namespace_and_others_do_not() {
    let Some(lab) = Lab::new("agent-teams") else { return };
    let [one, two] = two_nodes(&lab);
    let know = |objects: &mut NodeObjects| {
        teams(objects);
        for (namespace, name) in [("shop", "web"), ("bank", "till"), ("shop", "far")] {
            know_pod(objects, namespace, name, None);
        }
    };
    one.know(know);
    two.know(know);
    ready(&one);
    ready(&two);
    let (web, till, far) = (lab.namespace("web"), lab.namespace("till"), lab.namespace("far"));
    assert_eq!(add(&one, "shop", "web", &web).unwrap(), ["10.7.0.1/32", "fd00:1::1/128"]);
    assert_eq!(add(&one, "bank", "till", &till).unwrap(), ["10.1.0.1/32", "fd00:1::2/128"]);
    assert_eq!(add(&two, "shop", "far", &far).unwrap()[0], "10.7.0.65/32");
    till.ping("10.7.0.1").unwrap();
    within(SOON, || web.ping("10.7.0.65").map_err(|error| error.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_name_its_pool_and_is_told_what_is_wrong_with_one_that_is_not_its() {
    let Some(lab) = Lab::new("agent-named") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(|objects| {
        teams(objects);
        know_pod(objects, "shop", "plain", Some("four"));
        know_pod(objects, "bank", "thief", Some("team"));
        know_pod(objects, "bank", "typo", Some("four;team"));
    });
    ready(&one);
    let (plain, refused) = (lab.namespace("plain"), lab.namespace("refused"));
    assert_eq!(add(&one, "shop", "plain", &plain).unwrap()[0], "10.1.0.1/32");
    for (pod, why, remedy) in [
        ("thief", "does not select the namespace bank", "label the namespace"),
        ("typo", "with commas between", "correct the annotation"),
    ] {
        let began = Instant::now();
        let printed = add(&one, "bank", pod, &refused).unwrap_err();
        assert!(printed["msg"].as_str().unwrap().contains(why), "{printed}");
        assert!(printed["details"].as_str().unwrap().contains(remedy), "{printed}");
        assert!(began.elapsed() < Duration::from_secs(1), "nothing is waited for");
    }
    assert_eq!(
        one.namespace.sh("ip -br link | grep -c ^ist").trim(),
        "1",
        "nothing is left of who was refused"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_may_name_a_pool_is_waited_for_and_one_that_has_no_choice_is_not() {
    let Some(lab) = Lab::new("agent-wait") else { return };
    let [one, _two] = two_nodes(&lab);
    one.know(teams);
    ready(&one);
    let (till, web, late) = (lab.namespace("till"), lab.namespace("web"), lab.namespace("late"));
    let began = Instant::now();
    assert_eq!(add(&one, "bank", "till", &till).unwrap()[0], "10.1.0.1/32", "it has one pool of each family");
    assert!(began.elapsed() < Duration::from_secs(1), "took {:?}", began.elapsed());

    let printed = add(&one, "shop", "web", &web).unwrap_err();
    assert_eq!(printed["code"], 11, "{printed}");
    assert!(printed["msg"].as_str().unwrap().contains("pod shop/web is not known yet"), "{printed}");

    let one = &one;
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| add(one, "shop", "late", &late));
        // By then its ADD has come, too.
        ready(one);
        one.store.change(|objects| know_pod(objects, "shop", "late", None));
        assert_eq!(adding.join().unwrap().unwrap()[0], "10.7.0.1/32");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_team_are_added_also_while_the_api_server_is_silent() {
    let Some(lab) = Lab::new("agent-team-memory") else { return };
    let [mut one, _two] = two_nodes(&lab);
    one.know(|objects| {
        teams(objects);
        know_pod(objects, "shop", "web", Some("team"));
    });
    within(SOON, || if one.path("intent").exists() { Ok(()) } else { Err("nothing is remembered yet") });
    one.kill_agent().await;
    one.silence();
    one.start_agent();
    let web = lab.namespace("web");
    let given = within(Duration::from_secs(20), || add(&one, "shop", "web", &web));
    assert_eq!(given, ["10.7.0.1/32", "fd00:1::1/128"]);
}
