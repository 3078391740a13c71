// SPDX-License-Identifier: Apache-2.0
//! Egress policies: on the pods' node a mark, a rule and a table that lead to the gateway; on the gateway the fixed source address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use isthmus_model::ids::{LinkName, NodeName};
use isthmus_model::kernel::{Desired, Route, RouteKey, RouteKind, Rule};
use isthmus_model::ownership::{EGRESS_MARK_FIRST, MARK_MASK, ROUTE_TABLES, RULE_PRIORITIES};

use crate::facts::NodeFacts;
use crate::intent::{Egress, NodeIntent};
use crate::names::preferred_slot;
use crate::routes::{host, unreachable};
use crate::{FALLBACK_METRIC, paths};

/// The last table leads nowhere: policies without a gateway use it.
const CLOSED_SLOT: u32 = *ROUTE_TABLES.end() - *ROUTE_TABLES.start();

pub(crate) fn add(intent: &NodeIntent, facts: &NodeFacts, desired: &mut Desired) {
    for (slot, gateway) in tables_in_use(intent) {
        for v6 in [false, true] {
            table(intent, facts, desired, slot, gateway, v6);
        }
    }
    for policy in intent.egress.values().filter(|policy| is_gateway(intent, policy)) {
        for address in &policy.addresses {
            if let Some(link) = link_for(intent, facts, *address) {
                desired.addresses.insert((link.clone(), host(*address)));
            }
        }
    }
}

/// Whether this node is the policy's gateway.
pub(crate) fn is_gateway(intent: &NodeIntent, policy: &Egress) -> bool {
    policy.gateway.as_ref().is_some_and(|gateway| intent.is_self(gateway))
}

/// The mark that sends packets to the policy's gateway; none if this node is the gateway.
pub(crate) fn mark(intent: &NodeIntent, policy: &Egress) -> Option<u32> {
    if is_gateway(intent, policy) {
        return None;
    }
    let slots = slots(intent);
    let slot = policy.gateway.as_ref().and_then(|gateway| slots.get(gateway)).copied().unwrap_or(CLOSED_SLOT);
    Some(mark_of(slot))
}

fn mark_of(slot: u32) -> u32 {
    EGRESS_MARK_FIRST + (slot << 24)
}

/// A slot for each foreign gateway, by hash with probing: another gateway's coming or going seldom moves it.
fn slots(intent: &NodeIntent) -> BTreeMap<&NodeName, u32> {
    let gateways: BTreeSet<&NodeName> =
        intent.egress.values().filter_map(|policy| policy.gateway.as_ref()).collect();
    let mut slots = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for gateway in gateways.into_iter().filter(|gateway| !intent.is_self(gateway)) {
        let preferred = preferred_slot(gateway.as_str(), CLOSED_SLOT);
        let free =
            (0..CLOSED_SLOT).map(|step| (preferred + step) % CLOSED_SLOT).find(|slot| !taken.contains(slot));
        if let Some(slot) = free {
            taken.insert(slot);
            slots.insert(gateway, slot);
        }
    }
    slots
}

fn tables_in_use(intent: &NodeIntent) -> Vec<(u32, Option<&NodeName>)> {
    let slots = slots(intent);
    let with_pods =
        intent.egress.values().filter(|policy| !policy.pods.is_empty() && !is_gateway(intent, policy));
    let used: BTreeMap<u32, Option<&NodeName>> = with_pods
        .map(|policy| {
            let slot = policy.gateway.as_ref().and_then(|gateway| slots.get(gateway)).copied();
            slot.map_or((CLOSED_SLOT, None), |slot| (slot, policy.gateway.as_ref()))
        })
        .collect();
    used.into_iter().collect()
}

fn table(
    intent: &NodeIntent,
    facts: &NodeFacts,
    desired: &mut Desired,
    slot: u32,
    gateway: Option<&NodeName>,
    v6: bool,
) {
    let table = ROUTE_TABLES.start() + slot;
    let priority = RULE_PRIORITIES.start() + slot;
    desired.rules.insert(Rule { priority, v6, mark: (mark_of(slot), MARK_MASK), table });
    let destination = everything(v6);
    desired.routes.insert(RouteKey { table, destination, metric: FALLBACK_METRIC }, unreachable());
    let encapsulation = paths::own_encapsulation(intent, v6);
    let path = gateway.and_then(|node| paths::to_node(intent, facts, desired, (node, v6), encapsulation));
    if let Some(path) = path {
        let route = Route { kind: RouteKind::Unicast(vec![path.hop]), mtu: path.mtu, source: None };
        desired.routes.insert(RouteKey { table, destination, metric: 0 }, route);
    }
}

/// The link that shall hold an egress address: the one with its subnet, else the one with the node's own address. None if
/// the node has the address anyway.
fn link_for<'a>(intent: &NodeIntent, facts: &'a NodeFacts, address: IpAddr) -> Option<&'a LinkName> {
    if facts.link_of(address).is_some() {
        return None;
    }
    let own = intent.own_addresses().iter().filter(|own| own.is_ipv6() == address.is_ipv6());
    facts.on_link(address).or_else(|| own.into_iter().find_map(|own| facts.link_of(*own)))
}

fn everything(v6: bool) -> IpNet {
    let address = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
    IpNet::new(address, 0).expect("0 is a prefix length of both families")
}
