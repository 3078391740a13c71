// SPDX-License-Identifier: Apache-2.0
use isthmus_api::v1alpha1::PeeringInvitationStatus;
use jiff::SignedDuration;
use kube::core::Selector;

use super::*;
use crate::snapshot::{Node, Pool, Random, Seen};
use crate::testing::seen;

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn east() -> Snapshot {
    let mut snapshot = Snapshot { now: time(1000), ..Snapshot::default() };
    snapshot.cluster.property = Some("east".to_owned());
    snapshot.cluster.identity = Some("e".repeat(64).parse().unwrap());
    snapshot.cluster.system_namespace = "isthmus-system".to_owned();
    snapshot.cluster.leader_addresses = vec!["172.18.0.4".parse().unwrap()];
    snapshot.cluster.peering_node_port = 30743;
    snapshot.cluster.random = Some(Random([7; 32]));
    let node = Node {
        addresses: vec!["172.18.0.4".parse().unwrap(), "fc00::4".parse().unwrap()],
        ready: true,
        ..Node::default()
    };
    snapshot.nodes.insert("a".to_owned(), node);
    let cidr = "10.1.0.0/16".parse().unwrap();
    let pool = Pool {
        cidr,
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
    let invitation = Invitation {
        ttl: SignedDuration::from_mins(15),
        endpoints: Vec::new(),
        allowed_namespaces: vec!["shop".to_owned()],
    };
    let seen: Seen<Invitation, PeeringInvitationStatus> = seen(invitation, 990);
    snapshot.invitations.insert("west".to_owned(), seen);
    snapshot
}

fn made(plan: &Plan) -> Secret {
    let (_, body) = plan.create.first_key_value().expect("a Secret");
    serde_json::from_value(body.clone()).unwrap()
}

fn issued(expires_at: i64, redeemed_by: Option<&str>) -> Issued {
    Issued {
        secret: "isthmus-invitation-west".to_owned(),
        uid: "s".to_owned(),
        invitation_uid: "u".to_owned(),
        hash: token(&[7; 32], "u").hash(),
        expires_at: time(expires_at),
        redeemed_by: redeemed_by.map(str::to_owned),
        has_manifest: true,
    }
}

fn condition(plan: &Plan, kind: &str) -> (String, String) {
    let status = &plan.statuses[&ObjectKey::cluster(Kind::PeeringInvitation, "west")];
    let one =
        status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == kind).unwrap().clone();
    (one["status"].as_str().unwrap().to_owned(), one["reason"].as_str().unwrap().to_owned())
}

#[test]
fn a_new_invitation_gets_a_manifest_that_states_what_it_grants() {
    let secret = made(&crate::plan(&east()));
    let data = secret.string_data.unwrap();
    let manifest = &data[key::MANIFEST];
    let documents: Vec<serde_json::Value> = manifest
        .split("\n---\n")
        .map(|text| serde_saphyr::from_str(text).expect("the manifest is YAML"))
        .collect();
    let peering = &documents[1];
    assert_eq!(peering["metadata"]["name"], "east");
    assert_eq!(peering["spec"]["allowedCIDRs"], serde_json::json!(["10.1.0.0/16"]));
    assert_eq!(peering["spec"]["allowedNamespaces"], serde_json::json!(["shop"]));
    assert_eq!(peering["spec"]["endpoints"], serde_json::json!(["172.18.0.4:30743"]));
    let token: Token = documents[0]["stringData"]["token"].as_str().unwrap().parse().unwrap();
    assert!(data[key::HASH].parse::<TokenHash>().unwrap().matches(&token));
    assert_eq!(data[key::EXPIRES_AT], time(1900).to_string());
}

#[test]
fn a_token_is_redeemed_once_and_in_time() {
    let good = token(&[7; 32], "u");
    let redeem = |one: Issued, token: &Token, now: i64| {
        redeemable(&BTreeMap::from([("west".to_owned(), one)]), token, time(now))
            .map(|(name, _)| name.to_owned())
    };
    assert_eq!(redeem(issued(1900, None), &good, 1899), Ok("west".to_owned()));
    assert_eq!(redeem(issued(1900, None), &good, 1900), Err(Unredeemable::Expired));
    assert_eq!(redeem(issued(1900, Some("f")), &good, 1000), Err(Unredeemable::Used));
    assert_eq!(redeem(issued(1900, None), &Token::from_random([1; 32]), 1000), Err(Unredeemable::Unknown));
}

#[test]
fn an_expired_invitation_says_so_and_its_manifest_is_taken_away() {
    let mut snapshot = east();
    snapshot.issued.insert("west".to_owned(), issued(999, None));
    let plan = crate::plan(&snapshot);
    assert_eq!(condition(&plan, "Expired"), ("True".to_owned(), "Expired".to_owned()));
    assert_eq!(condition(&plan, "Ready").0, "False");
    let patch = plan.merge.values().next().unwrap();
    assert_eq!(patch, &serde_json::json!({"data": {"manifest.yaml": null}}));
    assert!(plan.create.is_empty());
}

#[test]
fn an_open_invitation_wakes_the_planner_when_it_ends() {
    let mut snapshot = east();
    snapshot.issued.insert("west".to_owned(), issued(1900, None));
    let plan = crate::plan(&snapshot);
    assert_eq!(condition(&plan, "Ready"), ("True".to_owned(), "Open".to_owned()));
    assert_eq!(plan.wake, Some(time(1900)));
    assert!(plan.create.is_empty() && plan.merge.is_empty());
}

#[test]
fn a_new_invitation_does_not_inherit_the_token_of_an_older_namesake() {
    let mut snapshot = east();
    let older = Issued { invitation_uid: "older".to_owned(), ..issued(1900, None) };
    snapshot.issued.insert("west".to_owned(), older);
    let plan = crate::plan(&snapshot);
    assert_eq!(condition(&plan, "Ready").1, "Pending");
    assert_eq!(plan.prune.values().collect::<Vec<_>>(), ["s"]);
    assert!(plan.create.is_empty());
}
