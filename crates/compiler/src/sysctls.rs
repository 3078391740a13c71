// SPDX-License-Identifier: Apache-2.0
//! Kernel settings: forwarding, flow hashing, and reverse path filters that would drop peers' packets.

use isthmus_model::kernel::Desired;

use crate::facts::NodeFacts;

pub(crate) fn add(facts: &NodeFacts, desired: &mut Desired) {
    let mut set = |path: String, value: &str| desired.sysctls.insert(path, value.to_owned());
    set("net/ipv4/ip_forward".to_owned(), "1");
    set("net/ipv6/conf/all/forwarding".to_owned(), "1");
    // Spread flows, not destinations, over the gateways: hash addresses and ports.
    set("net/ipv4/fib_multipath_hash_policy".to_owned(), "1");
    set("net/ipv6/fib_multipath_hash_policy".to_owned(), "1");
    for link in desired.links.keys() {
        // The kernel takes the larger of this and `all`: 2 (loose) holds whatever `all` says, 0 would not.
        desired.sysctls.insert(format!("net/ipv4/conf/{link}/rp_filter"), "2".to_owned());
    }
    for (link, uplink) in &facts.uplinks {
        if uplink.strict_reverse_path {
            desired.sysctls.insert(format!("net/ipv4/conf/{link}/rp_filter"), "2".to_owned());
        }
        if uplink.router_advertisements {
            desired.sysctls.insert(format!("net/ipv6/conf/{link}/accept_ra"), "2".to_owned());
        }
    }
}
