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
        on_request: Vec::new(),
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
    match intent.share_of(Some(&web(namespace))) {
        Ok(Share { pools, .. }) => {
            let texts: Vec<String> = pools.values().flatten().map(ToString::to_string).collect();
            texts.join(" ")
        }
        Err(Unserved::Unknown { what }) => what,
        Err(Unserved::Refused { why, remedy }) => format!("refused: {why}; {remedy}"),
    }
}

#[test]
fn a_pool_for_a_namespace_serves_its_pods_alone_and_each_family_by_itself() {
    let intent = intent(&[("team", pool("10.7.0.0/16", Some(&["shop"])))]);
    assert_eq!(chosen(&intent, "shop"), "team six");
    assert_eq!(chosen(&intent, "bank"), "four six");
    assert_eq!(intent.share_of(None).unwrap().pools[&false], names(&["four"]), "a container that is no pod");
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
    asks(&mut intent, "bank", Ok(Asked { pools: names(&["four", "more"]), ..Asked::default() }));
    assert_eq!(chosen(&intent, "bank"), "four more six");
    asks(&mut intent, "shop", Ok(Asked { pools: names(&["four"]), ..Asked::default() }));
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
        asks(&mut intent, "bank", Ok(Asked { pools: names(&["four", named]), ..Asked::default() }));
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
    assert_eq!(
        chosen(&selected, "new"),
        "namespace new is not known yet, and what addresses the pod gets may depend on it"
    );
    selected.pods.clear();
    assert_eq!(chosen(&selected, "bank"), "four six", "there is one pool of each family for it");
    assert!(
        chosen(&selected, "shop").starts_with("pod shop/web is not known yet"),
        "it may name the pool for all"
    );
}

#[test]
fn a_namesake_of_before_is_another_pod() {
    let mut intent = intent(&[("more", pool("10.7.0.0/16", None))]);
    let pod = |uid: Option<&str>| PodName { uid: uid.map(str::to_owned), ..web("shop") };
    asks(&mut intent, "shop", Ok(Asked { pools: names(&["more"]), ..Asked::default() }));
    assert!(matches!(intent.share_of(Some(&pod(Some("next")))), Err(Unserved::Unknown { .. })));
    for uid in [Some("u"), None] {
        assert_eq!(intent.share_of(Some(&pod(uid))).unwrap().pools[&false], names(&["more"]), "{uid:?}");
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

/// A pool of both families whose last addresses pods may ask for; the pod shop/web is known.
fn on_request() -> NodeIntent {
    let mut intent = intent(&[]);
    intent.node = Some("n1".parse().unwrap());
    for (pool, range) in [("four", "10.1.9.0/24"), ("six", "fd00:1::9:0/112")] {
        let pool = intent.pools.get_mut(&pool.parse().unwrap()).unwrap();
        (pool.on_request, pool.reserved) = (vec![range.parse().unwrap()], vec![range.parse().unwrap()]);
    }
    intent
}

fn ask(intent: &mut NodeIntent, namespace: &str, addresses: &[&str]) {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    asks(intent, namespace, Ok(Asked { addresses, ..Asked::default() }));
}

/// A block of `cidr` for node and pod (of the namespace shop).
fn block(intent: &mut NodeIntent, cidr: &str, node: &str, pod: Option<(&str, &str)>) {
    let id =
        |(name, uid): (&str, &str)| PodId { namespace: "shop".into(), name: name.into(), uid: uid.into() };
    let block =
        crate::intent::Block { pool: "four".parse().unwrap(), node: node.parse().unwrap(), pod: pod.map(id) };
    intent.blocks.insert(cidr.parse().unwrap(), block);
}

fn share(intent: &NodeIntent) -> Result<Share, Unserved> {
    intent.share_of(Some(&web("shop")))
}

#[test]
fn a_pod_has_the_address_that_it_asks_for_once_its_node_holds_it_for_it() {
    let mut intent = on_request();
    ask(&mut intent, "shop", &["10.1.9.7"]);
    let Err(Unserved::Unknown { what }) = share(&intent) else { panic!("{:?}", share(&intent)) };
    assert!(what.contains("has not given 10.1.9.7 to this node yet"), "{what}");
    assert_eq!(intent.requests().count(), 1);
    assert_eq!(intent.own_addresses_of_pods().count(), 0);

    block(&mut intent, "10.1.9.7/32", "n1", Some(("web", "u")));
    let share = share(&intent).unwrap();
    assert_eq!(share.own.iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>(), ["10.1.9.7"]);
    assert_eq!(share.pools, [(true, names(&["six"]))].into(), "the other family is as without");
    let (address, pod) = intent.own_addresses_of_pods().next().unwrap();
    assert_eq!((address.to_string(), pod.uid.as_str()), ("10.1.9.7".to_owned(), "u"));

    asks(&mut intent, "shop", Ok(Asked::default()));
    assert_eq!(intent.own_addresses_of_pods().count(), 0, "what is not asked for is not given");
}

#[test]
fn an_address_that_somebody_holds_is_refused_with_who_does() {
    let mut intent = on_request();
    ask(&mut intent, "shop", &["10.1.9.7"]);
    block(&mut intent, "10.1.9.7/32", "n2", Some(("db", "d")));
    let refusal = chosen(&intent, "shop");
    assert!(refusal.contains("which the pod shop/db on node n2 holds; delete that pod"), "{refusal}");
    for (node, uid) in [("n2", "u"), ("n1", "before")] {
        block(&mut intent, "10.1.9.7/32", node, Some(("web", uid)));
        assert!(chosen(&intent, "shop").contains("still held by the pod shop/web"), "{node} {uid}");
    }
}

#[test]
fn an_address_that_is_not_there_to_be_asked_for_is_refused_with_what_to_do() {
    for (address, why) in [
        ("192.0.2.1", "lies in no IPPool; ask for one of a pool's spec.onRequest"),
        ("10.1.8.1", "which IPPool four does not leave to those who ask; ask for one"),
    ] {
        let mut intent = on_request();
        ask(&mut intent, "shop", &[address]);
        assert!(chosen(&intent, "shop").contains(why), "{}", chosen(&intent, "shop"));
        assert_eq!(intent.requests().count(), 0, "the operator is not asked either");
        assert_eq!(chosen(&intent, "bank"), "four six", "nobody else is stopped");
    }
    let mut intent = on_request();
    ask(&mut intent, "bank", &["10.1.9.7"]);
    block(&mut intent, "10.1.9.0/26", "n2", None);
    assert!(chosen(&intent, "bank").contains("lies in the block 10.1.9.0/26 of node n2; ask for one"));
    intent.pools.get_mut(&"four".parse().unwrap()).unwrap().namespaces = Some(["shop".to_owned()].into());
    assert!(chosen(&intent, "bank").contains("is not for the namespace bank; label the namespace"));
}

#[test]
fn a_pool_that_gives_nothing_unasked_serves_only_who_asks() {
    let mut intent = on_request();
    let range = "10.9.0.0/24".parse().unwrap();
    let asked =
        Pool { on_request: vec![range], reserved: vec![range], ..pool("10.9.0.0/24", Some(&["shop"])) };
    intent.pools.insert("fixed".parse().unwrap(), asked);
    assert_eq!(chosen(&intent, "shop"), "four six");
    asks(&mut intent, "shop", Ok(Asked { pools: names(&["fixed"]), ..Asked::default() }));
    assert!(chosen(&intent, "shop").contains("which gives nothing out unasked"));
    ask(&mut intent, "shop", &["10.9.0.7"]);
    block(&mut intent, "10.9.0.7/32", "n1", Some(("web", "u")));
    assert_eq!(share(&intent).unwrap().own.len(), 1);
}

#[test]
fn where_something_can_be_asked_for_the_pod_is_waited_for_and_may_have_an_ethernet_address() {
    let mac = Some([2, 0, 0, 0, 0, 7]);
    let mut plain = intent(&[]);
    asks(&mut plain, "shop", Ok(Asked { mac, ..Asked::default() }));
    assert!(
        chosen(&plain, "shop").contains("anything to ask for; give a pool"),
        "{}",
        chosen(&plain, "shop")
    );

    let mut intent = on_request();
    asks(&mut intent, "shop", Ok(Asked { mac, ..Asked::default() }));
    assert_eq!(share(&intent).unwrap().mac, mac);
    intent.pods.clear();
    assert!(chosen(&intent, "shop").contains("pod shop/web is not known yet"));
}

fn keep(intent: &mut NodeIntent, pools: &[&str]) {
    let keep_with = Some("set".to_owned());
    asks(intent, "shop", Ok(Asked { pools: names(pools), keep_with, ..Asked::default() }));
}

#[test]
fn kept_addresses_come_of_the_named_pool_before_the_namespaces_and_of_that_before_those_for_all() {
    let aside = |cidr: &str, namespaces| {
        let range = vec![cidr.parse().unwrap()];
        Pool { on_request: range.clone(), reserved: range, ..pool(cidr, namespaces) }
    };
    let from = |intent: &NodeIntent| {
        intent
            .requests()
            .flat_map(|request| request.keep_from)
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
    };
    let mut intent = on_request();
    keep(&mut intent, &[]);
    assert_eq!(from(&intent), ["four", "six"]);
    intent.pools.insert("team".parse().unwrap(), aside("10.8.0.0/24", Some(&["shop"])));
    intent.pools.insert("more".parse().unwrap(), aside("10.9.0.0/24", None));
    assert_eq!(from(&intent), ["team", "six"]);
    intent.namespaces.insert("shop".to_owned(), Ok(names(&["more"])));
    assert_eq!(from(&intent), ["more", "six"]);
    keep(&mut intent, &["four"]);
    assert_eq!(from(&intent), ["four", "six"]);
}

#[test]
fn a_pod_has_what_is_kept_for_its_name_once_that_is_at_its_node_and_for_it() {
    let mut intent = on_request();
    intent.pools.retain(|name, _| name.as_str() == "four");
    keep(&mut intent, &[]);
    assert!(chosen(&intent, "shop").contains("has not given the pod an IPv4 address to keep yet"));
    for (node, uid) in [("n2", "before"), ("n2", "u"), ("n1", "before")] {
        block(&mut intent, "10.1.9.7/32", node, Some(("web", uid)));
        let why = chosen(&intent, "shop");
        assert!(why.contains(&format!("10.1.9.7 of the pod is still at node {node}")), "{why}");
        assert_eq!(intent.own_addresses_of_pods().count(), 0);
    }
    block(&mut intent, "10.1.9.7/32", "n1", Some(("web", "u")));
    assert_eq!(share(&intent).unwrap().own[0].0.to_string(), "10.1.9.7");
    assert!(share(&intent).unwrap().pools.is_empty());
    assert_eq!(intent.own_addresses_of_pods().count(), 1);
}

#[test]
fn a_pod_whose_addresses_cannot_be_kept_is_told_so() {
    let mut intent = intent(&[]);
    keep(&mut intent, &[]);
    assert!(chosen(&intent, "shop").contains("no IPPool of this node has any for it; give a pool"));
    assert_eq!(intent.requests().count(), 0);
}
