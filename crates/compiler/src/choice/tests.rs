// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::intent::Encapsulation;

fn pool(cidr: &str, namespaces: Option<&[&str]>) -> Pool {
    Pool {
        cidr: cidr.parse().unwrap(),
        encapsulation: Encapsulation::CrossSubnet,
        nat_outgoing: true,
        serves_this_node: true,
        disabled: false,
        namespaces: namespaces.map(|names| names.iter().map(ToString::to_string).collect()),
        reserved: Vec::new(),
        external: false,
    }
}

/// Pools of both families for all; the namespaces shop and bank are known.
fn intent(more: &[(&str, Pool)]) -> NodeIntent {
    let mut intent = NodeIntent::nothing();
    let common = [("four", pool("10.1.0.0/16", None)), ("six", pool("fd00:1::/64", None))];
    for (name, pool) in common.iter().chain(more) {
        intent.pools.insert(name.parse().unwrap(), pool.clone());
    }
    intent.namespaces = ["shop", "bank"].map(|name| (name.to_owned(), Ok(BTreeSet::new()))).into();
    for namespace in ["shop", "bank"] {
        asks(&mut intent, namespace, Ok(Asked::default()));
    }
    intent
}

fn names(names: &[&str]) -> BTreeSet<PoolName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

/// The pod `web` of the namespace.
fn asks(intent: &mut NodeIntent, namespace: &str, asks: Result<Asked, String>) {
    let pod = AskingPod { uid: "u".to_owned(), asks };
    intent.pods.insert(namespace.to_owned(), [("web".to_owned(), pod)].into());
}

fn web(namespace: &str) -> PodName {
    PodName { namespace: namespace.to_owned(), name: "web".to_owned(), uid: Some("u".to_owned()) }
}

fn chosen(intent: &NodeIntent, namespace: &str) -> String {
    match intent.pools_for(Some(&web(namespace))) {
        Ok(pools) => {
            let texts: Vec<String> = pools.values().flatten().map(ToString::to_string).collect();
            texts.join(" ")
        }
        Err(Unserved::Unknown { what }) => format!("unknown: {what}"),
        Err(Unserved::Refused { why, remedy }) => format!("refused: {why}; {remedy}"),
    }
}

#[test]
fn a_pool_for_a_namespace_serves_its_pods_alone_and_each_family_by_itself() {
    let intent = intent(&[("team", pool("10.7.0.0/16", Some(&["shop"])))]);
    assert_eq!(chosen(&intent, "shop"), "team six");
    assert_eq!(chosen(&intent, "bank"), "four six");
    assert_eq!(intent.pools_for(None).unwrap()[&false], names(&["four"]), "a container that is no pod");
}

#[test]
fn a_pool_for_a_namespace_that_is_not_for_this_node_leaves_its_pods_to_the_others() {
    for change in [|pool: &mut Pool| pool.disabled = true, |pool: &mut Pool| pool.external = true] {
        let mut team = pool("10.7.0.0/16", Some(&["shop"]));
        change(&mut team);
        team.serves_this_node = false;
        assert_eq!(chosen(&intent(&[("team", team)]), "shop"), "four six");
    }
}

#[test]
fn a_namespace_that_no_pool_is_for_is_told_what_to_change() {
    let mut intent = intent(&[("team", pool("10.7.0.0/16", Some(&["shop"])))]);
    intent.pools.retain(|name, _| name.as_str() == "team");
    assert_eq!(chosen(&intent, "shop"), "team");
    let refusal = chosen(&intent, "bank");
    assert!(refusal.contains("for the namespace bank; create an IPPool without"), "{refusal}");
    intent.pools.clear();
    assert!(chosen(&intent, "shop").contains("no enabled IPPool applies to this node"));
}

#[test]
fn a_pod_names_its_pools_before_its_namespace_does_and_only_of_the_family_that_it_names() {
    let mut intent =
        intent(&[("more", pool("10.7.0.0/16", None)), ("team", pool("10.8.0.0/16", Some(&["shop"])))]);
    intent.namespaces.insert("bank".to_owned(), Ok(names(&["more"])));
    assert_eq!(chosen(&intent, "bank"), "more six");
    asks(&mut intent, "bank", Ok(Asked { pools: names(&["four", "more"]) }));
    assert_eq!(chosen(&intent, "bank"), "four more six");
    asks(&mut intent, "shop", Ok(Asked { pools: names(&["four"]) }));
    assert_eq!(chosen(&intent, "shop"), "four six", "it may leave the pool that is for its namespace");
}

#[test]
fn a_pool_that_is_not_the_pods_to_name_is_refused_with_why_and_what_to_do() {
    let other = |change: fn(&mut Pool)| {
        let mut pool = pool("10.9.0.0/16", None);
        pool.serves_this_node = false;
        change(&mut pool);
        pool
    };
    let pools = [
        ("team", pool("10.8.0.0/16", Some(&["shop"]))),
        ("off", other(|pool| pool.disabled = true)),
        ("theirs", other(|pool| pool.external = true)),
        ("elsewhere", other(|_| {})),
    ];
    for (named, why) in [
        ("team", "whose namespaceSelector does not select the namespace bank; label the namespace"),
        ("off", "which is disabled; name another one"),
        ("theirs", "which another CNI plugin gives out; name a pool"),
        ("elsewhere", "whose nodeSelector does not select this node; give the pod a nodeSelector"),
        ("gone", "which does not exist or is not in force; name another one"),
    ] {
        let mut intent = intent(&pools);
        asks(&mut intent, "bank", Ok(Asked { pools: names(&["four", named]) }));
        let refusal = chosen(&intent, "bank");
        assert!(
            refusal.contains(&format!("the pod asks for addresses of IPPool {named}, {why}")),
            "{refusal}"
        );
        assert_eq!(chosen(&intent, "shop"), "team six", "nobody else is stopped");
    }
}

#[test]
fn a_malformed_wish_is_told_and_stops_nobody_else() {
    let mut intent = intent(&[]);
    asks(&mut intent, "shop", Err("pods, is no list".to_owned()));
    assert!(chosen(&intent, "shop").contains("is no list; correct the annotation"));
    assert_eq!(chosen(&intent, "bank"), "four six");
}

#[test]
fn an_object_is_waited_for_only_where_it_may_decide() {
    let mut plain = intent(&[]);
    (plain.namespaces, plain.pods) = Default::default();
    assert_eq!((plain.offers_choice(), chosen(&plain, "new").as_str()), (false, "four six"));

    let team = [("team", pool("10.8.0.0/16", Some(&["shop"])))];
    let mut selected = intent(&team);
    assert!(selected.offers_choice());
    assert_eq!(chosen(&selected, "new"), "unknown: namespace new");
    selected.pods.clear();
    assert_eq!(chosen(&selected, "bank"), "four six", "there is one pool of each family for it");
    assert_eq!(chosen(&selected, "shop"), "unknown: pod shop/web", "it may name the pool for all");
}

#[test]
fn a_namesake_of_before_is_another_pod() {
    let mut intent = intent(&[("more", pool("10.7.0.0/16", None))]);
    let pod = |uid: Option<&str>| PodName { uid: uid.map(str::to_owned), ..web("shop") };
    asks(&mut intent, "shop", Ok(Asked { pools: names(&["more"]) }));
    assert!(matches!(intent.pools_for(Some(&pod(Some("next")))), Err(Unserved::Unknown { .. })));
    for uid in [Some("u"), None] {
        assert_eq!(intent.pools_for(Some(&pod(uid))).unwrap()[&false], names(&["more"]), "{uid:?}");
    }
}

#[test]
fn a_node_can_add_pods_once_pods_of_most_namespaces_can_be_added() {
    let team = ("team", pool("fd00:7::/64", Some(&["shop"])));
    let mut intent = intent(&[team]);
    assert_eq!(intent.common_pools()[&true], names(&["six"]));
    intent.pools.retain(|name, _| name.as_str() == "team");
    assert_eq!(intent.common_pools()[&true], names(&["team"]));
}
