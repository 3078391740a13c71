// SPDX-License-Identifier: Apache-2.0
//! What a peer announces, laid beside what it is granted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_mesh::grant::{Accepted, Grant, RESERVED_NAMESPACES, Refusal, accept};
use isthmus_mesh::record::{
    AddressFamily, Announcement, Cluster, Endpoint, EndpointPort, Endpoints, Export, ExportKind, Gateway,
    Lane, Protocol, PublicKey, Record, RecordKey, ServicePort, SessionAffinity, announcement, limits,
};

use crate::Seed;

/// A list of records as JSON.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(records) = serde_json::from_slice::<Vec<Record>>(bytes) else { return };
    let text = serde_json::to_vec(&records).expect("records are JSON");
    assert_eq!(serde_json::from_slice::<Vec<Record>>(&text).expect("what was written"), records);
    judge(&announcement(records));
}

fn judge(announced: &Announcement) {
    let grant = grant();
    let (accepted, refusals) = accept(&grant, announced);
    within_grant(&grant, &accepted);
    within_limits(&accepted);
    if refusals.iter().all(|refusal| refusal.what != "peer" && !refusal.what.starts_with("cluster ID")) {
        every_cidr_is_in_force_or_named(announced, &accepted, &refusals);
    }
    // What is in force can be announced again, and then nothing of it is refused.
    let (again, refusals) = accept(&grant, &announcement_of(&accepted));
    assert_eq!(refusals, []);
    assert_eq!(again, accepted);
}

fn within_grant(grant: &Grant, accepted: &Accepted) {
    let overlap = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    let taken: Vec<IpNet> =
        grant.local_cidrs.iter().chain(grant.other_cidrs.iter().map(|(other, _)| other)).copied().collect();
    let never = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/127",
        "::ffff:0:0/96",
        "fe80::/10",
        "ff00::/8",
    ];
    let never = never.map(net);
    for cidr in &accepted.cidrs {
        assert!(grant.allowed_cidrs.iter().any(|allowed| allowed.contains(cidr)), "{cidr} is not granted");
        assert!(!taken.iter().chain(&never).any(|other| overlap(other, cidr)), "{cidr} is not the peer's");
        assert!(!grant.local_nodes.iter().any(|node| cidr.contains(node)), "{cidr} holds a node of ours");
    }
    let is_peers = |address: &IpAddr| accepted.cidrs.iter().any(|cidr| cidr.contains(address));
    let mut keys = grant.taken_keys.clone();
    for gateway in accepted.gateways.values() {
        assert!(gateway.keys().all(|key| keys.insert(key)), "two gateways or lanes with one key");
        assert!(gateway.lanes.first().is_none_or(|first| first.public_key == gateway.public_key));
        assert!(gateway.lanes.len() <= limits::LANES && gateway.lanes.iter().all(|lane| lane.port != 0));
        assert!(!gateway.mesh_addresses.is_empty() && gateway.mesh_addresses.iter().all(is_peers));
        let own = |address: &IpAddr| {
            grant.local_nodes.contains(address)
                || taken[..grant.local_cidrs.len()].iter().any(|cidr| cidr.contains(address))
        };
        for endpoint in gateway.endpoints.iter().map(|endpoint| endpoint.ip()) {
            assert!(!is_peers(&endpoint) && !own(&endpoint), "outer packets would go to {endpoint}");
        }
    }
    for name in accepted.exports.keys() {
        assert!(grant.allowed_namespaces.contains(&name.namespace), "{name} is not granted");
        assert!(!RESERVED_NAMESPACES.contains(&name.namespace.as_str()));
        assert_ne!(name.to_string(), "default/kubernetes");
    }
    for (name, slices) in &accepted.endpoints {
        assert!(accepted.exports.contains_key(name), "endpoints of {name}, which is not exported");
        assert!(slices.values().flat_map(|slice| &slice.endpoints).all(|one| is_peers(&one.address)));
    }
}

fn within_limits(accepted: &Accepted) {
    assert!(accepted.gateways.len() <= limits::GATEWAYS && accepted.exports.len() <= limits::EXPORTS);
    let of_name =
        |slices: &BTreeMap<String, Endpoints>| slices.values().map(|slice| slice.endpoints.len()).sum();
    let counts: Vec<usize> = accepted.endpoints.values().map(of_name).collect();
    assert!(counts.iter().all(|count| *count <= limits::ENDPOINTS_PER_NAME));
    assert!(counts.iter().sum::<usize>() <= limits::ENDPOINTS);
    for record in announcement_of(accepted).values() {
        assert_eq!(record.check(), Ok(()), "in force, and not in its form");
    }
}

fn every_cidr_is_in_force_or_named(announced: &Announcement, accepted: &Accepted, refusals: &[Refusal]) {
    let Some(Record::Cluster(cluster)) = announced.get(&RecordKey::Cluster) else { return };
    if Record::Cluster(cluster.clone()).check().is_err() {
        assert!(accepted.cidrs.is_empty() && refusals.iter().any(|refusal| refusal.what == "cluster"));
        return;
    }
    for cidr in &cluster.pod_cidrs {
        let named = refusals.iter().any(|refusal| refusal.what == format!("cidr {cidr}"));
        assert!(accepted.cidrs.contains(cidr) != named, "{cidr}");
    }
}

fn announcement_of(accepted: &Accepted) -> Announcement {
    let cluster = accepted.cluster_id.clone().map(|cluster_id| {
        Record::Cluster(Cluster { cluster_id, pod_cidrs: accepted.cidrs.iter().copied().collect() })
    });
    let gateways = accepted.gateways.values().cloned().map(Record::Gateway);
    let exports = accepted.exports.values().cloned().map(Record::Export);
    let slices = accepted.endpoints.values().flat_map(BTreeMap::values).cloned().map(Record::Endpoints);
    announcement(cluster.into_iter().chain(gateways).chain(exports).chain(slices))
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn grant() -> Grant {
    let identity = |digit: &str| digit.repeat(64).parse().expect("64 digits");
    Grant {
        own_identity: identity("a"),
        own_cluster_id: "east".parse().expect("a label"),
        peer_identity: identity("b"),
        other_cluster_ids: [("north".parse().expect("a label"), "north".parse().expect("a label"))].into(),
        allowed_cidrs: ["10.2.0.0/15", "127.0.0.0/8", "172.18.0.0/16", "fd00:2::/32", "::/0"]
            .map(net)
            .to_vec(),
        allowed_namespaces: ["shop", "default", "kube-system"].map(str::to_owned).into(),
        local_cidrs: ["10.1.0.0/16", "10.96.0.0/12", "fd00:1::/48"].map(net).to_vec(),
        local_nodes: vec![[172, 18, 0, 2].into(), "fd18::2".parse().expect("an address")],
        other_cidrs: vec![(net("10.3.0.0/20"), "north".parse().expect("a label"))],
        taken_keys: BTreeSet::from([PublicKey::from([9; 32])]),
        peered_at: Some("2026-01-01T00:00:00Z".parse().expect("a time")),
    }
}

pub(super) fn cluster(cidrs: &[&str]) -> Record {
    let pod_cidrs = cidrs.iter().map(|cidr| net(cidr)).collect();
    Record::Cluster(Cluster { cluster_id: "west".parse().expect("a label"), pod_cidrs })
}

pub(super) fn gateway(name: &str, key: u8, mesh: &str) -> Record {
    Record::Gateway(Gateway {
        name: name.to_owned(),
        public_key: PublicKey::from([key; 32]),
        endpoints: vec![
            ([192, 0, 2, key], 51820).into(),
            "[2001:db8::1]:51820".parse().expect("an endpoint"),
        ],
        mesh_addresses: vec![mesh.parse().expect("an address")],
        ports: [(PublicKey::from([9; 32]), 51822)].into(),
        lanes: [(key, 51820), (key | 0x80, 51822)]
            .map(|(key, port)| Lane { public_key: [key; 32].into(), port })
            .into(),
    })
}

pub(super) fn export(namespace: &str, name: &str) -> Record {
    let port = |name: &str, protocol, port: u16| ServicePort {
        name: Some(name.to_owned()),
        protocol,
        app_protocol: Some("kubernetes.io/h2c".to_owned()),
        port: port.try_into().expect("not 0"),
    };
    Record::Export(Export {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        created_at: "2025-06-01T00:00:00.25Z".parse().expect("a time"),
        kind: ExportKind::ClusterSetIP,
        ports: vec![port("http", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)],
        session_affinity: SessionAffinity::ClientIP { timeout_seconds: Some(10_800) },
        internal_traffic_policy: None,
        traffic_distribution: Some("PreferSameZone".to_owned()),
        ip_families: vec![AddressFamily::IPv4, AddressFamily::IPv6],
        labels: [("app.kubernetes.io/name".to_owned(), "web".to_owned())].into(),
        annotations: [("note".to_owned(), "ä \"b\"".to_owned())].into(),
    })
}

pub(super) fn slice(service: &str, count: u8) -> Record {
    let endpoint = |number: u8| Endpoint {
        address: [10, 2, 0, number].into(),
        ready: true,
        serving: true,
        terminating: number == 1,
        hostname: Some(format!("web-{number}")),
        zone: Some("zone-a".to_owned()),
    };
    Record::Endpoints(Endpoints {
        namespace: "shop".to_owned(),
        service: service.to_owned(),
        slice: format!("{service}-1"),
        address_family: AddressFamily::IPv4,
        ports: vec![EndpointPort {
            name: None,
            protocol: Protocol::Sctp,
            port: 8080.try_into().expect("not 0"),
            app_protocol: None,
        }],
        endpoints: (0..count).map(endpoint).collect(),
    })
}

pub(crate) fn seeds() -> Vec<Seed> {
    let list = |records: &[Record]| serde_json::to_vec(records).expect("records are JSON");
    let whole = [
        cluster(&["10.2.0.0/16", "fd00:2::/56"]),
        gateway("g1", 1, "10.2.0.0"),
        gateway("g2", 2, "fd00:2::40"),
        export("shop", "web"),
        slice("web", 3),
    ];
    let beyond = [
        cluster(&["10.2.0.0/16", "10.3.0.0/24", "127.0.0.0/8", "172.18.0.0/24", "::ffff:10.2.0.0/112"]),
        gateway("g1", 9, "10.2.0.0"),
        gateway("g2", 3, "10.9.0.0"),
        export("kube-system", "dns"),
        export("default", "kubernetes"),
        slice("gone", 2),
    ];
    vec![
        ("whole", list(&whole)),
        ("beyond-the-grant", list(&beyond)),
        ("host-bits", list(&[cluster(&["10.2.0.1/16"])])),
        ("bad-names", list(&[export("Shop", "web"), gateway("-", 1, "10.2.0.0")])),
        ("same-alias", br#"[{"kind":"cluster","clusterId":"east","podCidrs":["10.2.0.0/16"]}]"#.to_vec()),
        ("defaults", br#"[{"kind":"export","namespace":"shop","name":"web","createdAt":"1970-01-01T00:00:00Z","type":"Headless"}]"#.to_vec()),
    ]
}
