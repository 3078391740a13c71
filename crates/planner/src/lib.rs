// SPDX-License-Identifier: Apache-2.0
//! Cluster decisions: a pure function of one [`Snapshot`].
//!
//! Every choice (which block, which name, which address, which time) is made here; what applies the [`Plan`]
//! has none left. Nothing here reads a clock, a socket or Kubernetes.

mod announce;
mod blocks;
mod cluster_id;
mod conditions;
pub mod corefile;
mod exports;
mod front;
pub mod gateways;
pub mod imports;
pub mod invitations;
pub mod merge;
mod nodes;
mod peering;
mod plan;
mod pools;
mod services;
mod snapshot;
#[cfg(test)]
mod testing;

pub use cluster_id::cluster_id;
pub use plan::{Event, Kind, ObjectKey, Plan, Written};
pub use snapshot::*;

use services::Services;

/// The field manager of everything that the operator writes.
pub const FIELD_MANAGER: &str = "isthmus-operator";

/// What shall be, given what is.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    let own_id = cluster_id(&snapshot.cluster);
    cluster_id::plan(snapshot, &mut plan);
    nodes::plan(snapshot, &mut plan);
    let usable = pools::usable(snapshot);
    let blocks = blocks::assign(snapshot, &usable);
    blocks.plan(snapshot, &mut plan);
    pools::statuses(snapshot, &usable, &blocks, &mut plan);
    gateways::egress(snapshot, &mut plan);
    front::plan(snapshot, &mut plan);
    corefile::plan(snapshot, &mut plan);
    invitations::plan(snapshot, &usable, &own_id, &mut plan);

    let gateways = gateways::choose(snapshot);
    let peers = peering::judge(snapshot, &usable, &own_id);
    let exports = exports::take(snapshot);
    peering::statuses(snapshot, &peers, &gateways, &mut plan);
    peering::contacts(snapshot, &peers, &mut plan);
    // Without an ID of its own the cluster can neither name its exports nor be named.
    if let Ok(own_id) = &own_id {
        plan.announcement = announce::records(snapshot, own_id, &usable, &gateways, &exports);
        let services = Services::collect(snapshot, own_id, &exports, &peers);
        imports::plan(snapshot, &services, &mut plan);
        exports::statuses(snapshot, &exports, &services, &mut plan);
    }
    plan
}
