// SPDX-License-Identifier: Apache-2.0
//! Pools and blocks.

use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_api::v1alpha1::{Encapsulation as ApiEncapsulation, IPBlock, IPPool};
use isthmus_compiler::{Block, Encapsulation, NodeIntent, Pool};
use isthmus_model::ids::PoolName;
use kube::core::SelectorExt;

use super::egress::selector;
use super::{NodeObjects, Problem, accept};

pub(super) fn pools(objects: &NodeObjects, intent: &mut NodeIntent, problems: &mut Vec<Problem>) {
    for (name, object) in &objects.pools {
        let label = || format!("IPPool/{name}");
        let Some(pool) = accept(pool(object, objects, intent), label, problems) else { continue };
        let Some(name) = accept(name.parse::<PoolName>(), label, problems) else { continue };
        intent.pools.insert(name, pool);
    }
}

fn pool(object: &IPPool, objects: &NodeObjects, intent: &NodeIntent) -> Result<Pool, String> {
    let cidr = cidr(&object.spec.cidr)?;
    // An unreachable route under the pool would cut the nodes off from each other.
    let within: Option<&IpAddr> =
        intent.nodes.values().flat_map(|node| &node.addresses).find(|address| cidr.contains(*address));
    if let Some(address) = within {
        return Err(format!(
            "{cidr} holds the address {address} of a node; use a range apart from the nodes' network"
        ));
    }
    let encapsulation = match object.spec.encapsulation {
        ApiEncapsulation::Always => Encapsulation::Always,
        ApiEncapsulation::CrossSubnet => Encapsulation::CrossSubnet,
        ApiEncapsulation::Never => Encapsulation::Never,
    };
    let nodes = selector(object.spec.node_selector.as_ref())?;
    let this = intent.node.as_ref().and_then(|name| objects.nodes.get(name.as_str()));
    let labels = this.and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
    let serves_this_node = !object.spec.disabled && nodes.matches(&labels);
    Ok(Pool { cidr, encapsulation, nat_outgoing: object.spec.nat_outgoing, serves_this_node })
}

pub(super) fn blocks(objects: &NodeObjects, intent: &mut NodeIntent, problems: &mut Vec<Problem>) {
    for (name, object) in &objects.blocks {
        let label = || format!("IPBlock/{name}");
        let Some((cidr, block)) = accept(block(object, intent), label, problems) else { continue };
        intent.blocks.insert(cidr, block);
    }
}

fn block(object: &IPBlock, intent: &NodeIntent) -> Result<(IpNet, Block), String> {
    let cidr = cidr(&object.spec.cidr)?;
    let pool: PoolName = object.spec.pool.parse().map_err(|error| format!("{error}"))?;
    let node = object.spec.node.parse().map_err(|error| format!("{error}"))?;
    let Some(of) = intent.pools.get(&pool) else {
        return Err(format!("its pool {pool} does not exist or is not valid; create the IPPool"));
    };
    if !of.cidr.contains(&cidr) {
        return Err(format!("{cidr} lies outside its pool {pool} ({})", of.cidr));
    }
    if let Some(other) = intent.blocks.keys().find(|other| other.contains(&cidr) || cidr.contains(*other)) {
        return Err(format!("{cidr} overlaps the block {other}; delete one of them"));
    }
    Ok((cidr, Block { pool, node }))
}

/// A CIDR without host bits.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet =
        text.parse().map_err(|_| format!("{text:?} is no CIDR; write it as 10.1.0.0/16 or fd00:1::/56"))?;
    if net.addr() == net.network() {
        Ok(net)
    } else {
        Err(format!("{text} has host bits set; write {}", net.trunc()))
    }
}
