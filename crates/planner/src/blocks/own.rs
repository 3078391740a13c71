// SPDX-License-Identifier: Apache-2.0
//! Addresses that pods ask for: a block of one address for the node and the pod, as long as the node tells of the pod.
//!
//! A node tells in one status which of its pods ask and how many addresses of its blocks are in use, and gives an address of a
//! pod's own only to the pod that the block names, while that one asks. So once it tells that a pod does not ask any
//! more and that its address is not in use, nobody there can get it: a UID does not come again.
//!
//! An address that is kept is the same for one pod after the other, by name: its block then moves to node and UID of the next,
//! and goes with the StatefulSet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_api::v1alpha1::{Allocation, BlockPod};
use kube::core::SelectorExt;

use super::{Blocks, address, block_name, number};
use crate::pools::{Usable, overlap};
use crate::snapshot::{Block, Pool, Snapshot};

/// Who asks for what, by node and pod.
pub(super) struct Requests<'a>(BTreeMap<(&'a str, BlockPod), Request<'a>>);

struct Request<'a> {
    /// Addresses by themselves.
    addresses: Vec<IpAddr>,
    /// Pools out of which addresses are to be kept.
    keep_from: &'a [String],
}

/// What nodes tell of their pods.
pub(super) fn requests(snapshot: &Snapshot) -> Requests<'_> {
    let mut requests = BTreeMap::new();
    for (node, seen) in &snapshot.node_networks {
        for request in &seen.status.requests {
            let pod = BlockPod {
                namespace: request.namespace.clone(),
                name: request.name.clone(),
                uid: request.uid.clone(),
                stateful_set: request.stateful_set.clone(),
            };
            let addresses = request.addresses.iter().filter_map(|text| text.parse().ok()).collect();
            let request = Request { addresses, keep_from: &request.keep_from };
            requests.insert((node.as_str(), pod), request);
        }
    }
    Requests(requests)
}

impl Requests<'_> {
    /// Whether the pod of this node asks for the address, or to keep what it has.
    pub(super) fn ask(&self, node: &str, pod: &BlockPod, address: IpAddr) -> bool {
        let asked = self.0.get(&(node, pod.clone()));
        asked.is_some_and(|asked| pod.stateful_set.is_some() || asked.addresses.contains(&address))
    }
}

/// Gives what is asked for, is there to be asked for and nobody has. Of two who ask at once the first by node and name gets it.
pub(super) fn claim(snapshot: &Snapshot, usable: &Usable<'_>, requests: &Requests<'_>, blocks: &mut Blocks) {
    for ((node, pod), request) in &requests.0 {
        if pod.stateful_set.is_some() {
            keep(snapshot, usable, (node, pod), request.keep_from, blocks);
            continue;
        }
        for address in &request.addresses {
            let Some((name, _)) = pool_for(*address, node, &pod.namespace, snapshot, usable) else {
                continue;
            };
            take(name, *address, (node, pod), blocks);
        }
    }
}

/// Makes a block of the address, if there is none. A released one is there until it was deleted.
fn take(name: &str, address: IpAddr, (node, pod): (&str, &BlockPod), blocks: &mut Blocks) {
    let cidr = IpNet::from(address);
    let object = block_name(name, &cidr);
    if blocks.held.contains_key(&object) || blocks.released.contains(&object) {
        return;
    }
    if !blocks.held.values().any(|block| overlap(&block.cidr, &cidr)) {
        let block = Block { pool: name.to_owned(), cidr, node: node.to_owned(), pod: Some(pod.clone()) };
        blocks.held.insert(object, block);
    }
}

/// What is kept for the pod's name comes to where the pod is, once nobody has it where it was; what is missing is picked.
fn keep(
    snapshot: &Snapshot,
    usable: &Usable<'_>,
    (node, pod): (&str, &BlockPod),
    from: &[String],
    blocks: &mut Blocks,
) {
    if !pod.stateful_set.as_ref().is_some_and(|set| snapshot.stateful_sets.contains(set)) {
        return;
    }
    let same = |other: &BlockPod| {
        (&other.namespace, &other.name, &other.stateful_set) == (&pod.namespace, &pod.name, &pod.stateful_set)
    };
    let mut families = BTreeSet::new();
    for (name, block) in &mut blocks.held {
        let Some(holder) = block.pod.as_mut().filter(|holder| same(holder)) else { continue };
        families.insert(block.cidr.addr().is_ipv6());
        if blocks.idle.remove(name) {
            (block.node, holder.uid) = (node.to_owned(), pod.uid.clone());
        }
    }
    for name in from {
        let Some(Ok(pool)) = usable.get(name.as_str()) else { continue };
        let missing = !families.contains(&pool.cidr.addr().is_ipv6());
        if missing
            && is_open(pool, node, &pod.namespace, snapshot)
            && let Some(address) = pick(pool, name, blocks)
        {
            families.insert(address.is_ipv6());
            take(name, address, (node, pod), blocks);
        }
    }
}

/// The lowest address of those for who asks that no block has.
fn pick(pool: &Pool, name: &str, blocks: &Blocks) -> Option<IpAddr> {
    pool.on_request.iter().find_map(|range| {
        let mut next = number(range.network());
        while next <= number(range.broadcast()) {
            let address = address(next, range.addr().is_ipv4());
            let cidr = IpNet::from(address);
            match blocks.held.values().find(|block| overlap(&block.cidr, &cidr)) {
                Some(block) => next = number(block.cidr.broadcast()).checked_add(1)?,
                None if blocks.released.contains(&block_name(name, &cidr)) => next = next.checked_add(1)?,
                None => return Some(address),
            }
        }
        None
    })
}

/// The pool whose address it is, if pods of the namespace may ask for it on this node.
fn pool_for<'a>(
    address: IpAddr,
    node: &str,
    namespace: &str,
    snapshot: &Snapshot,
    usable: &Usable<'a>,
) -> Option<(&'a str, &'a Pool)> {
    let pools = usable.iter().filter_map(|(name, verdict)| Some((*name, *verdict.as_ref().ok()?)));
    let leaves = |pool: &Pool| pool.on_request.iter().any(|range| range.contains(&address));
    pools.into_iter().find(|(_, pool)| leaves(pool) && is_open(pool, node, namespace, snapshot))
}

/// Whether pods of the namespace may ask for addresses of the pool on this node.
fn is_open(pool: &Pool, node: &str, namespace: &str, snapshot: &Snapshot) -> bool {
    let Some((node, labels)) = snapshot.nodes.get(node).zip(snapshot.namespace_labels.get(namespace)) else {
        return false;
    };
    pool.allocation == Allocation::Isthmus
        && !pool.disabled
        && pool.nodes.matches(&node.labels)
        && pool.namespaces.as_ref().is_none_or(|selector| selector.matches(labels))
}

#[cfg(test)]
mod tests;
