// SPDX-License-Identifier: Apache-2.0
//! Pools and blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_api::condition::READY;
use isthmus_api::v1alpha1::{Allocation, BlockPod, Encapsulation as ApiEncapsulation, IPBlock, IPPool};
use isthmus_compiler::{Block, Encapsulation, NodeIntent, PodId, Pool};
use isthmus_model::ids::PoolName;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::SelectorExt;

use super::egress::selector;
use super::{NodeObjects, Problem, accept};
use crate::cluster::set_aside;

/// The operator's verdict, found again: of pools that overlap the oldest is in force, and one without blocks never takes
/// addresses that are a node's or a peer's. A pool with blocks stays, whatever comes later; so does one in
/// force that another plugin gives out, and that never has blocks.
pub(super) fn pools(objects: &NodeObjects, intent: &mut NodeIntent, problems: &mut Vec<Problem>) {
    let mut by_age: Vec<_> = objects.pools.iter().collect();
    by_age.sort_by_key(|(name, object)| {
        (object.metadata.creation_timestamp.as_ref().map(|time| time.0), name.as_str())
    });
    for (name, object) in by_age {
        let label = || format!("IPPool/{name}");
        let Some(pool) = accept(pool(object, objects, intent), label, problems) else { continue };
        let in_use = objects.blocks.values().any(|block| block.spec.pool == *name) || was_external(object);
        let free = if in_use { Ok(()) } else { unoccupied(&pool.cidr, objects, intent) };
        if accept(free, label, problems).is_none() {
            continue;
        }
        let Some(name) = accept(name.parse::<PoolName>(), label, problems) else { continue };
        leave_out_addresses(&pool.cidr, intent, problems);
        intent.pools.insert(name, pool);
    }
}

fn was_external(pool: &IPPool) -> bool {
    let mut conditions = pool.status.iter().flat_map(|status| &status.conditions);
    pool.spec.allocation == Allocation::External
        && conditions.any(|one| one.type_ == READY && one.status == "True")
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

fn unoccupied(cidr: &IpNet, objects: &NodeObjects, intent: &NodeIntent) -> Result<(), String> {
    // An unreachable route under the pool would cut the nodes off from each other.
    let mut addresses = intent.nodes.values().flat_map(|node| &node.addresses);
    if let Some(address) = addresses.find(|address| cidr.contains(*address)) {
        return Err(format!(
            "{cidr} holds the address {address} of a node; use a range apart from the nodes' network"
        ));
    }
    let in_force = objects.peerings.iter().flat_map(|(name, peering)| {
        let texts = peering.status.iter().flat_map(|status| &status.remote_cidrs);
        texts.filter_map(move |text| Some((name, text.parse::<IpNet>().ok()?)))
    });
    match in_force.into_iter().find(|(_, remote)| overlap(remote, cidr)) {
        Some((name, remote)) => {
            Err(format!("{cidr} overlaps {remote} of ClusterPeering {name}; use other addresses"))
        }
        None => Ok(()),
    }
}

/// A node that comes with an address out of a pool in use does not end the pool; it is not reached at that address.
fn leave_out_addresses(cidr: &IpNet, intent: &mut NodeIntent, problems: &mut Vec<Problem>) {
    for (name, node) in &mut intent.nodes {
        let (inside, apart) = node.addresses.iter().partition(|address| cidr.contains(*address));
        node.addresses = apart;
        let inside: Vec<IpAddr> = inside;
        problems.extend(inside.iter().map(|address| Problem {
            object: format!("Node/{name}"),
            message: format!(
                "its address {address} lies in the pool {cidr}, which is in use; give it another one"
            ),
        }));
    }
}

fn pool(object: &IPPool, objects: &NodeObjects, intent: &NodeIntent) -> Result<Pool, String> {
    let cidr = cidr(&object.spec.cidr)?;
    if let Some((other, of)) = intent.pools.iter().find(|(_, pool)| overlap(&pool.cidr, &cidr)) {
        return Err(format!(
            "{cidr} overlaps {} of IPPool {other}, which is older; delete one of the two",
            of.cidr
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
    // Another plugin that gives addresses out also sees to what they are translated to outside.
    let external = object.spec.allocation != Allocation::Isthmus;
    let serves_this_node = !external && !object.spec.disabled && nodes.matches(&labels);
    let nat_outgoing = !external && object.spec.nat_outgoing;
    let (reserved, on_request) = set_aside(&object.spec, &cidr).map_err(|problem| problem.message)?;
    let wish = object.spec.namespace_selector.as_ref();
    let namespaces = wish.map(|wish| selected_namespaces(wish, objects)).transpose()?;
    Ok(Pool {
        cidr,
        encapsulation,
        nat_outgoing,
        serves_this_node,
        disabled: object.spec.disabled,
        namespaces,
        reserved: IpNet::aggregate(&[reserved, on_request.clone()].concat()),
        on_request,
        external,
    })
}

fn selected_namespaces(wish: &LabelSelector, objects: &NodeObjects) -> Result<BTreeSet<String>, String> {
    let (wanted, none) = (selector(Some(wish))?, BTreeMap::new());
    let selects = |(_, namespace): &(&String, &Namespace)| {
        wanted.matches(namespace.metadata.labels.as_ref().unwrap_or(&none))
    };
    Ok(objects.namespaces.iter().filter(selects).map(|(name, _)| name.clone()).collect())
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
    let pod = object.spec.pod.as_ref();
    if pod.is_some() && cidr.prefix_len() != cidr.max_prefix_len() {
        return Err(format!("{cidr} is said to be one pod's and has more than one address; delete it"));
    }
    if let Some(other) = intent.blocks.keys().find(|other| other.contains(&cidr) || cidr.contains(*other)) {
        return Err(format!("{cidr} overlaps the block {other}; delete one of them"));
    }
    let pod = pod.cloned().map(|BlockPod { namespace, name, uid, .. }| PodId { namespace, name, uid });
    Ok((cidr, Block { pool, node, pod }))
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
