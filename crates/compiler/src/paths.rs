// SPDX-License-Identifier: Apache-2.0
//! How packets reach another node of this cluster: natively over a shared link, or in VXLAN.

use std::net::IpAddr;

use isthmus_model::ids::{LinkName, NodeName};
use isthmus_model::kernel::{Desired, Link, LinkKind, NextHop};
use isthmus_model::ownership::{VXLAN_LINK, VXLAN_PORT, VXLAN_VNI};

use crate::facts::NodeFacts;
use crate::intent::{Encapsulation, NodeIntent, is_v6};
use crate::names::vxlan_mac;

/// Bytes that VXLAN adds: outer header of the family, UDP, VXLAN, inner Ethernet (RFC 7348, section 5).
const VXLAN_OVERHEAD_V4: u32 = 20 + 8 + 8 + 14;
const VXLAN_OVERHEAD_V6: u32 = 40 + 8 + 8 + 14;

/// A way to another node.
pub(crate) struct Path {
    pub(crate) hop: NextHop,
    /// Largest packet in bytes, where it is less than the link's.
    pub(crate) mtu: Option<u32>,
}

/// The way to `node` for packets of a family, if there is one; what VXLAN needs for it is added to `desired`.
pub(crate) fn to_node(
    intent: &NodeIntent,
    facts: &NodeFacts,
    desired: &mut Desired,
    (node, v6): (&NodeName, bool),
    encapsulation: Encapsulation,
) -> Option<Path> {
    let native = || {
        let addresses = &intent.nodes.get(node)?.addresses;
        let address = *addresses.iter().find(|address| address.is_ipv6() == v6)?;
        let link = facts.on_link(address)?.clone();
        Some(Path { hop: NextHop { via: Some(address), link, onlink: false }, mtu: None })
    };
    match encapsulation {
        Encapsulation::Always => vxlan(intent, facts, desired, node, v6),
        Encapsulation::CrossSubnet => native().or_else(|| vxlan(intent, facts, desired, node, v6)),
        Encapsulation::Never => native(),
    }
}

/// The encapsulation that packets of this node's own pods use towards gateways.
pub(crate) fn own_encapsulation(intent: &NodeIntent, v6: bool) -> Encapsulation {
    let block = intent.own_blocks().find(|(cidr, _)| is_v6(cidr) == v6).map(|(_, block)| block);
    let pool = block.and_then(|block| intent.pools.get(&block.pool));
    pool.map_or(Encapsulation::CrossSubnet, |pool| pool.encapsulation)
}

fn vxlan(
    intent: &NodeIntent,
    facts: &NodeFacts,
    desired: &mut Desired,
    node: &NodeName,
    v6: bool,
) -> Option<Path> {
    let other = intent.nodes.get(node)?;
    let mac = other.vxlan_mac?;
    let (local, remote) = outer_addresses(intent.own_addresses(), &other.addresses)?;
    let inner = intent.mesh_address_of(node, v6)?;
    let link = vxlan_link();
    let overhead = if local.is_ipv6() { VXLAN_OVERHEAD_V6 } else { VXLAN_OVERHEAD_V4 };
    let mtu = facts.uplink_mtu(&[local]).saturating_sub(overhead).max(1280);
    let kind = LinkKind::Vxlan { vni: VXLAN_VNI, port: VXLAN_PORT, local };
    let own_mac = intent.node.as_ref().map(vxlan_mac);
    desired.links.insert(link.clone(), Link { kind, mtu, mac: own_mac });
    desired.neighbours.insert((link.clone(), inner), mac);
    desired.fdb.insert((link.clone(), mac), remote);
    Some(Path { hop: NextHop { via: Some(inner), link, onlink: true }, mtu: Some(mtu) })
}

/// IPv4 where both have it: one device has one outer family, and most underlays are dual-stack or IPv4.
fn outer_addresses(own: &[IpAddr], other: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
    let of = |list: &[IpAddr], v6: bool| list.iter().copied().find(|address| address.is_ipv6() == v6);
    let family = own.iter().any(IpAddr::is_ipv4);
    Some((of(own, !family)?, of(other, !family)?))
}

fn vxlan_link() -> LinkName {
    VXLAN_LINK.parse().expect("a constant of thirteen letters")
}
