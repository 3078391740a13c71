// SPDX-License-Identifier: Apache-2.0
//! Which node holds which block of which pool.
//!
//! Blocks of one address that are one pod's alone come first ([`own`]): none overlaps another.
//!
//! Every node that may use a pool gets one block at once, and a further one while it has few free addresses:
//! a pod's ADD then never waits for the API server.

mod own;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_api::condition::READY;
use isthmus_api::v1alpha1::{Allocation, IPBlock, IPBlockSpec, IPBlockStatus};
use kube::core::SelectorExt;

use crate::conditions::{self, Progress, is};
use crate::plan::{Kind, ObjectKey, Plan};
use crate::pools::{Usable, overlap};
use crate::snapshot::{Block, Pool, Snapshot};

use own::Requests;

/// A node that has fewer free addresses than this in a pool gets a further block of it.
const FEW_FREE: u128 = 16;
/// No node holds more blocks of one pool: a runaway node must not drain it.
const BLOCKS_PER_NODE: usize = 256;

/// Who holds what, once the plan is applied.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// All blocks by object name.
    pub(crate) held: BTreeMap<String, Block>,
    /// Objects that shall go.
    released: BTreeSet<String>,
    /// Blocks that are kept for a pod of a name, and that nobody has or asks for where they are.
    idle: BTreeSet<String>,
    /// Addresses in use by block, as the nodes report.
    pub(crate) allocated: BTreeMap<IpNet, i64>,
    /// Nodes that a pool had no block for, by pool.
    pub(crate) wanting: BTreeMap<String, BTreeSet<String>>,
}

/// Name of the IPBlock object of a block: `<pool>-<cidr>` in characters that names may have.
pub(crate) fn block_name(pool: &str, cidr: &IpNet) -> String {
    let digits = cidr.to_string().replace(['.', ':', '/'], "-");
    // `fd00::/64` would give two dashes in a row: fine inside a name, which must only not begin or end with one.
    format!("{pool}-{digits}")
}

pub(crate) fn assign(snapshot: &Snapshot, usable: &Usable<'_>) -> Blocks {
    let mut blocks = Blocks { allocated: reported(snapshot), ..Blocks::default() };
    let requests = own::requests(snapshot);
    keep_or_release(snapshot, usable, &requests, &mut blocks);
    own::claim(snapshot, usable, &requests, &mut blocks);
    for (name, pool) in usable.iter().filter_map(|(name, verdict)| Some((*name, verdict.as_ref().ok()?))) {
        if pool.disabled {
            continue;
        }
        if pool.allocation != Allocation::Isthmus {
            take_over(name, pool, snapshot, &mut blocks);
            continue;
        }
        if pool.set_aside.contains(&pool.cidr) {
            // It gives nothing out unasked.
            continue;
        }
        let mut free = Free::new(pool, blocks.held.values().map(|block| block.cidr));
        for only_first in [true, false] {
            for node in
                snapshot.nodes.iter().filter(|(_, node)| pool.nodes.matches(&node.labels)).map(|(n, _)| n)
            {
                give(name, pool, node, only_first, &mut free, &mut blocks);
            }
        }
    }
    blocks
}

/// Addresses in use as the node reports them that holds the block. What another one says of it is of before.
fn reported(snapshot: &Snapshot) -> BTreeMap<IpNet, i64> {
    let held = snapshot.blocks.values().filter_map(|seen| seen.value.as_ref().ok());
    let holders: BTreeMap<IpNet, &str> = held.map(|block| (block.cidr, block.node.as_str())).collect();
    let mut allocated = BTreeMap::new();
    for (node, seen) in &snapshot.node_networks {
        for usage in &seen.status.blocks {
            let Ok(cidr) = usage.cidr.parse() else { continue };
            if holders.get(&cidr) == Some(&node.as_str()) {
                allocated.insert(cidr, usage.allocated);
            }
        }
    }
    allocated
}

/// A block goes when its node is gone, or when nobody wants it there any more and its node reports it empty. One that was a
/// node's pod CIDR goes when it is that no longer: who gives the addresses out then gives them to another node.
fn keep_or_release(snapshot: &Snapshot, usable: &Usable<'_>, requests: &Requests<'_>, blocks: &mut Blocks) {
    for (name, seen) in &snapshot.blocks {
        let Ok(block) = &seen.value else { continue };
        let node = snapshot.nodes.get(&block.node);
        if let Some(pod) = &block.pod {
            let empty = blocks.allocated.get(&block.cidr).is_some_and(|used| *used == 0);
            let over = node.is_none() || (empty && !requests.ask(&block.node, pod, block.cidr.addr()));
            let kept = pod.stateful_set.as_ref().is_some_and(|set| snapshot.stateful_sets.contains(set));
            if over && !kept {
                blocks.released.insert(name.clone());
                continue;
            }
            if over {
                blocks.idle.insert(name.clone());
            }
            blocks.held.insert(name.clone(), block.clone());
            continue;
        }
        let wanted = matches!(usable.get(block.pool.as_str()), Some(Ok(pool))
            if node.is_some_and(|node| pool.nodes.matches(&node.labels)));
        let pool = snapshot.pools.get(&block.pool).and_then(|pool| pool.value.as_ref().ok());
        let taken_over = pool.is_some_and(|pool| pool.allocation == Allocation::PodCIDRs);
        let not_its_any_more = taken_over && node.is_some_and(|node| !node.pod_cidrs.contains(&block.cidr));
        // Of what another plugin gives out a node need not report anything.
        let empty = blocks.allocated.get(&block.cidr).map_or(taken_over, |used| *used == 0);
        if node.is_none() || not_its_any_more || (!wanted && empty) {
            blocks.released.insert(name.clone());
        } else {
            blocks.held.insert(name.clone(), block.clone());
        }
    }
}

/// What the control plane gave to nodes is theirs already. Where another plugin has its own way, nobody holds anything.
fn take_over(name: &str, pool: &Pool, snapshot: &Snapshot, blocks: &mut Blocks) {
    if pool.allocation != Allocation::PodCIDRs {
        return;
    }
    for (node, seen) in snapshot.nodes.iter().filter(|(_, node)| pool.nodes.matches(&node.labels)) {
        for cidr in seen.pod_cidrs.iter().filter(|cidr| pool.cidr.contains(*cidr)) {
            let free = !blocks.held.values().any(|block| overlap(&block.cidr, cidr));
            if free {
                let block = Block { pool: name.to_owned(), cidr: *cidr, node: node.clone(), pod: None };
                blocks.held.insert(block_name(name, cidr), block);
            }
        }
    }
}

fn give(name: &str, pool: &Pool, node: &str, only_first: bool, free: &mut Free, blocks: &mut Blocks) {
    loop {
        let mine = blocks
            .held
            .values()
            .filter(|block| block.pool == name && block.node == node && block.pod.is_none());
        let (count, spare) = mine.fold((0, 0), |(count, spare), block| {
            let used = blocks.allocated.get(&block.cidr).copied().unwrap_or(0);
            (
                count + 1,
                spare + usable_addresses(&block.cidr, pool).saturating_sub(u128::try_from(used).unwrap_or(0)),
            )
        });
        let enough = if only_first { count > 0 } else { spare >= few_free(pool) };
        if enough || count >= BLOCKS_PER_NODE {
            return;
        }
        let Some(cidr) = free.take() else {
            blocks.wanting.entry(name.to_owned()).or_default().insert(node.to_owned());
            return;
        };
        let block = Block { pool: name.to_owned(), cidr, node: node.to_owned(), pod: None };
        blocks.held.insert(block_name(name, &cidr), block);
    }
}

/// Addresses of a block that pods can have: all but the node's own and those that are set aside.
fn usable_addresses(block: &IpNet, pool: &Pool) -> u128 {
    let own = IpNet::from(block.network());
    if pool.set_aside.iter().any(|range| range.contains(block)) {
        return 0;
    }
    let inside = pool.set_aside.iter().filter(|range| block.contains(*range));
    let (reserved, holds_own) = inside
        .fold((0, false), |(count, holds), range| (count + addresses(range), holds || range.contains(&own)));
    addresses(block).saturating_sub(reserved).saturating_sub(u128::from(!holds_own))
}

/// How many there are, as far as that fits 128 bits.
pub(crate) fn addresses(network: &IpNet) -> u128 {
    let bits = u32::from(network.max_prefix_len() - network.prefix_len());
    1u128.checked_shl(bits).unwrap_or(u128::MAX)
}

/// Small blocks never reach [`FEW_FREE`]; for them a quarter of a block is few.
fn few_free(pool: &Pool) -> u128 {
    let bits = u32::from(pool.cidr.max_prefix_len() - pool.block_prefix);
    FEW_FREE.min((1u128.checked_shl(bits).unwrap_or(u128::MAX) / 4).max(1))
}

/// The free blocks of a pool, lowest first; none of which all is set aside.
struct Free {
    next: Option<u128>,
    last: u128,
    step: u128,
    prefix: u8,
    v4: bool,
    taken: Vec<IpNet>,
}

impl Free {
    fn new(pool: &Pool, taken: impl Iterator<Item = IpNet>) -> Self {
        let aside = pool.set_aside.iter().filter(|range| range.prefix_len() <= pool.block_prefix).copied();
        let mut taken: Vec<IpNet> = taken.filter(|cidr| overlap(cidr, &pool.cidr)).chain(aside).collect();
        taken.sort();
        let bits = u32::from(pool.cidr.max_prefix_len() - pool.block_prefix);
        Self {
            next: Some(number(pool.cidr.network())),
            last: number(pool.cidr.broadcast()),
            step: 1u128.checked_shl(bits).unwrap_or(0),
            prefix: pool.block_prefix,
            v4: pool.cidr.network().is_ipv4(),
            taken,
        }
    }

    fn take(&mut self) -> Option<IpNet> {
        loop {
            let start = self.next.filter(|start| *start <= self.last)?;
            self.next = start.checked_add(self.step).filter(|_| self.step > 0);
            let cidr = IpNet::new(address(start, self.v4), self.prefix).ok()?;
            if !self.taken.iter().any(|other| overlap(other, &cidr)) {
                return Some(cidr);
            }
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => IpAddr::V4(number.into()),
        _ => IpAddr::V6(number.into()),
    }
}

impl Blocks {
    pub(crate) fn plan(&self, snapshot: &Snapshot, plan: &mut Plan) {
        for (name, block) in &self.held {
            let spec = IPBlockSpec {
                pool: block.pool.clone(),
                cidr: block.cidr.to_string(),
                node: block.node.clone(),
                pod: block.pod.clone(),
            };
            let mut object = IPBlock::new(name, spec);
            let before = snapshot.blocks.get(name);
            if before.and_then(|seen| seen.value.as_ref().ok()).is_some_and(|before| before != block) {
                // It moves, from where it was seen and from nowhere else.
                object.metadata.resource_version = before.and_then(|seen| seen.version.clone());
            }
            plan.ensure(&object);
        }
        for name in &self.released {
            let Some(seen) = snapshot.blocks.get(name) else { continue };
            plan.prune.insert(ObjectKey::cluster(Kind::IpBlock, name), seen.uid.clone());
        }
        for (name, seen) in snapshot.blocks.iter().filter(|(name, _)| !self.released.contains(*name)) {
            let (ready, progress) = match &seen.value {
                Ok(_) => (is(READY, true, "Held", ""), Progress::Settled),
                Err(problem) => (is(READY, false, problem.reason, &problem.message), Progress::Stalled),
            };
            let old = &seen.status.conditions;
            let status = IPBlockStatus {
                observed_generation: seen.generation,
                conditions: conditions::updated(old, &[ready], progress, seen.generation, snapshot.now),
            };
            plan.status(ObjectKey::cluster(Kind::IpBlock, name), &status);
        }
    }
}

#[cfg(test)]
mod tests;
