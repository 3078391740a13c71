// SPDX-License-Identifier: Apache-2.0
//! Address ranges that are never a peer's to announce.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

const fn v4(a: u8, b: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), prefix))
}

const fn v6(first: u16, sixth: u16, last: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, sixth, 0, last), prefix))
}

/// IANA special-purpose ranges (RFC 6890) that name a host or a link, or nobody.
const RESERVED: [IpNet; 10] = [
    v4(0, 0, 8),          // this network
    v4(127, 0, 8),        // loopback
    v4(169, 254, 16),     // link-local, metadata services
    v4(224, 0, 4),        // multicast
    v4(240, 0, 4),        // reserved, limited broadcast
    v6(0, 0, 0, 128),     // unspecified
    v6(0, 0, 1, 128),     // loopback
    v6(0, 0xffff, 0, 96), // IPv4-mapped
    v6(0xfe80, 0, 0, 10), // link-local
    v6(0xff00, 0, 0, 8),  // multicast
];

/// The reserved range that the CIDR overlaps, if any. `0.0.0.0/0` and `::/0` overlap.
pub(super) fn overlapping(cidr: &IpNet) -> Option<&'static IpNet> {
    RESERVED.iter().find(|range| super::overlap(range, cidr))
}
