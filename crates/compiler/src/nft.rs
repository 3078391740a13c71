// SPDX-License-Identifier: Apache-2.0
//! Our nftables table: fixed chains; sets change.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use isthmus_model::ids::LinkName;
use isthmus_model::nft::{Chain, ChainKind, Hook, Match, Rule, Ruleset, Set, Statement};
use isthmus_model::ownership::{
    EGRESS_MARK_FIRST, MARK_MASK, POD_LINK_PREFIX, TUNNEL_LINK_PREFIX, VXLAN_PORT, WIREGUARD_PORT,
    WIREGUARD_PORTS,
};

use crate::egress;
use crate::facts::{NodeFacts, PodFacts};
use crate::intent::{NodeIntent, is_v6};
use crate::names::tag;

const UDP: u8 = 17;
const POD_SOURCES: &str = "pod_sources";
/// All pools.
const POOLS: &str = "pools";
/// Blocks of this node.
const OWN_BLOCKS: &str = "own_blocks";
/// Blocks of this node whose pool has `natOutgoing`.
const NAT_SOURCES: &str = "nat_sources";
/// CIDRs of peers.
const REMOTE: &str = "remote";
/// Pools and CIDRs of peers.
const POD_SPACE: &str = "pod_space";
/// Addresses of nodes, those in tunnels too.
const NODES: &str = "nodes";
/// Pools whose addresses another plugin gives out.
const EXTERNAL: &str = "external";
/// Links by which packets of pods come whose link another plugin made.
const CHAINED: &str = "chained";
/// Those of them by which one pod's packets come, and no other's.
const CHAINED_ALONE: &str = "chained_alone";
/// Sources that never leave their link: what neighbours ask each other with.
const LINK_LOCAL: &str = "link_local";

pub(crate) fn ruleset(intent: &NodeIntent, facts: &NodeFacts) -> Ruleset {
    let mut ruleset = Ruleset::default();
    link_sources(&mut ruleset, POD_SOURCES, facts.all_pods());
    let pools = || intent.pools.values().map(|pool| pool.cidr);
    let remote = || intent.peers.values().flat_map(|peer| peer.all_cidrs().copied());
    let nat = intent
        .own_blocks()
        .filter(|(_, block)| intent.pools.get(&block.pool).is_some_and(|pool| pool.nat_outgoing));
    prefixes(&mut ruleset, POOLS, pools());
    prefixes(&mut ruleset, REMOTE, remote());
    prefixes(&mut ruleset, POD_SPACE, pools().chain(remote()));
    let own = || intent.own_blocks().map(|(cidr, _)| *cidr);
    // What another plugin gave need not lie in a block.
    let chained = facts.chained.iter().flat_map(|chained| &chained.pod.addresses).copied();
    let apart = chained.filter(|address| !own().any(|block| block.contains(address))).map(IpNet::from);
    prefixes(&mut ruleset, OWN_BLOCKS, own().chain(apart));
    prefixes(&mut ruleset, NAT_SOURCES, nat.map(|(cidr, _)| *cidr));
    let addresses = intent.nodes.values().flat_map(|node| node.addresses.iter().copied());
    let mesh = intent.blocks.iter().filter_map(|(cidr, block)| block.mesh_address(cidr));
    prefixes(&mut ruleset, NODES, addresses.chain(mesh).map(IpNet::from));
    egress_sets(intent, facts, &mut ruleset);
    if intent.is_chained() {
        let external = intent.pools.values().filter(|pool| pool.external);
        prefixes(&mut ruleset, EXTERNAL, external.map(|pool| pool.cidr));
    }
    chained_links(intent, facts, &mut ruleset);
    let chained = !facts.chained.is_empty();
    let chains = [
        ("guard", Hook::Prerouting, -350, ChainKind::Filter, guard(chained)),
        ("transit", Hook::Prerouting, -300, ChainKind::Filter, transit()),
        // After the destination of service addresses was translated (-100), before the routing decision.
        ("egress", Hook::Prerouting, -90, ChainKind::Filter, egress_marks(intent)),
        ("mss", Hook::Forward, -150, ChainKind::Filter, mss(chained)),
        ("sealed", Hook::Postrouting, -150, ChainKind::Filter, sealed(intent)),
        // Before kube-proxy's source translation (100): the first that translates a flow decides.
        ("source", Hook::Postrouting, 90, ChainKind::Nat, source(intent)),
    ];
    for (name, hook, priority, kind, rules) in chains {
        ruleset.chains.insert(name.to_owned(), Chain { hook, priority, kind, rules });
    }
    ruleset
}

/// Two sets, one of each family, of pods' links and addresses.
fn link_sources<'a>(
    ruleset: &mut Ruleset,
    name: &str,
    pods: impl Iterator<Item = (&'a LinkName, &'a PodFacts)>,
) {
    let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
    for (link, pod) in pods {
        for address in &pod.addresses {
            match address {
                IpAddr::V4(address) => v4.insert((link.clone(), *address)),
                IpAddr::V6(address) => v6.insert((link.clone(), *address)),
            };
        }
    }
    ruleset.sets.insert(named(name, false), Set::LinkSourcesV4(v4));
    ruleset.sets.insert(named(name, true), Set::LinkSourcesV6(v6));
}

fn chained_links(intent: &NodeIntent, facts: &NodeFacts, ruleset: &mut Ruleset) {
    if facts.chained.is_empty() {
        return;
    }
    // By a bridge that is the node's uplink as well come other nodes' tunnels and probes.
    let uplinks: BTreeSet<&LinkName> =
        intent.own_addresses().iter().filter_map(|own| facts.link_of(*own)).collect();
    let links = |all: bool| {
        let apart = facts.chained.iter().filter(|chained| !uplinks.contains(&chained.link));
        let links = apart.filter(|chained| all || chained.alone);
        Set::Links(links.map(|chained| chained.link.clone()).collect())
    };
    ruleset.sets.insert(CHAINED.to_owned(), links(true));
    ruleset.sets.insert(CHAINED_ALONE.to_owned(), links(false));
    let local = [
        IpNet::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
        IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 128),
    ];
    prefixes(ruleset, LINK_LOCAL, local.into_iter().flatten());
}

fn prefixes(ruleset: &mut Ruleset, name: &str, nets: impl Iterator<Item = IpNet>) {
    let (v6, v4): (BTreeSet<IpNet>, BTreeSet<IpNet>) = nets.partition(is_v6);
    ruleset.sets.insert(named(name, false), Set::PrefixesV4(v4));
    ruleset.sets.insert(named(name, true), Set::PrefixesV6(v6));
}

/// A set's name with its family.
fn named(name: &str, v6: bool) -> String {
    format!("{name}_v{}", if v6 { 6 } else { 4 })
}

/// Unknown pod links and forged sources pass nothing; pods do not speak the nodes' own protocols; peers reach pods only.
/// Of another plugin's links we know those of pods that came by us: the others' pass.
fn guard(chained: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    for v6 in [false, true] {
        let comment = "unknown pod interface, or a source that is not its own";
        rules.push(rule([from_pods(), Match::Family { v6 }, forged(v6)], Statement::Drop, comment));
        if chained {
            let alone = Match::InLinkSet { set: CHAINED_ALONE.to_owned(), negate: false };
            let far = v6.then(|| Match::Source { v6, set: named(LINK_LOCAL, v6), negate: true });
            let matches = [alone, Match::Family { v6 }].into_iter().chain(far).chain([forged(v6)]);
            rules.push(rule(matches, Statement::Drop, "a source that is not the chained pod's own"));
        }
    }
    for v6 in [false, true] {
        for from in from_any_pods(chained) {
            pods_keep_off(&mut rules, v6, &from);
        }
    }
    for v6 in [false, true] {
        let elsewhere = Match::Destination { v6, set: named(POOLS, v6), negate: true };
        let comment = "a peer reaches pods and nothing else";
        rules.push(rule([from_tunnels(), Match::Family { v6 }, elsewhere], Statement::Drop, comment));
    }
    rules
}

fn forged(v6: bool) -> Match {
    Match::LinkSource { v6, set: named(POD_SOURCES, v6), negate: true }
}

fn pods_keep_off(rules: &mut Vec<Rule>, v6: bool, from: &Match) {
    // Where the kernel encrypts, each tunnel has a port of its own; that of the probes lies among them.
    let wireguard = (WIREGUARD_PORT, WIREGUARD_PORT + WIREGUARD_PORTS - 1);
    for ((first, last), what) in [(wireguard, "tunnels and probes"), ((VXLAN_PORT, VXLAN_PORT), "VXLAN")] {
        let to_nodes = Match::Destination { v6, set: named(NODES, v6), negate: false };
        let matches = [
            from.clone(),
            Match::Family { v6 },
            to_nodes,
            Match::Protocol(UDP),
            Match::DestinationPorts(first, last),
        ];
        rules.push(rule(matches, Statement::Drop, &format!("pods do not speak the nodes' {what}")));
    }
}

/// A gateway may see one direction of a flow only: what it merely passes on is not tracked.
fn transit() -> Vec<Rule> {
    let mut rules = Vec::new();
    for v6 in [false, true] {
        let not_ours = Match::Destination { v6, set: named(OWN_BLOCKS, v6), negate: true };
        let comment = "from a peer to a pod of another node";
        rules.push(rule([from_tunnels(), Match::Family { v6 }, not_ours], Statement::NoTrack, comment));
        let matches = [
            Match::Family { v6 },
            Match::Destination { v6, set: named(REMOTE, v6), negate: false },
            Match::Source { v6, set: named(POOLS, v6), negate: false },
            Match::Source { v6, set: named(OWN_BLOCKS, v6), negate: true },
        ];
        rules.push(rule(matches, Statement::NoTrack, "from a pod of another node to a peer"));
    }
    rules
}

/// What is meant for a peer leaves by a tunnel, or goes to a node that has one: also when somebody has deleted every route
/// of ours and only the default route is left. What an egress policy marked goes to a node, too, while its rule and table
/// are exchanged for another gateway's.
fn sealed(intent: &NodeIntent) -> Vec<Rule> {
    let mut rules = Vec::new();
    for v6 in [false, true] {
        let matches = [
            Match::Family { v6 },
            Match::Destination { v6, set: named(REMOTE, v6), negate: false },
            Match::OutLinkPrefix { prefix: TUNNEL_LINK_PREFIX.to_owned(), negate: true },
            Match::NextHop { v6, set: named(NODES, v6), negate: true },
        ];
        rules.push(rule(matches, Statement::Drop, "to a peer, but not by a tunnel"));
        if !intent.egress.is_empty() {
            let matches = [
                Match::Family { v6 },
                Match::Mark { value: EGRESS_MARK_FIRST, mask: EGRESS_MARK_FIRST },
                Match::Source { v6, set: named(OWN_BLOCKS, v6), negate: false },
                Match::NextHop { v6, set: named(NODES, v6), negate: true },
            ];
            rules.push(rule(matches, Statement::Drop, "under an egress policy, but not to its gateway"));
        }
    }
    rules
}

fn mss(chained: bool) -> Vec<Rule> {
    let to_tunnels = Match::OutLinkPrefix { prefix: TUNNEL_LINK_PREFIX.to_owned(), negate: false };
    let ends = from_any_pods(chained).into_iter().chain([from_tunnels(), to_tunnels]);
    ends.map(|end| rule([end, Match::TcpSyn], Statement::ClampMss, "segments fit the path")).collect()
}

fn source(intent: &NodeIntent) -> Vec<Rule> {
    let mut rules = egress_source(intent);
    for v6 in [false, true] {
        if intent.is_chained() {
            let matches = [
                Match::Family { v6 },
                Match::Source { v6, set: named(EXTERNAL, v6), negate: false },
                Match::Destination { v6, set: named(REMOTE, v6), negate: false },
            ];
            let comment = "a peer knows pods by their addresses, whatever the other plugin translates";
            rules.push(rule(matches, Statement::KeepSource { v6 }, comment));
        }
        let outside = Match::Destination { v6, set: named(POD_SPACE, v6), negate: true };
        let ours = Match::Source { v6, set: named(NAT_SOURCES, v6), negate: false };
        rules.push(rule([Match::Family { v6 }, ours, outside], Statement::Masquerade, "natOutgoing"));
        if let Some(mesh) = intent.own_mesh_address(v6) {
            let remote = Match::Destination { v6, set: named(REMOTE, v6), negate: false };
            let no_pod = Match::Source { v6, set: named(POD_SPACE, v6), negate: true };
            let comment = "the node itself to a peer: the peer knows pods' addresses only";
            rules.push(rule([Match::Family { v6 }, remote, no_pod], Statement::SourceNat(mesh), comment));
        }
    }
    rules
}

/// Names of a policy's sets: destinations, selected pods by link and source, sources on the gateway.
fn egress_names(policy: &str) -> [String; 3] {
    let tag = tag(policy);
    [format!("egress_{tag}_to"), format!("egress_{tag}_pods"), format!("egress_{tag}_from")]
}

fn egress_sets(intent: &NodeIntent, facts: &NodeFacts, ruleset: &mut Ruleset) {
    for (name, policy) in &intent.egress {
        let [to, pods, from] = egress_names(name);
        prefixes(ruleset, &to, policy.destinations.iter().copied());
        let selected = || {
            let selects = |pod: &PodFacts| policy.pods.contains(&(pod.namespace.clone(), pod.name.clone()));
            facts.all_pods().filter(move |(_, pod)| selects(pod))
        };
        let local = || selected().flat_map(|(_, pod)| pod.addresses.iter().copied().map(IpNet::from));
        if egress::is_gateway(intent, policy) {
            // A pod of another node that kept its own address up to here was sent here by the policy.
            let others =
                intent.blocks.iter().filter(|(_, block)| !intent.is_self(&block.node)).map(|(cidr, _)| *cidr);
            prefixes(ruleset, &from, others.chain(local()));
        } else {
            link_sources(ruleset, &pods, selected());
            prefixes(ruleset, &from, local());
        }
    }
}

fn egress_marks(intent: &NodeIntent) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (name, policy) in &intent.egress {
        let Some(value) = egress::mark(intent, policy) else { continue };
        let [to, pods, _] = egress_names(name);
        for v6 in [false, true] {
            let selected = Match::LinkSource { v6, set: named(&pods, v6), negate: false };
            let matches = [selected].into_iter().chain(leaving(v6, &to));
            let then = Statement::SetMark { value, mask: MARK_MASK };
            rules.push(rule(matches, then, &format!("egress {name}")));
        }
    }
    rules
}

/// On the gateway the fixed source; on other nodes the pod's own address, which the gateway translates.
fn egress_source(intent: &NodeIntent) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (name, policy) in &intent.egress {
        let [to, _, from] = egress_names(name);
        let mut add = |v6: bool, then: Statement| {
            let selected = Match::Source { v6, set: named(&from, v6), negate: false };
            let matches = leaving(v6, &to).into_iter().chain([selected]);
            rules.push(rule(matches, then, &format!("egress {name}")));
        };
        if egress::is_gateway(intent, policy) {
            policy
                .addresses
                .iter()
                .for_each(|address| add(address.is_ipv6(), Statement::SourceNat(*address)));
        } else {
            let kept =
                |v6| if intent.is_chained() { Statement::KeepSource { v6 } } else { Statement::Accept };
            [false, true].into_iter().for_each(|v6| add(v6, kept(v6)));
        }
    }
    rules
}

/// To a destination of the policy, and out of the cluster.
fn leaving(v6: bool, to: &str) -> [Match; 4] {
    [
        Match::Family { v6 },
        Match::Destination { v6, set: named(to, v6), negate: false },
        Match::Destination { v6, set: named(POD_SPACE, v6), negate: true },
        Match::Destination { v6, set: named(NODES, v6), negate: true },
    ]
}

fn from_pods() -> Match {
    Match::InLinkPrefix { prefix: POD_LINK_PREFIX.to_owned(), negate: false }
}

/// From a pod of ours, or one whose link another plugin made.
fn from_any_pods(chained: bool) -> Vec<Match> {
    let others = chained.then(|| Match::InLinkSet { set: CHAINED.to_owned(), negate: false });
    std::iter::once(from_pods()).chain(others).collect()
}

fn from_tunnels() -> Match {
    Match::InLinkPrefix { prefix: TUNNEL_LINK_PREFIX.to_owned(), negate: false }
}

fn rule(matches: impl IntoIterator<Item = Match>, then: Statement, comment: &str) -> Rule {
    Rule { matches: matches.into_iter().collect(), then, comment: comment.chars().take(100).collect() }
}
