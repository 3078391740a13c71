// SPDX-License-Identifier: Apache-2.0
mod property;

use std::collections::BTreeSet;

use super::*;
use crate::record::{AddressFamily, Endpoint, ExportKind, Lane, PublicKey, SessionAffinity, announcement};

pub(super) fn identity(digit: char) -> ClusterIdentity {
    digit.to_string().repeat(64).parse().expect("an identity")
}

pub(super) fn grant() -> Grant {
    Grant {
        own_identity: identity('a'),
        own_cluster_id: "east".parse().unwrap(),
        peer_identity: identity('b'),
        other_cluster_ids: BTreeMap::from([("north".parse().unwrap(), "to-north".parse().unwrap())]),
        allowed_cidrs: vec!["10.2.0.0/16".parse().unwrap(), "fd02::/48".parse().unwrap()],
        allowed_namespaces: BTreeSet::from([
            "shop".to_owned(),
            "kube-system".to_owned(),
            "default".to_owned(),
        ]),
        local_cidrs: vec!["10.1.0.0/16".parse().unwrap(), "10.2.200.0/24".parse().unwrap()],
        local_nodes: vec!["10.2.100.9".parse().unwrap(), "192.168.0.2".parse().unwrap()],
        other_cidrs: vec![("10.2.64.0/20".parse().unwrap(), "to-north".parse().unwrap())],
        taken_keys: BTreeSet::from([PublicKey::from([9; 32])]),
        peered_at: Some("2026-01-01T00:00:00Z".parse().unwrap()),
    }
}

pub(super) fn cluster(id: &str, cidrs: &[&str]) -> Record {
    let pod_cidrs = cidrs.iter().map(|cidr| cidr.parse().expect("a CIDR")).collect();
    Record::Cluster(Cluster { cluster_id: id.parse().expect("a cluster ID"), pod_cidrs })
}

fn gateway(endpoint: &str, mesh_address: &str) -> Record {
    Record::Gateway(Gateway {
        name: "gw-1".into(),
        public_key: PublicKey::from([7; 32]),
        endpoints: vec![endpoint.parse().unwrap()],
        mesh_addresses: vec![mesh_address.parse().unwrap()],
        ports: BTreeMap::new(),
        lanes: Vec::new(),
    })
}

pub(super) fn export(namespace: &str, name: &str) -> Record {
    Record::Export(Export {
        namespace: namespace.into(),
        name: name.into(),
        created_at: "1970-01-01T00:00:00Z".parse().unwrap(),
        kind: ExportKind::ClusterSetIP,
        ports: Vec::new(),
        session_affinity: SessionAffinity::None,
        internal_traffic_policy: None,
        traffic_distribution: None,
        ip_families: vec![AddressFamily::IPv4],
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    })
}

pub(super) fn slice(namespace: &str, service: &str, slice: &str, addresses: &[IpAddr]) -> Record {
    let endpoint = |address: &IpAddr| Endpoint {
        address: *address,
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        zone: None,
    };
    Record::Endpoints(Endpoints {
        namespace: namespace.into(),
        service: service.into(),
        slice: slice.into(),
        address_family: AddressFamily::IPv4,
        ports: Vec::new(),
        endpoints: addresses.iter().map(endpoint).collect(),
    })
}

fn judged(records: impl IntoIterator<Item = Record>) -> (Accepted, Vec<Refusal>) {
    accept(&grant(), &announcement(records))
}

#[test]
fn what_is_granted_is_in_force_and_nothing_is_refused() {
    let web = slice("shop", "web", "web-1", &["10.2.0.9".parse().unwrap()]);
    let records = [
        cluster("west", &["10.2.0.0/18"]),
        gateway("192.168.0.7:51820", "10.2.0.64"),
        export("shop", "web"),
        web,
    ];
    let (accepted, refusals) = judged(records);
    assert_eq!(refusals, []);
    assert_eq!(accepted.cluster_id.unwrap().as_str(), "west");
    assert_eq!(accepted.cidrs.len(), 1);
    assert_eq!(accepted.gateways.len(), 1);
    let name = ServiceName { namespace: "shop".into(), name: "web".into() };
    assert_eq!(accepted.endpoints[&name]["web-1"].endpoints.len(), 1);
}

#[test]
fn a_cidr_outside_the_grant_or_over_anothers_is_refused_by_name() {
    let cases = [
        ("10.0.0.0/8", RefusalCode::AddressNotGranted),
        ("10.3.0.0/16", RefusalCode::AddressNotGranted),
        ("0.0.0.0/0", RefusalCode::Reserved),
        ("::/0", RefusalCode::Reserved),
        ("169.254.169.254/32", RefusalCode::Reserved),
        ("10.2.200.7/32", RefusalCode::OverlapsLocal),
        ("10.2.100.0/24", RefusalCode::OverlapsLocal),
        ("10.2.64.0/24", RefusalCode::OverlapsPeer),
        ("10.2.0.0/16", RefusalCode::OverlapsLocal),
    ];
    for (cidr, code) in cases {
        let (accepted, refusals) = judged([cluster("west", &[cidr])]);
        assert!(accepted.cidrs.is_empty(), "{cidr}");
        assert_eq!(refusals[0].what, format!("cidr {cidr}"));
        assert_eq!(refusals[0].code, code, "{cidr}");
    }
}

#[test]
fn reserved_ranges_stay_refused_when_the_user_grants_everything() {
    let everything = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let generous = Grant { allowed_cidrs: everything, ..grant() };
    for cidr in ["0.0.0.0/0", "127.0.0.0/8", "224.1.0.0/16", "fe80::/64", "::1/128", "::ffff:10.0.0.0/104"] {
        let (accepted, _) = accept(&generous, &announcement([cluster("west", &[cidr])]));
        assert!(accepted.cidrs.is_empty(), "{cidr}");
    }
}

#[test]
fn an_empty_grant_accepts_nothing() {
    let empty = Grant { allowed_cidrs: Vec::new(), allowed_namespaces: BTreeSet::new(), ..grant() };
    let records = [cluster("west", &["10.2.0.0/18"]), export("shop", "web")];
    let (accepted, refusals) = accept(&empty, &announcement(records));
    assert!(accepted.cidrs.is_empty() && accepted.exports.is_empty());
    assert_eq!(refusals.len(), 2);
    assert!(refusals.iter().all(|refusal| refusal.reason.contains("add it there")), "{refusals:?}");
}

#[test]
fn a_peer_with_our_name_our_key_or_anothers_name_is_not_heard_at_all() {
    for id in ["east", "north"] {
        let (accepted, refusals) = judged([cluster(id, &["10.2.0.0/18"]), export("shop", "web")]);
        assert_eq!(accepted, Accepted::default());
        assert_eq!(refusals[0].code, RefusalCode::ClusterIdTaken);
    }
    let ourselves = Grant { peer_identity: identity('a'), ..grant() };
    let (accepted, refusals) = accept(&ourselves, &announcement([cluster("west", &["10.2.0.0/18"])]));
    assert_eq!(accepted, Accepted::default());
    assert_eq!(refusals[0].code, RefusalCode::SelfPeering);
}

#[test]
fn services_of_the_system_are_refused_even_where_their_namespace_is_granted() {
    for (namespace, name) in [("kube-system", "kube-dns"), ("default", "kubernetes")] {
        let (accepted, refusals) = judged([cluster("west", &["10.2.0.0/18"]), export(namespace, name)]);
        assert!(accepted.exports.is_empty());
        assert_eq!(refusals[0].code, RefusalCode::Reserved);
    }
    assert_eq!(judged([export("default", "web")]).0.exports.len(), 1);
}

#[test]
fn an_endpoint_outside_the_accepted_cidrs_is_dropped_and_the_others_stay() {
    let addresses = ["10.2.0.9", "10.1.0.9", "192.168.0.2"].map(|text| text.parse().unwrap());
    let records =
        [cluster("west", &["10.2.0.0/18"]), export("shop", "web"), slice("shop", "web", "web-1", &addresses)];
    let (accepted, refusals) = judged(records);
    let name = ServiceName { namespace: "shop".into(), name: "web".into() };
    assert_eq!(accepted.endpoints[&name]["web-1"].endpoints.len(), 1);
    assert_eq!((refusals[0].code, refusals[0].count), (RefusalCode::AddressNotGranted, 2));
}

#[test]
fn a_gateway_that_would_route_the_tunnel_into_itself_or_to_us_loses_that_endpoint() {
    for endpoint in ["10.2.0.7:51820", "10.1.0.7:51820", "192.168.0.2:51820", "127.0.0.1:51820"] {
        let (accepted, refusals) =
            judged([cluster("west", &["10.2.0.0/18"]), gateway(endpoint, "10.2.0.64")]);
        assert!(accepted.gateways["gw-1"].endpoints.is_empty(), "{endpoint}");
        assert_eq!(refusals.len(), 1);
    }
    let (accepted, _) = judged([cluster("west", &["10.2.0.0/18"]), gateway("192.168.0.7:1", "10.9.0.1")]);
    assert!(accepted.gateways.is_empty());
}

#[test]
fn a_gateway_with_the_key_of_another_gateway_is_refused() {
    let with_key = |name: &str, key: u8| {
        let Record::Gateway(gateway) = gateway("192.168.0.7:51820", "10.2.0.64") else { unreachable!() };
        Record::Gateway(Gateway { name: name.into(), public_key: PublicKey::from([key; 32]), ..gateway })
    };
    let records = [cluster("west", &["10.2.0.0/18"]), with_key("a", 7), with_key("b", 7), with_key("c", 9)];
    let (accepted, refusals) = judged(records);
    assert_eq!(accepted.gateways.keys().collect::<Vec<_>>(), ["a"]);
    assert!(refusals.iter().all(|refusal| refusal.code == RefusalCode::KeyTaken), "{refusals:?}");
    assert_eq!(refusals.len(), 2);
}

#[test]
fn lanes_are_held_to_their_form_and_their_keys_to_those_that_are_taken() {
    let lane = |key: u8, port| Lane { public_key: [key; 32].into(), port };
    let with = |name: &str, key: u8, lanes: &[Lane]| {
        let Record::Gateway(gateway) = gateway("192.168.0.7:51820", "10.2.0.64") else { unreachable!() };
        let (name, lanes) = (name.into(), lanes.to_vec());
        Record::Gateway(Gateway { name, public_key: [key; 32].into(), lanes, ..gateway })
    };
    let verdict = |records: &[Record]| {
        let (accepted, refusals) =
            judged(std::iter::once(cluster("west", &["10.2.0.0/18"])).chain(records.iter().cloned()));
        let codes: Vec<_> = refusals.iter().map(|refusal| refusal.code).collect();
        (accepted.gateways.into_keys().collect::<Vec<_>>(), codes)
    };
    let eight: Vec<Lane> = (0..8).map(|n| lane(20 + n, 51820 + u16::from(n))).collect();
    assert_eq!(verdict(&[with("a", 20, &eight)]), (vec!["a".into()], vec![]));
    let nine: Vec<Lane> = (0..9).map(|n| lane(20 + n, 51820)).collect();
    let invalid = [
        with("a", 20, &nine),
        with("a", 20, &[lane(21, 51820)]),
        with("a", 20, &[lane(20, 51820), lane(20, 51822)]),
        with("a", 20, &[lane(20, 51820), lane(21, 0)]),
    ];
    for record in invalid {
        assert_eq!(verdict(&[record]), (vec![], vec![RefusalCode::Invalid]));
    }
    // The key of a gateway of another peer, of another gateway, and of another gateway's lane.
    for (first, second) in [(7, 9), (20, 30), (20, 31)] {
        let of_b = [lane(30, 51820), lane(31, 51822)];
        let records = [with("a", first, &[lane(first, 51820), lane(second, 51822)]), with("b", 30, &of_b)];
        let (names, codes) = verdict(&records);
        assert_eq!((names.len(), codes), (1, vec![RefusalCode::KeyTaken]), "{names:?}");
    }
}

#[test]
fn an_export_cannot_win_every_conflict_by_claiming_1970() {
    let (accepted, _) = judged([export("shop", "web")]);
    let export = accepted.exports.values().next().unwrap();
    assert_eq!(Some(export.created_at), grant().peered_at);
}

#[test]
fn what_is_too_much_is_cut_at_the_limit_and_named() {
    let many = (0..=limits::EXPORTS).map(|n| export("shop", &format!("s{n:04}")));
    let (accepted, refusals) = judged(many);
    assert_eq!(accepted.exports.len(), limits::EXPORTS);
    assert_eq!((refusals.len(), refusals[0].code), (1, RefusalCode::Limit));

    let addresses: Vec<IpAddr> =
        (0..300u32).map(|n| IpAddr::from([10, 2, (n >> 8) as u8, n as u8])).collect();
    let slices = (0..3).map(|n| slice("shop", "web", &format!("web-{n}"), &addresses));
    let all = [cluster("west", &["10.2.0.0/18"]), export("shop", "web")].into_iter().chain(slices);
    let (accepted, refusals) = judged(all);
    let taken: usize =
        accepted.endpoints.values().flat_map(BTreeMap::values).map(|s| s.endpoints.len()).sum();
    assert_eq!(taken, limits::ENDPOINTS_PER_NAME);
    assert_eq!(refusals.iter().map(|refusal| refusal.count).sum::<usize>(), 400);
}
