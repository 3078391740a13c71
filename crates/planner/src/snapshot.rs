// SPDX-License-Identifier: Apache-2.0
//! Everything that a plan may depend on: the observed objects as far as they concern us, parsed, and the clock.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_api::v1alpha1::{IPBlockStatus, IPPoolStatus, NodeNetworkStatus};
use jiff::Timestamp;
use kube::core::Selector;

/// One moment of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The moment.
    pub now: Timestamp,
    /// What is known of the cluster as a whole.
    pub cluster: ClusterFacts,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// NodeNetworks by name.
    pub node_networks: BTreeMap<String, Seen<(), NodeNetworkStatus>>,
    /// Pools by name.
    pub pools: BTreeMap<String, Seen<Pool, IPPoolStatus>>,
    /// Blocks by object name.
    pub blocks: BTreeMap<String, Seen<Block, IPBlockStatus>>,
}

/// What is known of the cluster as a whole.
#[derive(Clone, Debug, Default)]
pub struct ClusterFacts {
    /// Value of the ClusterProperty `cluster.clusterset.k8s.io`, if the object exists.
    pub property: Option<String>,
    /// The ID that the installation asks for (flag, environment or ConfigMap).
    pub wished_id: Option<String>,
    /// UID of the namespace kube-system: what the ID is derived from where nobody gave one.
    pub system_uid: String,
}

/// What is wrong with an object, for a condition on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase reason.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// An observed object: its parsed wish, or what is wrong with it, and the status that it shows now.
#[derive(Clone, Debug)]
pub struct Seen<T, S> {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// The status as observed; empty if there is none.
    pub status: S,
    /// The wish.
    pub value: Result<T, Problem>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// `metadata.uid`.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its condition Ready is True.
    pub ready: bool,
    /// Its InternalIP addresses, in the order of the object.
    pub addresses: Vec<IpAddr>,
}

impl Node {
    /// Whether the node runs the control plane (by its well-known label).
    pub fn is_control_plane(&self) -> bool {
        self.labels.contains_key("node-role.kubernetes.io/control-plane")
    }
}

/// An address pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its addresses.
    pub cidr: IpNet,
    /// Prefix length of its blocks.
    pub block_prefix: u8,
    /// Nodes that may use it.
    pub nodes: Selector,
    /// No new blocks are given out.
    pub disabled: bool,
}

/// A block of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The pool.
    pub pool: String,
    /// Its addresses.
    pub cidr: IpNet,
    /// The node that holds it.
    pub node: String,
}
