// SPDX-License-Identifier: Apache-2.0
//! What on a node belongs to Isthmus, in one table: what is ours and not wanted is swept, what is not ours is never touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// `rtm_protocol` of every route of ours (a free value of the kernel's registry, `rt_protos`).
pub const ROUTE_PROTOCOL: u8 = 73;
/// Priorities of our policy rules (`ip rule`), inclusive.
pub const RULE_PRIORITIES: std::ops::RangeInclusive<u32> = 7300..=7399;
/// Routing tables of ours, inclusive: one for each egress gateway in use on the node.
pub const ROUTE_TABLES: std::ops::RangeInclusive<u32> = 7300..=7363;
/// Routing table with a second copy of every route of ours that leads somewhere, and the priority of the rule that has it
/// asked before the main table: whoever flushes one of the two stops nothing.
pub const COPY_TABLE: u32 = 7399;
/// Bits of the packet mark that are ours (kube-proxy uses 0x4000 and 0x8000).
pub const MARK_MASK: u32 = 0xff00_0000;
/// Mark of the first egress route; the n-th is `EGRESS_MARK_FIRST + (n << 24)`.
pub const EGRESS_MARK_FIRST: u32 = 0x8000_0000;
/// Our only nftables table, family inet.
pub const NFT_TABLE: &str = "isthmus";
/// The interface alias of every link of ours begins with this.
pub const LINK_ALIAS: &str = "isthmus:";
/// Host ends of pods' veth pairs: this and 12 hex digits.
pub const POD_LINK_PREFIX: &str = "ist";
/// Tunnel devices: this and 12 hex digits.
pub const TUNNEL_LINK_PREFIX: &str = "iw-";
/// The VXLAN device for nodes behind another link. Never beginning like a pod's link: what comes from those is checked
/// against the pod's addresses.
pub const VXLAN_LINK: &str = "vxlan-isthmus";
/// VXLAN network identifier.
pub const VXLAN_VNI: u32 = 7300;
/// VXLAN port (RFC 7348).
pub const VXLAN_PORT: u16 = 4789;
/// UDP port of the WireGuard engine on gateway nodes.
pub const WIREGUARD_PORT: u16 = 51820;
/// How many ports from there on are ours where the kernel encrypts: each device then has one, and none is [`PROBE_PORT`]. Lanes of this
/// process have the first of them ([`lane_port`]).
pub const WIREGUARD_PORTS: u16 = 256;
/// How many lanes a gateway has at most. Each is a thread, and a tunnel to each gateway of a peer.
pub const LANES_MAX: u8 = 8;
/// UDP port of the probe responder, on node addresses and on mesh addresses.
pub const PROBE_PORT: u16 = 51821;
/// TCP port on which the leading operator serves peers.
pub const PEERING_PORT: u16 = 7443;
/// NodePort through which peers reach [`PEERING_PORT`] by default.
pub const PEERING_NODE_PORT: u16 = 30743;
/// Pods' IPv4 next hop: link-local, answered by a permanent neighbour entry, never by ARP.
pub const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Pods' IPv6 next hop.
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Ethernet address of the host end of every pod's veth pair.
pub const HOST_LINK_MAC: [u8; 6] = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee];
/// Unix socket of the agent for the CNI plugin.
pub const CNI_SOCKET: &str = "/run/isthmus/cni.sock";
/// Unix socket of the data plane process for the agent.
pub const DATAPLANE_SOCKET: &str = "/run/isthmus/dataplane.sock";
/// Journal, keys and snapshots of a node.
pub const STATE_DIR: &str = "/var/lib/isthmus";
/// Where a container without privileges finds the node's `/proc/sys` writable: the volume of that path. Elsewhere it is
/// `/proc/sys` itself.
pub const HOST_PROC_SYS: &str = "/host/proc/sys";
/// Namespace of Isthmus' own objects.
pub const SYSTEM_NAMESPACE: &str = "isthmus-system";

/// The UDP port of a lane: the first has `first`, and the others have those after it, but [`PROBE_PORT`].
pub fn lane_port(first: u16, lane: u8) -> u16 {
    let port = first.saturating_add(u16::from(lane));
    let beyond = lane > 0 && (first..=port).contains(&PROBE_PORT) && first != PROBE_PORT;
    if beyond { port.saturating_add(1) } else { port }
}

/// The address of a block that the node keeps for itself: probes inside tunnels use it. Never given to a pod.
pub fn mesh_address(block: &IpNet) -> IpAddr {
    block.network()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_port_lies_among_those_of_the_tunnels() {
        let tunnels = WIREGUARD_PORT..WIREGUARD_PORT + WIREGUARD_PORTS;
        assert!(tunnels.contains(&PROBE_PORT), "pods would not be kept off it by the same rule");
    }

    #[test]
    fn each_lane_has_a_port_of_its_own_among_those_of_the_tunnels_and_none_has_the_probes() {
        let ports: Vec<u16> = (0..LANES_MAX).map(|lane| lane_port(WIREGUARD_PORT, lane)).collect();
        assert_eq!(ports, [51820, 51822, 51823, 51824, 51825, 51826, 51827, 51828]);
        assert_eq!([0, 1].map(|lane| lane_port(4000, lane)), [4000, 4001]);
        assert!(
            !ports.contains(&PROBE_PORT) && ports.iter().all(|port| *port < WIREGUARD_PORT + WIREGUARD_PORTS)
        );
    }

    #[test]
    fn no_other_link_of_ours_is_taken_for_a_pods() {
        for name in [VXLAN_LINK, TUNNEL_LINK_PREFIX] {
            assert!(!name.starts_with(POD_LINK_PREFIX), "{name} begins with {POD_LINK_PREFIX}");
        }
    }
}
