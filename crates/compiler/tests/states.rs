// SPDX-License-Identifier: Apache-2.0
//! Whole states as text, and what holds for all of them. `UPDATE=1 cargo test` writes the texts anew; read the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use isthmus_compiler::*;
use isthmus_model::dataplane::{KeySlot, LaneKeys, ProbeState};
use isthmus_model::ids::{LinkName, PeerName};
use isthmus_model::kernel::{Desired, Route, RouteKind};
use isthmus_model::nft::Set;
use isthmus_model::ownership::{COPY_TABLE, ROUTE_TABLES};
use proptest::prelude::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn link(text: &str) -> LinkName {
    text.parse().unwrap()
}

/// Three nodes: n1 and n2 share a link, n3 is elsewhere. One dual-stack pool pair, a block of each for each node.
fn cluster(this: &str) -> NodeIntent {
    let mut intent = NodeIntent { node: Some(this.parse().unwrap()), ..NodeIntent::nothing() };
    for (number, addresses) in
        [(1, ["172.18.0.1", "fd18::1"]), (2, ["172.18.0.2", "fd18::2"]), (3, ["172.19.0.3", "fd19::3"])]
    {
        let name = format!("n{number}").parse().unwrap();
        let vxlan_mac = Some(vxlan_mac(&name));
        let addresses = addresses.map(address).to_vec();
        let blocks =
            [format!("10.1.0.{}/26", (number - 1) * 64), format!("fd00:1::{}/122", (number - 1) * 40)];
        for (block, pool) in blocks.iter().zip(["four", "six"]) {
            let block_of =
                Block { pool: pool.parse().unwrap(), node: format!("n{number}").parse().unwrap(), pod: None };
            intent.blocks.insert(net(block), block_of);
        }
        intent.nodes.insert(name, Node { addresses, vxlan_mac, ..Node::default() });
    }
    for (name, cidr) in [("four", "10.1.0.0/16"), ("six", "fd00:1::/64")] {
        let pool = Pool {
            cidr: net(cidr),
            encapsulation: Encapsulation::CrossSubnet,
            nat_outgoing: true,
            serves_this_node: true,
            disabled: false,
            namespaces: None,
            reserved: Vec::new(),
            on_request: Vec::new(),
            external: false,
        };
        intent.pools.insert(name.parse().unwrap(), pool);
    }
    intent
}

/// The node's one link, and a pod.
fn facts(own: [&str; 2]) -> NodeFacts {
    let uplink = Uplink { mtu: 1500, addresses: own.map(net).into(), ..Uplink::default() };
    let pod = PodFacts {
        namespace: "shop".into(),
        name: "web".into(),
        addresses: vec![address("10.1.0.5"), address("fd00:1::5")],
    };
    NodeFacts {
        uplinks: [(link("eth0"), uplink)].into(),
        pods: [(link("ist000000000001"), pod)].into(),
        ..NodeFacts::default()
    }
}

fn facts_of_n1() -> NodeFacts {
    facts(["172.18.0.1/24", "fd18::1/64"])
}

fn with_peer(mut intent: NodeIntent, local_gateways: &[&str]) -> NodeIntent {
    let gateway = |number: u8| RemoteGateway {
        public_key: format!("key of {number}"),
        endpoints: vec![format!("172.18.1.{number}:51820").parse().unwrap()],
        mesh_addresses: vec![address(&format!("10.2.0.{}", number * 64))],
        ports: [("our key".to_owned(), 51822)].into(),
        lanes: Vec::new(),
    };
    let peer = Peer {
        remote_cidrs: [net("10.2.0.0/16"), net("fd00:2::/64")].into(),
        closed_cidrs: BTreeSet::new(),
        gateways: [("g0".to_owned(), gateway(0)), ("g1".to_owned(), gateway(1))].into(),
        local_gateways: local_gateways.iter().map(|name| name.parse().unwrap()).collect(),
    };
    intent.peers.insert("west".parse().unwrap(), peer);
    intent
}

fn with_egress(mut intent: NodeIntent, gateway: Option<&str>) -> NodeIntent {
    let policy = Egress {
        pods: [("shop".to_owned(), "web".to_owned())].into(),
        destinations: [net("203.0.113.0/24")].into(),
        gateway: gateway.map(|name| name.parse().unwrap()),
        addresses: vec![address("172.18.0.200")],
    };
    intent.egress.insert("fixed".to_owned(), policy);
    intent
}

fn holds(name: &str, desired: &Desired) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/states").join(format!("{name}.txt"));
    let text = render(desired);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "{} differs from what is compiled now:\n{text}", path.display());
}

#[test]
fn a_node_of_a_single_cluster() {
    holds("single-cluster", &compile(&cluster("n1"), &facts_of_n1()));
}

#[test]
fn a_gateway_node() {
    holds("gateway", &compile(&with_peer(cluster("n1"), &["n1", "n2"]), &facts_of_n1()));
}

#[test]
fn a_node_that_is_no_gateway() {
    holds("no-gateway", &compile(&with_peer(cluster("n1"), &["n2", "n3"]), &facts_of_n1()));
}

#[test]
fn a_node_with_a_pod_under_an_egress_policy() {
    holds("egress-pod", &compile(&with_egress(cluster("n1"), Some("n2")), &facts_of_n1()));
}

#[test]
fn the_gateway_of_an_egress_policy() {
    holds("egress-gateway", &compile(&with_egress(cluster("n1"), Some("n1")), &facts_of_n1()));
}

/// The pools are another plugin's; it made the links of two pods, one behind a bridge.
fn chained(mut intent: NodeIntent) -> (NodeIntent, NodeFacts) {
    for pool in intent.pools.values_mut() {
        (pool.external, pool.serves_this_node, pool.nat_outgoing) = (true, false, false);
    }
    let pod = |link_name: &str, alone, name: &str, addresses: &[&str]| ChainedPod {
        link: link(link_name),
        alone,
        pod: PodFacts {
            namespace: "shop".into(),
            name: name.into(),
            addresses: addresses.iter().map(|text| address(text)).collect(),
        },
    };
    let chained = vec![
        pod("cni0", false, "db", &["10.1.0.7"]),
        pod("veth1", true, "web", &["10.1.0.5", "fd00:1::5"]),
        pod("veth2", true, "apart", &["10.1.200.9"]),
    ];
    (intent, NodeFacts { pods: BTreeMap::new(), chained, ..facts_of_n1() })
}

#[test]
fn a_node_whose_pods_another_plugin_made() {
    let (intent, facts) = chained(with_egress(with_peer(cluster("n1"), &["n2", "n3"]), Some("n2")));
    holds("chained", &compile(&intent, &facts));
}

#[test]
fn a_bridge_that_is_the_nodes_uplink_as_well_lets_other_nodes_tunnels_in() {
    let (intent, mut facts) = chained(cluster("n1"));
    facts.chained[0].link = link("eth0");
    let sets = compile(&intent, &facts).nft.sets;
    let apart = Set::Links([link("veth1"), link("veth2")].into());
    assert_eq!(sets["chained"], apart);
}

#[test]
fn no_route_of_ours_is_for_addresses_that_another_plugin_gives_out() {
    let (intent, facts) = chained(with_peer(cluster("n1"), &["n1"]));
    let desired = compile(&intent, &facts);
    let inside = |key: &isthmus_model::kernel::RouteKey| {
        intent.pools.values().any(|pool| pool.cidr.contains(&key.destination))
    };
    let ours: Vec<_> = desired.routes.keys().filter(|key| inside(key)).collect();
    assert!(ours.is_empty(), "{ours:?}");
    let hops = hops(&desired);
    assert!(!hops.is_empty(), "peers are reached all the same");
}

#[test]
fn an_egress_policy_without_a_gateway_lets_nothing_out() {
    let desired = compile(&with_egress(cluster("n1"), None), &facts_of_n1());
    let routes: Vec<_> = desired.routes.iter().filter(|(key, _)| ROUTE_TABLES.contains(&key.table)).collect();
    assert_eq!(routes.len(), 2);
    assert!(routes.iter().all(|(_, route)| route.kind == RouteKind::Unreachable), "{routes:?}");
}

#[test]
fn a_tunnel_that_is_down_carries_nothing_while_another_is_up_and_all_carry_while_none_is() {
    let intent = with_peer(cluster("n1"), &["n1"]);
    let west = "west".parse().unwrap();
    let devices = ["g0", "g1"].map(|gateway| tunnel_device(&west, gateway, KeySlot::First, (0, 0)));
    let mut facts = facts_of_n1();
    assert_eq!(hops(&compile(&intent, &facts)), devices.clone().into());
    let up = ProbeState { up: true, path_mtu: Some(1380), ..ProbeState::default() };
    facts.dataplane.probes.insert(tunnel_probe(&devices[1]), up);
    let desired = compile(&intent, &facts);
    assert_eq!(hops(&desired), [devices[1].clone()].into());
    assert_eq!(route_to(&desired, "10.2.0.0/16").mtu, Some(1380), "as measured");
    assert_eq!(desired.dataplane.probes.len(), 2, "the other one is probed on");
}

#[test]
fn while_the_key_rotates_tunnels_with_both_keys_carry_then_those_with_the_new_one_alone() {
    let mut intent = with_peer(cluster("n1"), &["n1"]);
    let west: PeerName = "west".parse().unwrap();
    intent.peers.get_mut(&west).unwrap().gateways.remove("g1");
    let [old, new] = [KeySlot::First, KeySlot::Second].map(|slot| tunnel_device(&west, "g0", slot, (0, 0)));
    let up = ProbeState { up: true, path_mtu: Some(1380), ..ProbeState::default() };
    let mut facts = facts_of_n1();
    facts.dataplane.public_key = Some("present".into());
    facts.dataplane.probes.insert(tunnel_probe(&old), up.clone());
    assert_eq!(compile(&intent, &facts).dataplane.tunnels.len(), 1);

    facts.dataplane.next_public_key = Some("next".into());
    let desired = compile(&intent, &facts);
    assert_eq!(desired.dataplane.tunnels[&new].key_slot, KeySlot::Second);
    assert_eq!(hops(&desired), [old.clone()].into(), "the new tunnel is not up yet");
    let mesh = |desired: &Desired| -> Vec<(u32, LinkName)> {
        let to_g0 = desired.routes.iter().filter(|(key, _)| key.destination == net("10.2.0.0/32"));
        let in_main = to_g0.filter(|(key, _)| key.table == MAIN_TABLE);
        in_main
            .filter_map(|(key, route)| match &route.kind {
                RouteKind::Unicast(hops) => Some((key.metric, hops[0].link.clone())),
                _ => None,
            })
            .collect()
    };
    assert_eq!(
        mesh(&desired),
        [(0, old.clone()), (2048, new.clone())],
        "each probe has a route by its device"
    );

    facts.dataplane.probes.insert(tunnel_probe(&new), up.clone());
    assert_eq!(hops(&compile(&intent, &facts)), [old.clone(), new.clone()].into());

    facts.dataplane.key_slot = KeySlot::Second;
    facts.dataplane.previous_public_key = std::mem::take(&mut facts.dataplane.public_key);
    facts.dataplane.public_key = std::mem::take(&mut facts.dataplane.next_public_key);
    let desired = compile(&intent, &facts);
    assert_eq!(hops(&desired), [new.clone()].into(), "what drains is sent nothing");
    assert!(desired.dataplane.tunnels.contains_key(&old), "and still receives");
    assert_eq!(mesh(&desired), [(0, new.clone()), (2048, old.clone())]);

    facts.dataplane.probes.insert(tunnel_probe(&new), ProbeState::default());
    assert_eq!(hops(&compile(&intent, &facts)), [old.clone()].into(), "better the key before than nothing");

    facts.dataplane.previous_public_key = None;
    let desired = compile(&intent, &facts);
    assert_eq!(desired.dataplane.tunnels.keys().collect::<Vec<_>>(), [&new]);
}

#[test]
fn each_lane_has_tunnels_of_its_own_and_flows_spread_over_all_that_are_up() {
    let mut intent = with_peer(cluster("n1"), &["n1"]);
    let west: PeerName = "west".parse().unwrap();
    let gateways = &mut intent.peers.get_mut(&west).unwrap().gateways;
    let lane = |number: u16| RemoteLane { public_key: format!("lane {number}"), port: 51821 + number };
    gateways.get_mut("g0").unwrap().lanes = vec![lane(0), lane(1), lane(2)];
    let mut facts = facts_of_n1();
    let keys = |key: &str| LaneKeys { public_key: key.into(), ..LaneKeys::default() };
    facts.dataplane.lanes = vec![keys("ours"), keys("our second")];
    let desired = compile(&intent, &facts);
    let told = |lanes| {
        let device = tunnel_device(&west, "g0", KeySlot::First, lanes);
        let tunnel = &desired.dataplane.tunnels[&device];
        (tunnel.lane, tunnel.peer_key.clone(), tunnel.endpoint.unwrap().port())
    };
    assert_eq!(told((0, 0)), (0, "key of 0".into(), 51820));
    assert_eq!(told((1, 1)), (1, "lane 1".into(), 51822));
    assert_eq!(told((0, 2)), (0, "lane 2".into(), 51823));
    assert_eq!(desired.dataplane.tunnels.len(), 4, "g1 does not know of lanes");
    assert_eq!(hops(&desired).len(), 4);

    let of_g0 = [(0, 0), (1, 1), (0, 2)].map(|lanes| tunnel_device(&west, "g0", KeySlot::First, lanes));
    for device in &of_g0[..2] {
        let up = ProbeState { up: true, ..ProbeState::default() };
        facts.dataplane.probes.insert(tunnel_probe(device), up);
    }
    assert_eq!(hops(&compile(&intent, &facts)), of_g0[..2].iter().cloned().collect());
}

#[test]
fn closed_addresses_of_a_peer_are_unreachable_and_sealed() {
    let mut intent = with_peer(cluster("n1"), &["n1"]);
    let west = intent.peers.values_mut().next().unwrap();
    west.closed_cidrs = std::mem::take(&mut west.remote_cidrs);
    let desired = compile(&intent, &facts_of_n1());
    let to_west: Vec<_> =
        desired.routes.iter().filter(|(key, _)| key.destination == net("10.2.0.0/16")).collect();
    assert_eq!(to_west.len(), 1, "{to_west:?}");
    assert_eq!(to_west[0].1.kind, RouteKind::Unreachable);
    assert!(
        matches!(&desired.nft.sets["remote_v4"], Set::PrefixesV4(nets) if nets.contains(&net("10.2.0.0/16")))
    );
}

#[test]
fn a_gateway_that_answers_but_reaches_no_peer_is_passed_by() {
    let intent = with_peer(cluster("n1"), &["n2", "n3"]);
    let mut facts = facts_of_n1();
    let answering = |reaches: &[&str]| ProbeState {
        up: true,
        reaches: reaches.iter().map(ToString::to_string).collect(),
        ..ProbeState::default()
    };
    facts.dataplane.probes.insert(gateway_probe(&"n2".parse().unwrap()), answering(&[]));
    facts.dataplane.probes.insert(gateway_probe(&"n3".parse().unwrap()), answering(&["west"]));
    assert_eq!(hops(&compile(&intent, &facts)), [link(isthmus_model::ownership::VXLAN_LINK)].into());
}

#[test]
fn before_anything_is_known_no_pod_passes_anything() {
    let ruleset = closed_ruleset();
    assert!(matches!(&ruleset.sets["pod_sources_v4"], Set::LinkSourcesV4(pairs) if pairs.is_empty()));
    assert!(!ruleset.chains["guard"].rules.is_empty());
}

#[test]
fn chains_name_only_sets_that_exist() {
    let intents = [
        NodeIntent::nothing(),
        with_egress(with_peer(cluster("n1"), &["n1"]), Some("n1")),
        with_egress(with_peer(cluster("n1"), &["n2"]), Some("n2")),
    ];
    let plain = intents.map(|intent| (intent, facts_of_n1()));
    let chained = chained(with_egress(with_peer(cluster("n1"), &["n2"]), Some("n2")));
    for (intent, facts) in plain.into_iter().chain([chained]) {
        let ruleset = compile(&intent, &facts).nft;
        let rules = ruleset.chains.values().flat_map(|chain| &chain.rules);
        for text in rules.flat_map(|rule| &rule.matches).map(|condition| format!("{condition:?}")) {
            let named = text.split("set: \"").nth(1).and_then(|rest| rest.split('"').next());
            assert!(named.is_none_or(|set| ruleset.sets.contains_key(set)), "{text}");
        }
    }
}

fn route_to<'a>(desired: &'a Desired, cidr: &str) -> &'a isthmus_model::kernel::Route {
    let key = isthmus_model::kernel::RouteKey { table: MAIN_TABLE, destination: net(cidr), metric: 0 };
    &desired.routes[&key]
}

/// Links of the hops to the peer.
fn hops(desired: &Desired) -> BTreeSet<LinkName> {
    match &route_to(desired, "10.2.0.0/16").kind {
        RouteKind::Unicast(hops) => hops.iter().map(|hop| hop.link.clone()).collect(),
        other => panic!("{other:?}"),
    }
}

/// Any mix of gateways, probe results and missing knowledge.
fn states() -> impl Strategy<Value = (NodeIntent, NodeFacts)> {
    let names = || proptest::collection::btree_set(prop_oneof!["n1", "n2", "n3", "gone"], 0..4);
    (names(), names(), any::<[bool; 6]>()).prop_map(|(gateways, reaching, flags)| {
        let gateways: Vec<&str> = gateways.iter().map(String::as_str).collect();
        let mut intent = with_peer(cluster("n1"), &gateways);
        let mut facts = facts_of_n1();
        let [no_blocks, no_macs, no_uplinks, tunnel_up, always, egress] = flags;
        if no_blocks {
            intent.blocks.clear();
        }
        if no_macs {
            intent.nodes.values_mut().for_each(|node| node.vxlan_mac = None);
        }
        if no_uplinks {
            facts.uplinks.clear();
        }
        if always {
            intent.pools.values_mut().for_each(|pool| pool.encapsulation = Encapsulation::Always);
        }
        if egress {
            intent = with_egress(intent, gateways.first().copied());
        }
        let device = tunnel_device(&"west".parse().unwrap(), "g0", KeySlot::First, (0, 0));
        facts
            .dataplane
            .probes
            .insert(tunnel_probe(&device), ProbeState { up: tunnel_up, ..ProbeState::default() });
        for name in reaching {
            let reaches = BTreeSet::from(["west".to_owned()]);
            let probe = ProbeState { up: true, reaches, ..ProbeState::default() };
            facts.dataplane.probes.insert(gateway_probe(&name.parse().unwrap()), probe);
        }
        (intent, facts)
    })
}

proptest! {
    #[test]
    fn whatever_is_down_or_unknown_a_peers_addresses_never_leave_by_the_default_route((intent, facts) in states()) {
        let desired = compile(&intent, &facts);
        for cidr in intent.peers.values().flat_map(|peer| &peer.remote_cidrs) {
            let key = isthmus_model::kernel::RouteKey { table: MAIN_TABLE, destination: *cidr, metric: FALLBACK_METRIC };
            prop_assert_eq!(&desired.routes[&key].kind, &RouteKind::Unreachable);
        }
    }

    #[test]
    fn no_route_is_without_a_hop_and_every_hop_has_a_link((intent, facts) in states()) {
        let desired = compile(&intent, &facts);
        let known = |link: &LinkName| {
            desired.links.contains_key(link) || facts.uplinks.contains_key(link) || facts.pods.contains_key(link)
        };
        for (key, route) in &desired.routes {
            if let RouteKind::Unicast(hops) = &route.kind {
                prop_assert!(!hops.is_empty(), "{:?}", key);
                prop_assert!(hops.iter().all(|hop| known(&hop.link)), "{:?} {:?}", key, hops);
                prop_assert!(hops.is_sorted(), "{:?}", key);
            }
        }
    }

    #[test]
    fn every_mark_has_a_rule_and_every_rule_a_table_that_ends((intent, facts) in states()) {
        let desired = compile(&intent, &facts);
        for rule in desired.rules.iter().filter(|rule| rule.mark.1 != 0) {
            let last = desired.routes.iter().filter(|(key, _)| key.table == rule.table && key.metric == FALLBACK_METRIC);
            prop_assert_eq!(last.count(), 2, "an unreachable default of each family in table {}", rule.table);
        }
        let tables: BTreeMap<u32, usize> = desired.rules.iter().fold(BTreeMap::new(), |mut tables, rule| {
            *tables.entry(rule.table).or_default() += 1;
            tables
        });
        prop_assert!(tables.values().all(|rules| *rules == 2));
    }

    #[test]
    fn every_route_that_leads_somewhere_stands_twice_and_none_that_refuses((intent, facts) in states()) {
        let desired = compile(&intent, &facts);
        let of = |table: u32| {
            let routes = desired.routes.iter().filter(move |(key, _)| key.table == table);
            routes.map(|(key, route)| ((key.destination, key.metric), route))
        };
        let leads = |route: &Route| matches!(route.kind, RouteKind::Unicast(_));
        let leading: BTreeMap<_, _> = of(MAIN_TABLE).filter(|(_, route)| leads(route)).collect();
        prop_assert_eq!(of(COPY_TABLE).collect::<BTreeMap<_, _>>(), leading);
    }
}
