// SPDX-License-Identifier: Apache-2.0
//! Cluster decisions: a pure function of one [`Snapshot`].
//!
//! Every choice (which block, which name, which address, which time) is made here; what applies the [`Plan`]
//! has none left. Nothing here reads a clock, a socket or Kubernetes.

mod blocks;
mod cluster_id;
mod conditions;
mod nodes;
mod plan;
mod pools;
mod snapshot;

pub use cluster_id::cluster_id;
pub use plan::{Event, Kind, ObjectKey, Plan, Written};
pub use snapshot::{Block, ClusterFacts, Node, Pool, Problem, Seen, Snapshot};

/// The field manager of everything that the operator writes.
pub const FIELD_MANAGER: &str = "isthmus-operator";

/// What shall be, given what is.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    cluster_id::plan(snapshot, &mut plan);
    nodes::plan(snapshot, &mut plan);
    let usable = pools::usable(snapshot);
    let blocks = blocks::assign(snapshot, &usable);
    blocks.plan(snapshot, &mut plan);
    pools::statuses(snapshot, &usable, &blocks, &mut plan);
    plan
}
