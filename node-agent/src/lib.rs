// SPDX-License-Identifier: Apache-2.0
//! The node agent: one event loop that brings this node's kernel to what the cluster decided, and answers CNI calls.

pub mod addresses;
pub mod chained;
pub mod cni;
pub mod conflist;
pub mod dataplane_link;
pub mod engine;
pub mod install;
pub mod logs;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod notices;
pub mod objects;
pub mod run;
pub mod status;
pub mod underlay;
pub mod watches;
