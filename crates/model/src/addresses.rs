// SPDX-License-Identifier: Apache-2.0
//! What a node holds of its pods' addresses, for whoever compares it with the cluster (`isthmus ipam check`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::LinkName;

/// The journal of a node and what its kernel has, read one after the other: a pod that comes or goes meanwhile may be in one only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddresses {
    /// What the journal holds.
    pub held: Vec<Held>,
    /// Host ends of pods' links in the kernel.
    pub links: BTreeSet<LinkName>,
    /// Our routes that lead to a pod's link, and the links.
    pub routes: BTreeMap<IpNet, BTreeSet<LinkName>>,
}

/// What an interface of a container was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Held {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// Namespace of the pod; empty where it is not known.
    pub namespace: String,
    /// Name of the pod; empty where it is not known.
    pub pod: String,
    /// Host end of its veth pair.
    pub link: LinkName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}
