// SPDX-License-Identifier: Apache-2.0
//! The entries of the kernel's tables that Isthmus writes: what `compile` wants and what drivers observe.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::dataplane::DataplaneConfig;
use crate::ids::LinkName;
use crate::nft::Ruleset;

/// Everything the node's kernel shall hold of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Links that the agent makes or adjusts (VXLAN device; MTU and state of tunnel devices). Pod links are made by CNI ADD.
    pub links: BTreeMap<LinkName, Link>,
    /// Addresses on links, host prefix each.
    pub addresses: BTreeSet<(LinkName, IpNet)>,
    /// Routes, by table, destination and metric.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Policy rules.
    pub rules: BTreeSet<Rule>,
    /// Permanent neighbour entries.
    pub neighbours: BTreeMap<(LinkName, IpAddr), MacAddress>,
    /// Forwarding entries of the VXLAN device: inner MAC to outer address.
    pub fdb: BTreeMap<(LinkName, MacAddress), IpAddr>,
    /// Our nftables table.
    pub nft: Ruleset,
    /// Kernel settings, path below /proc/sys with '/' to value.
    pub sysctls: BTreeMap<String, String>,
    /// What the data plane process shall run.
    pub dataplane: DataplaneConfig,
}

/// Six bytes of Ethernet address.
pub type MacAddress = [u8; 6];

/// A link of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// MTU in bytes.
    pub mtu: u32,
    /// Ethernet address, where it matters.
    pub mac: Option<MacAddress>,
}

/// The kinds of links of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Made by the data plane process; the agent sets MTU and brings it up.
    Tunnel,
    /// VXLAN with static forwarding entries.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// Outer source address.
        local: IpAddr,
    },
}

/// What identifies a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Routing table (254 = main).
    pub table: u32,
    /// Destination.
    pub destination: IpNet,
    /// Metric; the lowest wins.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Forward, or refuse.
    pub kind: RouteKind,
    /// Path MTU in bytes, where it differs from the link's.
    pub mtu: Option<u32>,
    /// Preferred source address for packets of the node itself.
    pub source: Option<IpAddr>,
}

/// What happens to a packet that matches a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Dropped without a word.
    Blackhole,
    /// Forwarded to one of the next hops, spread by flow hash. Sorted, never empty.
    Unicast(Vec<NextHop>),
    /// Refused with an ICMP error.
    Unreachable,
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Next router, or none where the destination is on the link.
    pub via: Option<IpAddr>,
    /// Link to send on.
    pub link: LinkName,
    /// The router is reachable on the link although no route says so (RTNH_F_ONLINK).
    pub onlink: bool,
}

/// A policy rule: packets use the table, all of them or those with a mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Priority; the lowest is asked first.
    pub priority: u32,
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// Mark and mask; a mask of 0 is every packet.
    pub mark: (u32, u32),
    /// Table to look up.
    pub table: u32,
}
