// SPDX-License-Identifier: Apache-2.0
//! Node decisions, pure: `compile(&NodeIntent, &NodeFacts) -> Desired`.

mod choice;
mod egress;
mod facts;
mod intent;
mod names;
mod nft;
mod paths;
mod probes;
mod render;
mod routes;
mod sysctls;
mod tunnels;

use isthmus_model::kernel::Desired;
use isthmus_model::nft::Ruleset;

pub use choice::{Asked, AskingPod, PodName, PoolsByFamily, Request, Share, Unserved, Wish};
pub use facts::{ChainedPod, NodeFacts, PodFacts, Uplink};
pub use intent::{
    Block, Egress, Encapsulation, Node, NodeIntent, Peer, PodId, Pool, RemoteGateway, RemoteLane,
};
pub use names::{gateway_probe, pod_link, tunnel_device, tunnel_probe, vxlan_mac};
pub use render::render;
pub use tunnels::{DEFAULT_TUNNEL_MTU, OwnTunnel, own_tunnels};

/// Metric of the routes that hold when nothing better does, so that nothing falls to the default route.
pub const FALLBACK_METRIC: u32 = 1 << 31;
/// The kernel's main routing table.
pub const MAIN_TABLE: u32 = 254;

/// Everything the node's kernel shall hold of ours, from scratch.
pub fn compile(intent: &NodeIntent, facts: &NodeFacts) -> Desired {
    let mut desired = Desired { nft: nft::ruleset(intent, facts), ..Desired::default() };
    tunnels::add(intent, facts, &mut desired);
    probes::add(intent, facts, &mut desired);
    routes::add(intent, facts, &mut desired);
    egress::add(intent, facts, &mut desired);
    sysctls::add(facts, &mut desired);
    desired
}

/// The table as it is armed before anything is known: no pod interface passes anything.
pub fn closed_ruleset() -> Ruleset {
    nft::ruleset(&NodeIntent::nothing(), &NodeFacts::default())
}
