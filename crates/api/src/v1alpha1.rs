// SPDX-License-Identifier: Apache-2.0
//! `isthmus.dev/v1alpha1`.

mod cluster_peering;
mod egress_policy;
mod ip_block;
mod ip_pool;
mod node_network;
mod peering_invitation;

pub use cluster_peering::*;
pub use egress_policy::*;
pub use ip_block::*;
pub use ip_pool::*;
pub use node_network::*;
pub use peering_invitation::*;
