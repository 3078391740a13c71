// SPDX-License-Identifier: Apache-2.0
//! What is the case on the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_model::dataplane::DataplaneState;
use isthmus_model::ids::LinkName;

/// What is the case on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Links that are not ours and carry addresses.
    pub uplinks: BTreeMap<LinkName, Uplink>,
    /// Pods that have a link, by the host end's name.
    pub pods: BTreeMap<LinkName, PodFacts>,
    /// Pods whose link another plugin made.
    pub chained: Vec<ChainedPod>,
    /// What the data plane process measured.
    pub dataplane: DataplaneState,
}

/// A link of the network between nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses with the prefix length of their subnet.
    pub addresses: BTreeSet<IpNet>,
    /// `rp_filter` is 1: packets of peers' pods would be dropped.
    pub strict_reverse_path: bool,
    /// `accept_ra` is 1: router advertisements would be ignored once the node forwards.
    pub router_advertisements: bool,
}

/// A pod with a link.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodFacts {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A pod whose link and addresses another CNI plugin gave it: ours came after that one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainedPod {
    /// The link by which the node receives its packets: the host end of its veth pair, or the bridge that this is a port of.
    pub link: LinkName,
    /// No other pod's packets come by the link.
    pub alone: bool,
    /// The pod.
    pub pod: PodFacts,
}

impl NodeFacts {
    /// All pods, each with the link by which its packets come.
    pub(crate) fn all_pods(&self) -> impl Iterator<Item = (&LinkName, &PodFacts)> {
        self.pods.iter().chain(self.chained.iter().map(|chained| (&chained.link, &chained.pod)))
    }

    /// The link on which `address` is a neighbour.
    pub(crate) fn on_link(&self, address: IpAddr) -> Option<&LinkName> {
        self.uplinks
            .iter()
            .find(|(_, uplink)| {
                uplink.addresses.iter().any(|net| net.contains(&address) && net.addr() != address)
            })
            .map(|(name, _)| name)
    }

    /// The link that holds `address`.
    pub(crate) fn link_of(&self, address: IpAddr) -> Option<&LinkName> {
        let holds = |uplink: &Uplink| uplink.addresses.iter().any(|net| net.addr() == address);
        self.uplinks.iter().find(|(_, uplink)| holds(uplink)).map(|(name, _)| name)
    }

    /// MTU of the link that holds the first of these addresses; 1500 if none does.
    pub fn uplink_mtu(&self, own: &[IpAddr]) -> u32 {
        let link = own.iter().find_map(|address| self.link_of(*address));
        link.and_then(|name| self.uplinks.get(name)).map_or(1500, |uplink| uplink.mtu)
    }
}
