// SPDX-License-Identifier: Apache-2.0
//! What namespaces and this node's pods ask for of addresses, by annotations.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_api::annotation::IP_POOLS;
use isthmus_compiler::{Asked, AskingPod, NodeIntent, Wish};
use isthmus_model::ids::PoolName;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::NodeObjects;

/// The kubelet's mirror of a static pod carries the UID by which the kubelet knows the pod.
const STATIC_UID: &str = "kubernetes.io/config.mirror";
/// No pod has use for more.
const POOLS_MAX: usize = 16;

/// After the pools: where they leave no choice, only those that ask are taken in.
pub(super) fn wishes(objects: &NodeObjects, intent: &mut NodeIntent) {
    let all = intent.offers_choice();
    for (name, namespace) in &objects.namespaces {
        let wish = pools(&namespace.metadata);
        if all || wish != Ok(BTreeSet::new()) {
            intent.namespaces.insert(name.clone(), wish);
        }
    }
    for ((namespace, name), pod) in &objects.pods {
        let pod = asking(pod);
        if all || pod.asks != Ok(Asked::default()) {
            intent.pods.entry(namespace.clone()).or_default().insert(name.clone(), pod);
        }
    }
}

fn asking(pod: &Pod) -> AskingPod {
    let meta = &pod.metadata;
    let uid = annotation(meta, STATIC_UID).map(str::to_owned).or_else(|| meta.uid.clone());
    AskingPod { uid: uid.unwrap_or_default(), asks: pools(meta).map(|pools| Asked { pools }) }
}

/// Names of pools with commas between.
fn pools(meta: &ObjectMeta) -> Wish {
    let Some(text) = annotation(meta, IP_POOLS) else { return Ok(BTreeSet::new()) };
    let wrong = |why: String| format!("{IP_POOLS}: {why}; write names of IPPools with commas between");
    let names: Vec<&str> = text.split(',').take(POOLS_MAX + 1).map(str::trim).collect();
    if names.len() > POOLS_MAX {
        return Err(wrong(format!("more than {POOLS_MAX} names")));
    }
    let parse = |name: &&str| name.parse::<PoolName>().map_err(|error| wrong(error.to_string()));
    names.iter().map(parse).collect()
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    let annotations: &BTreeMap<String, String> = meta.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use isthmus_api::v1alpha1::{IPPool, IPPoolSpec};
    use k8s_openapi::api::core::v1::Namespace;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    use super::super::intake;
    use super::*;

    fn map(of: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
        Some(of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    fn pool(cidr: &str, team: Option<&str>) -> IPPool {
        let namespace_selector =
            team.map(|team| LabelSelector { match_labels: map(&[("team", team)]), match_expressions: None });
        IPPool::new("p", IPPoolSpec { cidr: cidr.to_owned(), namespace_selector, ..IPPoolSpec::default() })
    }

    fn namespace(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Namespace {
        let mut namespace = Namespace::default();
        (namespace.metadata.labels, namespace.metadata.annotations) = (map(labels), map(annotations));
        namespace
    }

    fn pod(annotations: &[(&str, &str)]) -> Pod {
        let metadata =
            ObjectMeta { uid: Some("u".into()), annotations: map(annotations), ..ObjectMeta::default() };
        Pod { metadata, ..Pod::default() }
    }

    /// One pool for all; the namespaces shop (of the team red) and bank, with a pod each.
    fn objects() -> NodeObjects {
        let mut objects = NodeObjects::default();
        objects.pools.insert("four".into(), pool("10.1.0.0/16", None));
        objects.namespaces.insert("shop".into(), namespace(&[("team", "red")], &[]));
        objects.namespaces.insert("bank".into(), namespace(&[], &[]));
        for namespace in ["shop", "bank"] {
            objects.pods.insert((namespace.into(), "web".into()), pod(&[]));
        }
        objects
    }

    fn intent(objects: &NodeObjects) -> NodeIntent {
        let (intent, problems) = intake(&"n1".parse().unwrap(), objects);
        assert_eq!(problems, []);
        intent
    }

    #[test]
    fn a_selector_becomes_the_names_of_the_namespaces_that_it_selects() {
        let mut objects = objects();
        objects.pools.insert("team".into(), pool("10.7.0.0/16", Some("red")));
        let intent = intent(&objects);
        let of = |name: &str| intent.pools[&name.parse().unwrap()].namespaces.clone();
        assert_eq!((of("team"), of("four")), (Some(["shop".to_owned()].into()), None));
        let known: Vec<&String> = intent.namespaces.keys().collect();
        assert_eq!(known, ["bank", "shop"]);
        assert_eq!(intent.pods["shop"]["web"].asks, Ok(Asked::default()));
    }

    #[test]
    fn where_pools_leave_no_choice_only_those_are_remembered_that_ask() {
        let mut objects = objects();
        let quiet = intent(&objects);
        assert!(quiet.namespaces.is_empty() && quiet.pods.is_empty());
        objects.pods.insert(("shop".into(), "web".into()), pod(&[(IP_POOLS, "four")]));
        objects.namespaces.insert("bank".into(), namespace(&[], &[(IP_POOLS, "four")]));
        let asking = intent(&objects);
        assert_eq!(asking.pods.keys().collect::<Vec<_>>(), ["shop"]);
        assert_eq!(asking.namespaces.keys().collect::<Vec<_>>(), ["bank"]);
    }

    #[test]
    fn names_are_read_with_blanks_and_what_is_none_is_told() {
        let read = |text: &str| pools(&pod(&[(IP_POOLS, text)]).metadata);
        let names = |names: &[&str]| Ok(names.iter().map(|name| name.parse().unwrap()).collect());
        assert_eq!(read("a, pods-v6 "), names(&["a", "pods-v6"]));
        let many = vec!["a"; 17].join(",");
        for wrong in ["", "a,", "a b", "[\"a\"]", "A", &many] {
            let message = read(wrong).unwrap_err();
            assert!(message.contains(IP_POOLS) && message.contains("commas between"), "{wrong}: {message}");
        }
        assert!(read(&vec!["a"; 16].join(",")).is_ok());
    }

    #[test]
    fn a_static_pod_is_known_by_the_kubelets_uid() {
        assert_eq!(asking(&pod(&[])).uid, "u");
        assert_eq!(asking(&pod(&[(STATIC_UID, "k")])).uid, "k");
    }
}
