// SPDX-License-Identifier: Apache-2.0
use isthmus_api::condition::{self, READY, Wanted};
use isthmus_api::v1alpha1::{
    Allocation, ClusterPeering, ClusterPeeringSpec, ClusterPeeringStatus, EgressPolicy, EgressPolicySpec,
    GatewayLane, IPBlock, IPBlockSpec, IPPool, IPPoolSpec, IPPoolStatus, RemoteGateway,
};
use k8s_openapi::api::core::v1::{Namespace, NodeAddress, NodeStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};

use super::*;

const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn pool(cidr: &str) -> IPPool {
    IPPool::new("p", IPPoolSpec { cidr: cidr.into(), ..Default::default() })
}

fn block(pool: &str, cidr: &str, node: &str) -> IPBlock {
    IPBlock::new("b", IPBlockSpec { pool: pool.into(), cidr: cidr.into(), node: node.into(), pod: None })
}

fn peering(allowed: &[&str], announced: &[&str], mesh: &str) -> ClusterPeering {
    let list = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    let spec = ClusterPeeringSpec { allowed_cidrs: list(allowed), ..Default::default() };
    let gateway = RemoteGateway {
        name: "g".into(),
        public_key: KEY.into(),
        endpoints: vec!["192.0.2.1:51820".into()],
        mesh_addresses: vec![mesh.into()],
        ports: Vec::new(),
        lanes: Vec::new(),
    };
    let status = ClusterPeeringStatus {
        remote_cidrs: list(announced),
        remote_gateways: vec![gateway],
        local_gateways: vec!["n1".into()],
        ..Default::default()
    };
    let mut object = ClusterPeering::new("west", spec);
    object.status = Some(status);
    object
}

fn objects() -> NodeObjects {
    let mut objects = NodeObjects::default();
    objects.pools.insert("pods".into(), pool("10.1.0.0/16"));
    objects.blocks.insert("b".into(), block("pods", "10.1.0.0/26", "n1"));
    let address = NodeAddress { type_: "InternalIP".into(), address: "172.18.0.2".into() };
    let status = NodeStatus { addresses: Some(vec![address]), ..Default::default() };
    objects.nodes.insert("n1".into(), Node { status: Some(status), ..Default::default() });
    objects
}

fn intake_of(objects: &NodeObjects) -> (NodeIntent, Vec<Problem>) {
    intake(&"n1".parse().unwrap(), objects)
}

#[test]
fn a_bad_object_is_named_and_the_good_ones_stay() {
    let mut objects = objects();
    objects.pools.insert("bad".into(), pool("10.9.0.1/16"));
    objects.blocks.insert("orphan".into(), block("gone", "10.7.0.0/26", "n1"));
    let (intent, problems) = intake_of(&objects);
    assert_eq!(intent.own_blocks().count(), 1);
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("IPPool/bad: 10.9.0.1/16 has host bits set; write 10.9.0.0/16"), "{told:?}");
    assert!(told[1].contains("its pool gone does not exist"), "{told:?}");
}

#[test]
fn a_pool_that_holds_a_nodes_address_is_left_out() {
    let mut objects = objects();
    objects.pools.insert("net".into(), pool("172.18.0.0/24"));
    let (intent, problems) = intake_of(&objects);
    assert_eq!(intent.pools.len(), 1);
    assert!(problems[0].message.contains("holds the address 172.18.0.2 of a node"), "{problems:?}");
}

#[test]
fn a_node_that_comes_with_an_address_of_a_pool_in_use_ends_nothing_but_that_address() {
    let mut objects = objects();
    let listed = ["10.1.0.9", "172.18.0.3"]
        .map(|address| NodeAddress { type_: "InternalIP".into(), address: address.into() });
    let status = NodeStatus { addresses: Some(listed.into()), ..Default::default() };
    objects.nodes.insert("n2".into(), Node { status: Some(status), ..Default::default() });
    let (intent, problems) = intake_of(&objects);
    assert_eq!((intent.pools.len(), intent.own_blocks().count()), (1, 1));
    let addresses = &intent.nodes[&"n2".parse().unwrap()].addresses;
    assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["172.18.0.3"]);
    assert_eq!(problems[0].object, "Node/n2");
    assert!(problems[0].message.contains("10.1.0.9 lies in the pool 10.1.0.0/16"), "{problems:?}");
}

#[test]
fn a_node_that_comes_with_an_address_of_another_plugins_pool_does_not_end_it_once_it_is_in_force() {
    let mut objects = objects();
    let mut pool = pool("172.18.0.0/24");
    pool.spec.allocation = Allocation::External;
    for (ready, pools) in [(false, 1), (true, 2)] {
        let wanted = Wanted { kind: READY, status: Some(ready), reason: "X", message: String::new() };
        let mut status = IPPoolStatus::default();
        let time = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        condition::set(&mut status.conditions, &wanted, None, &time);
        pool.status = Some(status);
        objects.pools.insert("net".into(), pool.clone());
        assert_eq!(intake_of(&objects).0.pools.len(), pools, "Ready is {ready}");
    }
}

#[test]
fn of_pools_that_overlap_the_oldest_is_in_force_here_as_well() {
    let mut objects = objects();
    let aged = |cidr: &str, second: i64| {
        let mut pool = pool(cidr);
        let time = k8s_openapi::jiff::Timestamp::from_second(second).unwrap();
        pool.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
        pool
    };
    objects.pools.insert("pods".into(), aged("10.1.0.0/16", 5));
    objects.pools.insert("a-late-one".into(), aged("10.1.128.0/17", 9));
    let (intent, problems) = intake_of(&objects);
    assert_eq!(intent.pools.keys().map(ToString::to_string).collect::<Vec<_>>(), ["pods"]);
    assert_eq!(problems[0].object, "IPPool/a-late-one");
    assert!(problems[0].message.contains("IPPool pods, which is older"), "{problems:?}");
}

#[test]
fn a_new_pool_over_a_peers_addresses_does_not_end_the_peering() {
    let mut objects = objects();
    objects.peerings.insert("west".into(), peering(&["10.2.0.0/16"], &["10.2.0.0/16"], "10.2.0.0"));
    objects.pools.insert("new".into(), pool("10.2.0.0/17"));
    let (intent, problems) = intake_of(&objects);
    assert_eq!(intent.peers[&"west".parse().unwrap()].remote_cidrs.len(), 1);
    assert_eq!(intent.pools.len(), 1);
    assert!(problems[0].message.contains("of ClusterPeering west"), "{problems:?}");
}

#[test]
fn closed_addresses_are_known_unless_they_are_ours() {
    let mut objects = objects();
    let mut object = peering(&["10.0.0.0/8"], &[], "10.2.0.0");
    object.status.as_mut().unwrap().closed_cidrs = vec!["10.2.0.0/16".into(), "10.1.0.0/20".into()];
    objects.peerings.insert("west".into(), object);
    let peer = &intake_of(&objects).0.peers[&"west".parse().unwrap()];
    assert_eq!(peer.closed_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.2.0.0/16"]);
    assert!(peer.remote_cidrs.is_empty());
}

#[test]
fn a_peer_gets_routes_only_for_what_is_granted_and_ours_is_never_its() {
    for (announced, why) in [
        ("10.3.0.0/16", "is not granted"),
        ("10.1.0.0/20", "overlaps the IPPool pods"),
        ("172.18.0.0/16", "holds the address 172.18.0.2"),
    ] {
        let mut objects = objects();
        let allowed = ["10.2.0.0/16", "10.1.0.0/16", "172.18.0.0/16"];
        objects.peerings.insert("west".into(), peering(&allowed, &["10.2.0.0/16", announced], "10.2.0.0"));
        let (intent, problems) = intake_of(&objects);
        let peer = &intent.peers[&"west".parse().unwrap()];
        assert_eq!(peer.remote_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.2.0.0/16"]);
        assert_eq!(peer.gateways.len(), 1, "the rest of the peering works on");
        assert!(problems[0].message.contains(why), "{problems:?}");
    }
}

#[test]
fn a_gateway_whose_inner_address_belongs_to_somebody_else_is_refused() {
    let mut objects = objects();
    objects.peerings.insert("west".into(), peering(&["10.2.0.0/16"], &["10.2.0.0/16"], "10.1.0.7"));
    let (intent, problems) = intake_of(&objects);
    assert!(intent.peers[&"west".parse().unwrap()].gateways.is_empty());
    assert!(problems[0].message.contains("in no CIDR of the peering"), "{problems:?}");
}

#[test]
fn lanes_of_a_gateway_are_taken_whole_or_the_gateway_is_refused() {
    let lanes_of = |lanes: &[(&str, i32)]| {
        let mut objects = objects();
        let mut object = peering(&["10.2.0.0/16"], &["10.2.0.0/16"], "10.2.0.0");
        let lane = |(key, port): &(&str, i32)| GatewayLane { public_key: (*key).into(), port: *port };
        let status = object.status.as_mut().unwrap();
        status.remote_gateways[0].lanes = lanes.iter().map(lane).collect();
        objects.peerings.insert("west".into(), object);
        let (intent, problems) = intake_of(&objects);
        let gateways = &intent.peers.values().next().unwrap().gateways;
        (gateways.get("g").map(|gateway| gateway.lanes.len()), problems.len())
    };
    let other = KEY.replace(&KEY[..1], if KEY.starts_with('B') { "C" } else { "B" });
    assert_eq!(lanes_of(&[]), (Some(0), 0));
    assert_eq!(lanes_of(&[(KEY, 51820), (&other, 51822)]), (Some(2), 0));
    for wrong in [
        &[(other.as_str(), 51820)][..],
        &[(KEY, 51820), ("no key", 51822)],
        &[(KEY, 51820), (&other, 0)],
        &[(KEY, 51820), (&other, 70_000)],
        &[(KEY, 51820); 9],
    ] {
        assert_eq!(lanes_of(wrong), (None, 1), "{wrong:?}");
    }
}

#[test]
fn an_egress_policy_selects_pods_by_their_labels_and_their_namespaces() {
    let mut objects = objects();
    let labels = |value: &str| Some(BTreeMap::from([("team".to_owned(), value.to_owned())]));
    for (namespace, team) in [("blue", "blue"), ("red", "red")] {
        let mut object = Namespace::default();
        object.metadata.labels = labels(team);
        objects.namespaces.insert(namespace.into(), object);
        objects.pods.insert((namespace.into(), "pod".into()), Pod::default());
    }
    let spec = EgressPolicySpec {
        namespace_selector: Some(LabelSelector { match_labels: labels("red"), ..Default::default() }),
        destination_cidrs: vec!["203.0.113.0/24".into()],
        egress_ips: vec!["172.18.0.200".into()],
        ..Default::default()
    };
    objects.egress.insert("fixed".into(), EgressPolicy::new("fixed", spec));
    let (intent, problems) = intake_of(&objects);
    assert_eq!(problems, []);
    let policy = &intent.egress["fixed"];
    assert_eq!(policy.pods, [("red".to_owned(), "pod".to_owned())].into());
    assert_eq!(policy.gateway, None, "no node qualifies yet: nothing leaves");
}

#[test]
fn an_ethernet_address_that_is_none_is_not_used() {
    assert_eq!(mac("02:00:00:00:00:01"), Some([2, 0, 0, 0, 0, 1]));
    for wrong in ["", "02:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "zz:00:00:00:00:00"] {
        assert_eq!(mac(wrong), None, "{wrong}");
    }
}
