// SPDX-License-Identifier: Apache-2.0
//! A small nftables language: just the expressions that our one table needs. Rules are fixed; sets change.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::ids::LinkName;

/// The contents of our table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Named sets.
    pub sets: BTreeMap<String, Set>,
    /// Base chains in the order of their names.
    pub chains: BTreeMap<String, Chain>,
}

/// A named set; the variant fixes the key type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// Interface names.
    Links(BTreeSet<LinkName>),
    /// IPv4 prefixes (an interval set; overlapping prefixes are merged by the driver).
    PrefixesV4(BTreeSet<IpNet>),
    /// IPv6 prefixes.
    PrefixesV6(BTreeSet<IpNet>),
    /// Interface name and IPv4 source that belong together.
    LinkSourcesV4(BTreeSet<(LinkName, std::net::Ipv4Addr)>),
    /// Interface name and IPv6 source that belong together.
    LinkSourcesV6(BTreeSet<(LinkName, std::net::Ipv6Addr)>),
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Where it hangs.
    pub hook: Hook,
    /// Priority within the hook.
    pub priority: i32,
    /// Chain type.
    pub kind: ChainKind,
    /// Rules, first to last.
    pub rules: Vec<Rule>,
}

/// Netfilter hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets to be routed elsewhere.
    Forward,
    /// Packets for this node.
    Input,
    /// Packets from this node.
    Output,
    /// After routing.
    Postrouting,
    /// Before routing.
    Prerouting,
}

/// Chain types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Accept and drop, mangle marks.
    Filter,
    /// Address translation.
    Nat,
    /// Re-routes locally generated packets when their mark changes.
    Route,
}

/// A rule: all matches hold, then the statements run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, all of them.
    pub matches: Vec<Match>,
    /// What to do.
    pub then: Statement,
    /// Said to the reader of `nft list ruleset`.
    pub comment: String,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The input interface's name is (not) in a set.
    InLinkSet { set: String, negate: bool },
    /// The input interface's name begins with (or is) this.
    InLinkPrefix { prefix: String, negate: bool },
    /// The output interface's name is (not) in a set.
    OutLinkSet { set: String, negate: bool },
    /// The output interface's name begins with (or is) this.
    OutLinkPrefix { prefix: String, negate: bool },
    /// IPv4 or IPv6 packets only.
    Family { v6: bool },
    /// The source address is (not) in a prefix set of the family.
    Source { v6: bool, set: String, negate: bool },
    /// The destination address is (not) in a prefix set of the family.
    Destination { v6: bool, set: String, negate: bool },
    /// Input interface and source address are (not) a pair of the set.
    LinkSource { v6: bool, set: String, negate: bool },
    /// Transport protocol (6 TCP, 17 UDP, 58 ICMPv6).
    Protocol(u8),
    /// Destination port of TCP or UDP, first to last; give the protocol first.
    DestinationPorts(u16, u16),
    /// First SYN of a TCP connection: SYN set, RST clear.
    TcpSyn,
    /// The bits of the packet mark in the mask have this value.
    Mark { value: u32, mask: u32 },
    /// The next router of the packet's route, or its destination where the route has none of the family, is (not) in a
    /// prefix set of the family (`rt ip nexthop`). After the routing decision only.
    NextHop { v6: bool, set: String, negate: bool },
    /// Destination is one of the node's own addresses (`fib daddr type local`), or not.
    LocalDestination { negate: bool },
}

/// What a matching rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Ends the chain, passes the packet.
    Accept,
    /// TCP maximum segment size := path MTU.
    ClampMss,
    /// Counts and drops.
    Drop,
    /// Source := what it is: no other table translates it any more.
    KeepSource { v6: bool },
    /// Source := address of the outgoing interface.
    Masquerade,
    /// No connection tracking for this packet.
    NoTrack,
    /// Mark := (mark & !mask) | value.
    SetMark { value: u32, mask: u32 },
    /// Source := this address.
    SourceNat(std::net::IpAddr),
}
