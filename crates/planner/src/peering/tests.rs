// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_api::v1alpha1::{ClusterPeeringStatus, NodeNetworkStatus, TunnelStatus};
use isthmus_mesh::record::{
    Announcement, Cluster, Export, ExportKind, Gateway, Record, SessionAffinity, announcement,
};
use jiff::Timestamp;
use kube::core::Selector;
use serde_json::Value;

use crate::plan::{Kind, ObjectKey, Plan};
use crate::snapshot::{LinkFailure, Node, PeerView, Peering, Pool, Seen, Snapshot};
use crate::testing::{seen, seen_with};

pub(crate) fn identity(letter: char) -> isthmus_model::ids::ClusterIdentity {
    letter.to_string().repeat(64).parse().unwrap()
}

fn peering(letter: char, cidrs: &[&str]) -> Peering {
    Peering {
        identity: identity(letter),
        endpoints: Vec::new(),
        token_secret: None,
        allowed_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        allowed_namespaces: ["shop".to_owned()].into(),
    }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Cluster east (pods 10.1.0.0/16), at second 1000, with these peerings by age.
fn east(peerings: &[(&str, Peering)]) -> Snapshot {
    let mut snapshot = Snapshot { now: time(1000), ..Snapshot::default() };
    snapshot.cluster.property = Some("east".to_owned());
    snapshot.cluster.identity = Some(identity('e'));
    let pool = Pool {
        cidr: "10.1.0.0/16".parse().unwrap(),
        block_prefix: 26,
        nodes: Selector::default(),
        disabled: false,
        allocation: Default::default(),
        namespaces: None,
        reserved: Vec::new(),
        on_request: Vec::new(),
        set_aside: Vec::new(),
    };
    snapshot.pools.insert("v4".to_owned(), seen(pool, 0));
    for name in ["a", "b"] {
        snapshot.nodes.insert(name.to_owned(), Node { ready: true, ..Node::default() });
    }
    for (age, (name, peering)) in peerings.iter().enumerate() {
        snapshot.peerings.insert((*name).to_owned(), seen(peering.clone(), 100 + age as i64));
    }
    snapshot
}

fn announced(id: &str, cidrs: &[&str], exports: &[(&str, &str)]) -> Announcement {
    let cluster = Cluster {
        cluster_id: id.parse().unwrap(),
        pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    };
    let first: ipnet::IpNet = cidrs[0].parse().unwrap();
    let key = [id.as_bytes()[0]; 32];
    let gateway = Gateway {
        name: format!("{id}-gateway"),
        public_key: key.into(),
        endpoints: vec!["198.51.100.7:51820".parse().unwrap()],
        mesh_addresses: vec![first.network()],
        ports: BTreeMap::new(),
        lanes: Vec::new(),
    };
    let exports = exports.iter().map(|(namespace, name)| {
        Record::Export(Export {
            namespace: (*namespace).to_owned(),
            name: (*name).to_owned(),
            created_at: time(0),
            kind: ExportKind::ClusterSetIP,
            ports: Vec::new(),
            session_affinity: SessionAffinity::None,
            internal_traffic_policy: None,
            traffic_distribution: None,
            ip_families: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        })
    });
    announcement([Record::Cluster(cluster), Record::Gateway(gateway)].into_iter().chain(exports))
}

fn hear(snapshot: &mut Snapshot, name: &str, at: i64, announcement: Announcement) {
    let view = PeerView {
        connected: true,
        last_heard: Some(time(at)),
        announcement: Some(Arc::new(announcement)),
        ..PeerView::default()
    };
    snapshot.peers.insert(name.to_owned(), view);
}

fn tunnels(snapshot: &mut Snapshot, peering: &str, up: &[bool]) {
    for (node, up) in ["a", "b"].into_iter().zip(up) {
        let tunnel = TunnelStatus { peering: peering.to_owned(), up: *up, ..TunnelStatus::default() };
        let status = NodeNetworkStatus { tunnels: vec![tunnel], ..NodeNetworkStatus::default() };
        snapshot.node_networks.insert(node.to_owned(), seen_with(Ok(()), status));
    }
}

fn status<'a>(plan: &'a Plan, name: &str) -> &'a Value {
    &plan.statuses[&ObjectKey::cluster(Kind::ClusterPeering, name)]
}

/// Status, reason and message of a condition.
fn condition(plan: &Plan, name: &str, kind: &str) -> (String, String, String) {
    let conditions = status(plan, name)["conditions"].as_array().unwrap();
    let one = conditions.iter().find(|one| one["type"] == kind).unwrap();
    let text = |field: &str| one[field].as_str().unwrap().to_owned();
    (text("status"), text("reason"), text("message"))
}

#[test]
fn a_peer_that_speaks_within_its_grant_through_tunnels_that_are_up_is_ready() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    hear(&mut snapshot, "west", 999, announced("west", &["10.2.0.0/16"], &[]));
    tunnels(&mut snapshot, "west", &[true, true]);
    let plan = crate::plan(&snapshot);

    assert_eq!(condition(&plan, "west", "Ready").0, "True");
    let status = status(&plan, "west");
    assert_eq!(status["clusterID"], "west");
    assert_eq!(status["remoteCIDRs"], serde_json::json!(["10.2.0.0/16"]));
    assert_eq!(status["localGateways"], serde_json::json!(["a", "b"]));
    assert_eq!(status["tunnels"], "2/2");
    assert_eq!(plan.wake, Some(time(1009) + jiff::SignedDuration::from_millis(50)));
}

#[test]
fn a_silent_peer_is_not_fresh_after_ten_seconds_and_keeps_what_it_announced() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    hear(&mut snapshot, "west", 990, announced("west", &["10.2.0.0/16"], &[]));
    tunnels(&mut snapshot, "west", &[true, true]);
    let plan = crate::plan(&snapshot);

    let (fresh, reason, message) = condition(&plan, "west", "Fresh");
    assert_eq!((fresh.as_str(), reason.as_str()), ("False", "Silent"));
    assert!(message.contains("1970-01-01T00:16:30Z"), "{message}");
    assert_eq!(condition(&plan, "west", "Ready").0, "False");
    assert_eq!(status(&plan, "west")["remoteCIDRs"], serde_json::json!(["10.2.0.0/16"]));
}

#[test]
fn a_cidr_outside_the_grant_is_refused_named_and_counted() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    hear(&mut snapshot, "west", 999, announced("west", &["10.2.0.0/16", "10.9.0.0/16"], &[]));
    let plan = crate::plan(&snapshot);

    let (accepted, reason, message) = condition(&plan, "west", "AnnouncementsAccepted");
    assert_eq!((accepted.as_str(), reason.as_str()), ("False", "Refused"));
    assert!(message.contains("cidr 10.9.0.0/16: not within allowedCIDRs"), "{message}");
    assert_eq!(status(&plan, "west")["refused"][0]["what"], "cidr 10.9.0.0/16");
    assert_eq!(plan.refused.values().sum::<u64>(), 1);
}

#[test]
fn an_export_into_a_namespace_that_does_not_exist_is_named_with_the_way_out() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    hear(&mut snapshot, "west", 999, announced("west", &["10.2.0.0/16"], &[("shop", "web")]));
    let plan = crate::plan(&snapshot);
    let message = condition(&plan, "west", "AnnouncementsAccepted").2;
    assert!(message.contains("namespace shop does not exist here; create it"), "{message}");

    snapshot.namespaces.insert("shop".to_owned());
    let plan = crate::plan(&snapshot);
    assert_eq!(condition(&plan, "west", "AnnouncementsAccepted").0, "True");
}

#[test]
fn a_peering_with_this_cluster_itself_stalls_and_nobody_is_talked_to() {
    let plan = crate::plan(&east(&[("me", peering('e', &["10.2.0.0/16"]))]));
    assert_eq!(condition(&plan, "me", "Ready").1, "SelfPeering");
    assert_eq!(condition(&plan, "me", "Stalled").0, "True");
    assert!(plan.peers.is_empty());
}

#[test]
fn a_peer_with_our_cluster_id_is_not_heard_and_told_what_to_change() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    hear(&mut snapshot, "west", 999, announced("east", &["10.2.0.0/16"], &[("shop", "web")]));
    let plan = crate::plan(&snapshot);
    let (ready, _, message) = condition(&plan, "west", "Ready");
    assert_eq!(ready, "False");
    assert!(message.contains("same cluster ID"), "{message}");
    assert!(message.contains("ClusterProperty"), "{message}");
    assert_eq!(status(&plan, "west").get("remoteCIDRs"), None);
}

#[test]
fn of_two_peers_with_one_cidr_the_older_peering_keeps_it() {
    let mut snapshot =
        east(&[("west", peering('f', &["10.2.0.0/16"])), ("north", peering('a', &["10.2.0.0/16"]))]);
    hear(&mut snapshot, "west", 999, announced("west", &["10.2.0.0/16"], &[]));
    hear(&mut snapshot, "north", 999, announced("north", &["10.2.0.0/16"], &[]));
    let plan = crate::plan(&snapshot);
    assert_eq!(status(&plan, "west")["remoteCIDRs"], serde_json::json!(["10.2.0.0/16"]));
    assert_eq!(status(&plan, "north").get("remoteCIDRs"), None);
    assert!(condition(&plan, "north", "Ready").2.contains("ClusterPeering west"));
}

#[test]
fn two_peerings_with_one_identity_are_one_too_many() {
    let plan = crate::plan(&east(&[("one", peering('f', &[])), ("two", peering('f', &[]))]));
    assert_eq!(condition(&plan, "two", "Ready").1, "DuplicateIdentity");
    assert_eq!(plan.peers.keys().collect::<Vec<_>>(), ["one"]);
}

#[test]
fn after_a_restart_the_status_stands_for_the_peer_within_the_grant_of_today() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    hear(&mut snapshot, "west", 999, announced("west", &["10.2.0.0/16"], &[]));
    let plan = crate::plan(&snapshot);
    let kept: ClusterPeeringStatus = serde_json::from_value(status(&plan, "west").clone()).unwrap();

    let restarted = |cidrs: &[&str]| {
        let mut snapshot = east(&[]);
        let mut object: Seen<Peering, _> = seen_with(Ok(peering('f', cidrs)), kept.clone());
        object.created = time(100);
        snapshot.peerings.insert("west".to_owned(), object);
        crate::plan(&snapshot)
    };
    let plan = restarted(&["10.2.0.0/16"]);
    let now = status(&plan, "west");
    assert_eq!(now["remoteCIDRs"], serde_json::json!(["10.2.0.0/16"]));
    assert_eq!(now["remoteGateways"], serde_json::to_value(&kept.remote_gateways).unwrap());
    assert_eq!(condition(&plan, "west", "Fresh").1, "Silent");

    let plan = restarted(&["10.3.0.0/16"]);
    assert_eq!(status(&plan, "west").get("remoteCIDRs"), None);
    assert_eq!(status(&plan, "west").get("remoteGateways"), None);
}

#[test]
fn what_was_in_force_stays_closed_while_it_is_refused_and_no_longer() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    let plan_with = |snapshot: &mut Snapshot| {
        let plan = crate::plan(snapshot);
        let kept = serde_json::from_value(status(&plan, "west").clone()).unwrap();
        snapshot.peerings.get_mut("west").unwrap().status = kept;
        let field = |name: &str| status(&plan, "west").get(name).cloned();
        (field("remoteCIDRs"), field("closedCIDRs"))
    };
    let cidrs = Some(serde_json::json!(["10.2.0.0/16"]));
    hear(&mut snapshot, "west", 999, announced("west", &["10.2.0.0/16"], &[]));
    assert_eq!(plan_with(&mut snapshot), (cidrs.clone(), None));
    // It takes our cluster ID: all of its words are refused.
    hear(&mut snapshot, "west", 999, announced("east", &["10.2.0.0/16"], &[]));
    assert_eq!(plan_with(&mut snapshot), (None, cidrs.clone()));
    // Not heard since this process started: still closed.
    snapshot.peers.clear();
    assert_eq!(plan_with(&mut snapshot), (None, cidrs.clone()));
    // It moves to other addresses: the old ones are not its any more.
    hear(&mut snapshot, "west", 999, announced("east", &["10.4.0.0/16"], &[]));
    assert_eq!(plan_with(&mut snapshot), (None, None));
    hear(&mut snapshot, "west", 999, announced("west", &["10.2.0.0/16"], &[]));
    assert_eq!(plan_with(&mut snapshot), (cidrs.clone(), None));
    // It is no longer granted: whoever took the grant away meant it.
    snapshot.peerings.get_mut("west").unwrap().value = Ok(peering('f', &["10.5.0.0/16"]));
    assert_eq!(plan_with(&mut snapshot), (None, None));
}

#[test]
fn without_a_node_that_can_be_a_gateway_the_condition_names_the_label() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    snapshot.nodes.values_mut().for_each(|node| node.ready = false);
    hear(&mut snapshot, "west", 999, announced("west", &["10.2.0.0/16"], &[]));
    let (up, reason, message) = condition(&crate::plan(&snapshot), "west", "TunnelsUp");
    assert_eq!((up.as_str(), reason.as_str()), ("False", "NoGatewayNode"));
    assert!(message.contains("isthmus.dev/gateway=true"), "{message}");
}

#[test]
fn planning_again_with_the_planned_status_changes_no_time() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    hear(&mut snapshot, "west", 999, announced("west", &["10.2.0.0/16"], &[]));
    let first = crate::plan(&snapshot);
    assert_eq!(first.events.len(), 1);
    let kept: ClusterPeeringStatus = serde_json::from_value(status(&first, "west").clone()).unwrap();
    snapshot.peerings.get_mut("west").unwrap().status = kept;
    snapshot.now = time(1003);
    let second = crate::plan(&snapshot);
    assert_eq!(status(&second, "west"), status(&first, "west"));
    assert!(second.events.is_empty());
}

#[test]
fn a_refused_token_stalls_the_peering_and_a_broken_line_does_not() {
    let mut snapshot = east(&[("west", peering('f', &["10.2.0.0/16"]))]);
    let mut fail = |reason, lasting| {
        let failure = LinkFailure { reason, message: "why".to_owned(), lasting };
        let view = PeerView { failure: Some(failure), ..PeerView::default() };
        snapshot.peers.insert("west".to_owned(), view);
        let plan = crate::plan(&snapshot);
        (condition(&plan, "west", "Connected"), condition(&plan, "west", "Stalled").0)
    };
    let (connected, stalled) = fail("TokenUsed", true);
    assert_eq!(connected, ("False".to_owned(), "TokenUsed".to_owned(), "why".to_owned()));
    assert_eq!(stalled, "True");
    assert_eq!(fail("Disconnected", false).1, "False");
}
