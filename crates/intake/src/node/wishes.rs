// SPDX-License-Identifier: Apache-2.0
//! What namespaces and this node's pods ask for of addresses, by annotations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isthmus_api::annotation::{IP_ADDRESSES, IP_POOLS, KEEP_ADDRESSES, MAC_ADDRESS};
use isthmus_compiler::{Asked, AskingPod, NodeIntent, Wish};
use isthmus_model::ids::PoolName;
use isthmus_model::kernel::MacAddress;
use isthmus_model::ownership::HOST_LINK_MAC;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{NodeObjects, mac};

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
    AskingPod { uid: uid.unwrap_or_default(), asks: asks(meta) }
}

fn asks(meta: &ObjectMeta) -> Result<Asked, String> {
    let (addresses, keep_with) = (addresses(meta)?, keep_with(meta)?);
    if keep_with.is_some() && !addresses.is_empty() {
        return Err(format!(
            "{IP_ADDRESSES} and {KEEP_ADDRESSES}: addresses are named or kept; remove one of the two"
        ));
    }
    let asked = Asked { pools: pools(meta)?, addresses, keep_with, mac: mac_address(meta)? };
    if !asked.addresses.is_empty() && annotation(meta, STATIC_UID).is_some() {
        // Its UID comes again, and nobody could tell when the address is free.
        return Err(format!(
            "{IP_ADDRESSES}: a static pod has no address of its own; let a controller make the pod"
        ));
    }
    Ok(asked)
}

/// One address of each family at most, IPv4 first.
fn addresses(meta: &ObjectMeta) -> Result<Vec<IpAddr>, String> {
    let Some(text) = annotation(meta, IP_ADDRESSES) else { return Ok(Vec::new()) };
    let wrong = |why: String| {
        format!("{IP_ADDRESSES}: {why}; write an address of each family at most, with a comma between")
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for word in text.split(',').map(str::trim) {
        let short: String = word.chars().take(64).collect();
        let address: IpAddr = word.parse().map_err(|_| wrong(format!("{short:?} is no address")))?;
        if addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            return Err(wrong("two addresses of a family".to_owned()));
        }
        addresses.push(address);
    }
    addresses.sort();
    Ok(addresses)
}

/// UID of the pod's StatefulSet, where its addresses shall be kept.
fn keep_with(meta: &ObjectMeta) -> Result<Option<String>, String> {
    match annotation(meta, KEEP_ADDRESSES) {
        None | Some("false") => return Ok(None),
        Some("true") => {}
        Some(_) => return Err(format!("{KEEP_ADDRESSES}: write \"true\" or \"false\"")),
    }
    let owners = meta.owner_references.iter().flatten();
    let mut sets = owners.filter(|owner| {
        owner.kind == "StatefulSet"
            && owner.api_version.starts_with("apps/")
            && owner.controller == Some(true)
    });
    let set = sets.next().map(|owner| owner.uid.clone());
    set.map(Some).ok_or_else(|| {
        format!(
            "{KEEP_ADDRESSES}: the pod is of no StatefulSet; remove the annotation, or use {IP_ADDRESSES}"
        )
    })
}

/// One that is said to be local (IEEE 802, clause 8.4): no other interface has it by its maker.
fn mac_address(meta: &ObjectMeta) -> Result<Option<MacAddress>, String> {
    let Some(text) = annotation(meta, MAC_ADDRESS) else { return Ok(None) };
    let local = mac(text.trim()).filter(|mac| mac[0] & 2 != 0 && *mac != HOST_LINK_MAC);
    let short: String = text.chars().take(64).collect();
    local.map(Some).ok_or_else(|| {
        format!("{MAC_ADDRESS}: {short:?} is no unicast address of local administration; write one such as 02:00:00:12:34:56")
    })
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
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};

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
    fn addresses_are_one_of_each_family_in_order_and_what_is_none_is_told() {
        let read = |text: &str| addresses(&pod(&[(IP_ADDRESSES, text)]).metadata);
        let texts =
            |text: &str| read(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(texts("fd00::3, 10.1.2.3").unwrap(), ["10.1.2.3", "fd00::3"]);
        for wrong in ["", "10.1.2.3/32", "10.1.2.3,10.1.2.4", "10.1.2.3,fd00::3,fd00::4", "host"] {
            let message = read(wrong).unwrap_err();
            assert!(message.contains("an address of each family at most"), "{wrong}: {message}");
        }
    }

    #[test]
    fn an_ethernet_address_is_a_local_one_for_one_interface() {
        let read = |text: &str| mac_address(&pod(&[(MAC_ADDRESS, text)]).metadata);
        assert_eq!(read("02:00:00:12:34:aB"), Ok(Some([2, 0, 0, 0x12, 0x34, 0xab])));
        for wrong in ["", "00:16:3e:00:00:01", "03:00:00:00:00:01", "02:00:00:00:00", "ee:ee:ee:ee:ee:ee"] {
            assert!(read(wrong).unwrap_err().contains("such as 02:"), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_kept_with_the_pods_stateful_set_and_without_one_not_at_all() {
        let mut of_set = pod(&[(KEEP_ADDRESSES, "true")]).metadata;
        assert!(keep_with(&of_set).unwrap_err().contains("of no StatefulSet"));
        let owner = |kind: &str| OwnerReference {
            api_version: "apps/v1".into(),
            kind: kind.into(),
            uid: "s".into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        of_set.owner_references = Some(vec![owner("ReplicaSet")]);
        assert!(keep_with(&of_set).is_err());
        of_set.owner_references = Some(vec![owner("StatefulSet")]);
        assert_eq!(keep_with(&of_set), Ok(Some("s".to_owned())));
        of_set.annotations = map(&[(KEEP_ADDRESSES, "true"), (IP_ADDRESSES, "10.1.2.3")]);
        assert!(asks(&of_set).unwrap_err().contains("remove one of the two"));
        assert!(keep_with(&pod(&[(KEEP_ADDRESSES, "yes")]).metadata).is_err());
        assert_eq!(keep_with(&pod(&[(KEEP_ADDRESSES, "false")]).metadata), Ok(None));
    }

    #[test]
    fn a_static_pod_is_known_by_the_kubelets_uid() {
        assert_eq!(asking(&pod(&[])).uid, "u");
        assert_eq!(asking(&pod(&[(STATIC_UID, "k")])).uid, "k");
        let asks = asking(&pod(&[(STATIC_UID, "k"), (IP_ADDRESSES, "10.1.2.3")])).asks;
        assert!(asks.unwrap_err().contains("a static pod has no address of its own"));
    }
}
