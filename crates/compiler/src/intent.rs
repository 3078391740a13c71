// SPDX-License-Identifier: Apache-2.0
//! What the cluster decided, as far as this node acts on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use isthmus_model::dataplane::PublicKey;
use isthmus_model::ids::{NodeName, PeerName, PoolName};
use isthmus_model::kernel::MacAddress;
use isthmus_model::ownership::mesh_address;
use serde::{Deserialize, Serialize};

use crate::choice::{AskingPod, Wish};

/// The cluster's decisions as one node sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIntent {
    /// The node that is compiled for; none before it is known.
    pub node: Option<NodeName>,
    /// All nodes, this one too.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Pools.
    pub pools: BTreeMap<PoolName, Pool>,
    /// Blocks of all nodes.
    pub blocks: BTreeMap<IpNet, Block>,
    /// Peerings that are in force.
    pub peers: BTreeMap<PeerName, Peer>,
    /// Egress policies by name.
    pub egress: BTreeMap<String, Egress>,
    /// Generation of the WireGuard key that this node shall use.
    pub key_generation: u64,
    /// Namespaces and the pools that their pods shall have addresses of: all where pods have a choice, else those that ask.
    #[serde(default)]
    pub namespaces: BTreeMap<String, Wish>,
    /// Pods of this node by namespace and name, likewise.
    #[serde(default)]
    pub pods: BTreeMap<String, BTreeMap<String, AskingPod>>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Internal addresses, preferred first.
    pub addresses: Vec<IpAddr>,
    /// Ethernet address of its VXLAN device, once its agent said so.
    pub vxlan_mac: Option<MacAddress>,
    /// Smallest path MTU of its tunnels to a peer, bytes of inner packet, once measured.
    pub tunnel_mtus: BTreeMap<PeerName, u32>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its addresses.
    pub cidr: IpNet,
    /// When packets between nodes are encapsulated.
    pub encapsulation: Encapsulation,
    /// Whether packets to the outside leave with the node's address.
    pub nat_outgoing: bool,
    /// New pods of this node get an address of it: it is enabled and its node selector holds.
    pub serves_this_node: bool,
    /// It is disabled.
    #[serde(default)]
    pub disabled: bool,
    /// Namespaces that it is for; none: those that no other pool is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<BTreeSet<String>>,
    /// Ranges of it that no pod receives unasked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<IpNet>,
    /// Those of them whose addresses pods may ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_request: Vec<IpNet>,
    /// Another CNI plugin gives its addresses out, and leads packets to them: no route of ours is for them.
    #[serde(default)]
    pub external: bool,
}

/// When packets between nodes are encapsulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encapsulation {
    /// To every other node.
    Always,
    /// To nodes that share no link with this one.
    CrossSubnet,
    /// Never: what lies between the nodes routes pods' addresses.
    Never,
}

/// A block of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Its pool.
    pub pool: PoolName,
    /// The node that holds it.
    pub node: NodeName,
    /// The pod whose alone its one address is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodId>,
}

/// One pod, and no namesake of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodId {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// Another cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its pods' addresses that are in force.
    pub remote_cidrs: BTreeSet<IpNet>,
    /// Its pods' addresses that were in force and are refused: nothing leaves for them.
    pub closed_cidrs: BTreeSet<IpNet>,
    /// Its gateways by name.
    pub gateways: BTreeMap<String, RemoteGateway>,
    /// Nodes of this cluster that carry the tunnels.
    pub local_gateways: BTreeSet<NodeName>,
}

/// A gateway of another cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteGateway {
    /// WireGuard key.
    pub public_key: PublicKey,
    /// Where it listens, preferred first.
    pub endpoints: Vec<SocketAddr>,
    /// Its own addresses inside the tunnel; each lies in the peer's `remote_cidrs`.
    pub mesh_addresses: Vec<IpAddr>,
    /// By the key of a gateway of ours: the port for the tunnel to that, where it is not the endpoints' port.
    pub ports: BTreeMap<PublicKey, u16>,
    /// Its lanes, of which the first has `public_key`; none where it does not know of lanes.
    #[serde(default)]
    pub lanes: Vec<RemoteLane>,
}

/// A lane of a gateway of another cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteLane {
    /// WireGuard key.
    pub public_key: PublicKey,
    /// UDP port where it listens, at the gateway's endpoints.
    pub port: u16,
}

/// An egress policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// Selected pods of this node, namespace and name.
    pub pods: BTreeSet<(String, String)>,
    /// Destinations outside the cluster that it applies to.
    pub destinations: BTreeSet<IpNet>,
    /// The node through which they leave; none while no node qualifies (then nothing leaves).
    pub gateway: Option<NodeName>,
    /// The source addresses that the outside sees.
    pub addresses: Vec<IpAddr>,
}

impl NodeIntent {
    /// Before anything is known.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Whether `name` is the node that is compiled for.
    pub fn is_self(&self, name: &NodeName) -> bool {
        self.node.as_ref() == Some(name)
    }

    /// Blocks of a node, lowest first.
    pub fn blocks_of<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = (&'a IpNet, &'a Block)> {
        self.blocks.iter().filter(move |(_, block)| block.node == *node)
    }

    /// Blocks of this node, lowest first.
    pub fn own_blocks(&self) -> impl Iterator<Item = (&IpNet, &Block)> {
        self.blocks.iter().filter(|(_, block)| self.is_self(&block.node))
    }

    /// This node's own addresses, one of each block, lowest first.
    pub fn own_mesh_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.own_blocks().filter_map(|(cidr, block)| block.mesh_address(cidr))
    }

    /// A node's address inside tunnels, one of each family at most: that of its lowest block.
    pub fn mesh_address_of(&self, node: &NodeName, v6: bool) -> Option<IpAddr> {
        self.blocks_of(node)
            .filter_map(|(cidr, block)| block.mesh_address(cidr))
            .find(|address| address.is_ipv6() == v6)
    }

    /// This node's address inside tunnels.
    pub fn own_mesh_address(&self, v6: bool) -> Option<IpAddr> {
        self.node.as_ref().and_then(|node| self.mesh_address_of(node, v6))
    }

    /// Whether another CNI plugin gives pods their addresses.
    pub fn is_chained(&self) -> bool {
        self.pools.values().any(|pool| pool.external)
    }

    /// Whether another CNI plugin leads packets to the addresses of a block.
    pub(crate) fn is_external(&self, block: &Block) -> bool {
        self.pools.get(&block.pool).is_some_and(|pool| pool.external)
    }

    /// This node's internal addresses.
    pub fn own_addresses(&self) -> &[IpAddr] {
        self.node.as_ref().and_then(|node| self.nodes.get(node)).map_or(&[], |node| &node.addresses)
    }
}

impl Block {
    /// The address of the block that is the node's own; none of a block that is a pod's.
    pub(crate) fn mesh_address(&self, cidr: &IpNet) -> Option<IpAddr> {
        self.pod.is_none().then(|| mesh_address(cidr))
    }
}

impl Peer {
    /// Its pods' addresses, in force or closed: traffic for them leaves by a tunnel or not at all.
    pub(crate) fn all_cidrs(&self) -> impl Iterator<Item = &IpNet> {
        self.remote_cidrs.union(&self.closed_cidrs)
    }

    /// Whether the node that is compiled for carries this peering's tunnels.
    pub(crate) fn is_gateway(&self, intent: &NodeIntent) -> bool {
        self.local_gateways.iter().any(|name| intent.is_self(name))
    }
}

pub(crate) fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}
