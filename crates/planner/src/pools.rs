// SPDX-License-Identifier: Apache-2.0
//! Which pools can be used, and what each pool's status says.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use isthmus_api::condition::READY;
use isthmus_api::v1alpha1::{Allocation, IPPoolStatus};
use jiff::Timestamp;
use kube::core::SelectorExt;

use crate::blocks::{Blocks, addresses};
use crate::conditions::{self, Progress, is};
use crate::plan::{Kind, ObjectKey, Plan};
use crate::snapshot::{Pool, Problem, Snapshot};

/// Each pool by name: usable, or why not.
pub(crate) type Usable<'a> = BTreeMap<&'a str, Result<&'a Pool, Problem>>;

/// A pool whose blocks are in use stays in force, whatever comes later, and so does one in force that another plugin gives out: of two
/// that overlap the older one, and a new pool never takes addresses that are a node's, a Service's or a peer's.
pub(crate) fn usable(snapshot: &Snapshot) -> Usable<'_> {
    let mut by_age: Vec<_> = snapshot.pools.iter().collect();
    by_age.sort_by_key(|(name, seen)| (seen.created, name.as_str()));
    let in_use: BTreeSet<&str> =
        snapshot.blocks.values().filter_map(|seen| Some(seen.value.as_ref().ok()?.pool.as_str())).collect();
    let mut taken: Vec<(&str, IpNet)> = Vec::new();
    let mut verdicts = Usable::new();
    for (name, seen) in by_age {
        let verdict = seen.value.as_ref().map_err(Clone::clone).and_then(|pool| {
            let conflict = older_pool(&taken, pool).or_else(|| {
                let stays = in_use.contains(name.as_str()) || (is_external(pool) && was_ready(&seen.status));
                (!stays).then(|| occupied(snapshot, seen.created, pool)).flatten()
            });
            conflict.map_or(Ok(pool), Err)
        });
        if let Ok(pool) = verdict {
            taken.push((name, pool.cidr));
        }
        verdicts.insert(name, verdict);
    }
    verdicts
}

fn is_external(pool: &Pool) -> bool {
    pool.allocation == Allocation::External
}

/// What the status says of it now.
fn was_ready(status: &IPPoolStatus) -> bool {
    status.conditions.iter().any(|one| one.type_ == READY && one.status == "True")
}

fn older_pool(taken: &[(&str, IpNet)], pool: &Pool) -> Option<Problem> {
    let (other, cidr) = taken.iter().find(|(_, cidr)| overlap(cidr, &pool.cidr))?;
    let message =
        format!("{} overlaps {cidr} of IPPool {other}, which is older; delete one of the two", pool.cidr);
    Some(Problem { reason: "Overlap", message })
}

/// Whose addresses a new pool would take.
fn occupied(snapshot: &Snapshot, created: Timestamp, pool: &Pool) -> Option<Problem> {
    let cidr = &pool.cidr;
    let apart = "use a range of its own";
    for (name, node) in &snapshot.nodes {
        if let Some(address) = node.addresses.iter().find(|address| cidr.contains(*address)) {
            let message = format!("{cidr} holds {address}, the address of node {name}; {apart}");
            return Some(Problem { reason: "HoldsNodeAddress", message });
        }
    }
    if let Some(services) = snapshot.cluster.service_cidrs.iter().find(|services| overlap(services, cidr)) {
        let message =
            format!("{cidr} overlaps {services}, the addresses of this cluster's Services; {apart}");
        return Some(Problem { reason: "OverlapsServices", message });
    }
    let older = snapshot.peerings.iter().filter(|(_, seen)| !seen.deleting && seen.created <= created);
    for (name, seen) in older {
        let in_force = seen.status.remote_cidrs.iter().filter_map(|text| text.parse::<IpNet>().ok());
        if let Some(remote) = in_force.into_iter().find(|remote| overlap(remote, cidr)) {
            let message =
                format!("{cidr} overlaps {remote} of ClusterPeering {name}, which is older; {apart}");
            return Some(Problem { reason: "OverlapsPeer", message });
        }
    }
    None
}

/// Whether two networks share an address.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

pub(crate) fn statuses(snapshot: &Snapshot, usable: &Usable<'_>, blocks: &Blocks, plan: &mut Plan) {
    for (name, seen) in &snapshot.pools {
        let Some(verdict) = usable.get(name.as_str()) else { continue };
        let (ready, progress) = match verdict {
            Err(problem) => (is(READY, false, problem.reason, &problem.message), Progress::Stalled),
            Ok(pool) => match blocks.wanting.get(name) {
                Some(nodes) => {
                    let first: Vec<&str> = nodes.iter().take(5).map(String::as_str).collect();
                    let message = format!(
                        "no free block of /{} is left for {} node(s), such as {}; create another IPPool",
                        pool.block_prefix,
                        nodes.len(),
                        first.join(", ")
                    );
                    (is(READY, false, "Exhausted", message), Progress::Stalled)
                }
                None if pool.disabled => (
                    is(READY, true, "Disabled", "addresses in use stay; no new ones are given out"),
                    Progress::Settled,
                ),
                None if !snapshot.nodes.values().any(|node| pool.nodes.matches(&node.labels)) => {
                    let message = "spec.nodeSelector matches no node; label one, or change the selector";
                    (is(READY, false, "NoNode", message), Progress::Stalled)
                }
                None if pool.allocation == Allocation::PodCIDRs
                    && !blocks.held.values().any(|block| block.pool == *name) =>
                {
                    let message = "no node's spec.podCIDRs lie in the pool; give the cluster's pod network as cidr, or choose the allocation External";
                    (is(READY, false, "NoPodCIDR", message), Progress::Stalled)
                }
                None => (is(READY, true, "InUse", ""), Progress::Settled),
            },
        };
        let held: Vec<_> = blocks.held.values().filter(|block| block.pool == *name).collect();
        let status = IPPoolStatus {
            observed_generation: seen.generation,
            conditions: conditions::updated(
                &seen.status.conditions,
                &[ready],
                progress,
                seen.generation,
                snapshot.now,
            ),
            blocks: i32::try_from(held.len()).unwrap_or(i32::MAX),
            allocated: held.iter().filter_map(|block| blocks.allocated.get(&block.cidr)).sum(),
            capacity: seen.value.as_ref().ok().map(capacity),
        };
        plan.status(ObjectKey::cluster(Kind::IpPool, name), &status);
    }
}

/// Number of addresses that are not reserved, exactly as long as that fits 128 bits.
fn capacity(pool: &Pool) -> String {
    let bits = u32::from(pool.cidr.max_prefix_len() - pool.cidr.prefix_len());
    let reserved = || pool.reserved.iter().map(addresses).fold(0, u128::saturating_add);
    1u128
        .checked_shl(bits)
        .filter(|_| bits < 128)
        .map_or_else(|| format!("2^{bits}"), |count| count.saturating_sub(reserved()).to_string())
}
