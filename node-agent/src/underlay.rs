// SPDX-License-Identifier: Apache-2.0
//! The network between nodes, as `compile` wants it.

use std::collections::BTreeMap;
use std::fs;

use isthmus_compiler::Uplink;
use isthmus_kernel::Underlay;
use isthmus_model::ids::LinkName;
use isthmus_model::ownership::LINK_ALIAS;

/// Links that are not ours and have addresses.
pub fn uplinks(underlay: &Underlay) -> BTreeMap<LinkName, Uplink> {
    let mut uplinks: BTreeMap<LinkName, Uplink> = BTreeMap::new();
    for (link, net) in &underlay.addresses {
        let Some(facts) = underlay.links.get(link) else { continue };
        let ours = facts.alias.as_deref().is_some_and(|alias| alias.starts_with(LINK_ALIAS));
        if ours || !facts.up || link.as_str() == "lo" || is_link_local(&net.addr()) {
            continue;
        }
        let uplink = uplinks.entry(link.clone()).or_insert_with(|| Uplink {
            mtu: facts.mtu,
            strict_reverse_path: effective_reverse_path(link) == 1,
            router_advertisements: setting(&format!("ipv6/conf/{link}/accept_ra")) == 1,
            ..Uplink::default()
        });
        uplink.addresses.insert(*net);
    }
    uplinks
}

fn is_link_local(address: &std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(address) => address.is_link_local(),
        std::net::IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The kernel applies the larger of the setting for all links and the link's own.
fn effective_reverse_path(link: &LinkName) -> u8 {
    setting("ipv4/conf/all/rp_filter").max(setting(&format!("ipv4/conf/{link}/rp_filter")))
}

fn setting(path: &str) -> u8 {
    fs::read_to_string(format!("/proc/sys/net/{path}"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}
