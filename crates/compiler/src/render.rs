// SPDX-License-Identifier: Apache-2.0
//! What is desired as text, for people and for tests. One line an entry, as close to `ip(8)` and `nft(8)` as helps.

use std::fmt::Write;

use isthmus_model::kernel::{Desired, LinkKind, NextHop, RouteKind};
use isthmus_model::nft::Set;

/// The desired state as text, sorted.
pub fn render(desired: &Desired) -> String {
    let mut text = String::new();
    let mut line = |entry: String| {
        let _ = writeln!(text, "{entry}");
    };
    for (name, link) in &desired.links {
        let kind = match &link.kind {
            LinkKind::Tunnel => "tunnel".to_owned(),
            LinkKind::Vxlan { vni, port, local } => format!("vxlan id {vni} port {port} local {local}"),
        };
        line(format!("link {name} {kind} mtu {}", link.mtu));
    }
    desired.addresses.iter().for_each(|(link, net)| line(format!("address {net} dev {link}")));
    for (key, route) in &desired.routes {
        let to = match &route.kind {
            RouteKind::Blackhole => "blackhole".to_owned(),
            RouteKind::Unreachable => "unreachable".to_owned(),
            RouteKind::Unicast(hops) => hops.iter().map(hop).collect::<Vec<_>>().join(" | "),
        };
        let table =
            if key.table == crate::MAIN_TABLE { String::new() } else { format!(" table {}", key.table) };
        let metric = if key.metric == 0 { String::new() } else { format!(" metric {}", key.metric) };
        let mtu = route.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        let source = route.source.map(|source| format!(" src {source}")).unwrap_or_default();
        line(format!("route {} {to}{table}{metric}{mtu}{source}", key.destination));
    }
    for rule in &desired.rules {
        let family = if rule.v6 { "-6 " } else { "" };
        let (mark, mask) = rule.mark;
        let marked = if mask == 0 { String::new() } else { format!(" fwmark {mark:#x}/{mask:#x}") };
        line(format!("rule {family}{}{marked} lookup {}", rule.priority, rule.table));
    }
    desired
        .neighbours
        .iter()
        .for_each(|((link, address), mac)| line(format!("neighbour {address} {} dev {link}", mac_text(mac))));
    desired
        .fdb
        .iter()
        .for_each(|((link, mac), to)| line(format!("fdb {} to {to} dev {link}", mac_text(mac))));
    desired.nft.sets.iter().for_each(|(name, set)| line(format!("set {name} {{{}}}", elements(set))));
    desired.sysctls.iter().for_each(|(path, value)| line(format!("sysctl {path}={value}")));
    for (device, tunnel) in &desired.dataplane.tunnels {
        let endpoint = tunnel.endpoint.map_or_else(|| "none".to_owned(), |endpoint| endpoint.to_string());
        let lane = if tunnel.lane == 0 { String::new() } else { format!(" lane {}", tunnel.lane) };
        line(format!("tunnel {device} peer {} endpoint {endpoint}{lane}", tunnel.peer));
    }
    desired
        .dataplane
        .probes
        .iter()
        .for_each(|(name, probe)| line(format!("probe {name} to {}", probe.target)));
    text
}

fn hop(hop: &NextHop) -> String {
    let via = hop.via.map(|via| format!("via {via} ")).unwrap_or_default();
    format!("{via}dev {}{}", hop.link, if hop.onlink { " onlink" } else { "" })
}

fn elements(set: &Set) -> String {
    let all: Vec<String> = match set {
        Set::Links(links) => links.iter().map(ToString::to_string).collect(),
        Set::PrefixesV4(nets) | Set::PrefixesV6(nets) => nets.iter().map(ToString::to_string).collect(),
        Set::LinkSourcesV4(pairs) => {
            pairs.iter().map(|(link, address)| format!("{link} . {address}")).collect()
        }
        Set::LinkSourcesV6(pairs) => {
            pairs.iter().map(|(link, address)| format!("{link} . {address}")).collect()
        }
    };
    all.join(", ")
}

fn mac_text(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
