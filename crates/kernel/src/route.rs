// SPDX-License-Identifier: Apache-2.0
//! Routes: ours are those with our protocol number, in every table.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use isthmus_model::ids::LinkName;
use isthmus_model::kernel::{NextHop, Route, RouteKey, RouteKind};
use isthmus_model::ownership::{ROUTE_PROTOCOL, TUNNEL_LINK_PREFIX};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::table::{LinkNames, Put, Table, link_index};
use crate::wire::{Request, Wire};

/// The kernel's metric for IPv6 routes that ask for none (IP6_RT_PRIO_USER).
const IPV6_METRIC_DEFAULT: u32 = 1024;
/// Stands for "no router" in IPv6 routes over tunnel devices.
const TUNNEL_ROUTER: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

pub(crate) enum Routes {}

impl Table for Routes {
    type Key = RouteKey;
    type Value = Route;

    fn name(key: &RouteKey) -> String {
        format!("route {} table {} metric {}", key.destination, key.table, key.metric)
    }

    fn observe(wire: &mut Wire, links: &LinkNames) -> io::Result<BTreeMap<RouteKey, Route>> {
        let mut routes = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            // With strict checking the kernel filters by protocol: foreign tables of a million routes cost nothing.
            ask.header.protocol = ROUTE_PROTOCOL.into();
            for message in wire.dump_route(&RouteNetlinkMessage::GetRoute(ask))? {
                if let RouteNetlinkMessage::NewRoute(message) = message
                    && u8::from(message.header.protocol) == ROUTE_PROTOCOL
                    && let Some((key, route)) = read(&message, links)
                {
                    merge(&mut routes, key, route);
                }
            }
        }
        Ok(routes)
    }

    fn put(key: &RouteKey, route: &Route, exists: bool) -> Result<Put<Route>, String> {
        let mut message = addressed(key);
        message.header.kind = kind_of(&route.kind);
        message.header.scope = scope_of(key, &route.kind);
        message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
        message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        let mut shortfall = None;
        if let RouteKind::Unicast(hops) = &route.kind {
            let (found, missing) = resolve(hops)?;
            if let Some(why) = missing {
                let hops = found.iter().map(|(hop, _)| (*hop).clone()).collect();
                shortfall = Some((Route { kind: RouteKind::Unicast(hops), ..route.clone() }, why));
            }
            lead_to(&mut message, key, &found);
        }
        // A route of ours is replaced; a foreign one of the same key is left alone and named in the error.
        let flags = NLM_F_CREATE | if exists { NLM_F_REPLACE } else { NLM_F_EXCL };
        Ok(Put { request: Request::route(&RouteNetlinkMessage::NewRoute(message), flags), shortfall })
    }

    fn remove(key: &RouteKey, route: &Route) -> Result<Request, String> {
        let mut message = addressed(key);
        message.header.kind = kind_of(&route.kind);
        message.header.scope = RouteScope::NoWhere;
        Ok(Request::route(&RouteNetlinkMessage::DelRoute(message), 0))
    }
}

/// The wanted routes with the metric that the kernel will show.
pub(crate) fn canonical(wanted: &BTreeMap<RouteKey, Route>) -> BTreeMap<RouteKey, Route> {
    let metric = |key: &RouteKey| match (key.destination, key.metric) {
        (IpNet::V6(_), 0) => IPV6_METRIC_DEFAULT,
        (_, metric) => metric,
    };
    let sorted = |route: &Route| match &route.kind {
        RouteKind::Unicast(hops) => {
            let mut hops = hops.clone();
            hops.sort();
            Route { kind: RouteKind::Unicast(hops), ..route.clone() }
        }
        _ => route.clone(),
    };
    wanted
        .iter()
        .map(|(key, route)| (RouteKey { metric: metric(key), ..key.clone() }, sorted(route)))
        .collect()
}

/// A message with what identifies the route.
fn addressed(key: &RouteKey) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family_of(&key.destination),
        destination_prefix_length: key.destination.prefix_len(),
        table: u8::try_from(key.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: ROUTE_PROTOCOL.into(),
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Table(key.table));
    message.attributes.push(RouteAttribute::Destination(key.destination.network().into()));
    message.attributes.push(RouteAttribute::Priority(key.metric));
    message
}

/// The hops whose links exist with their indices, and what is missing. No hop at all is an error.
#[expect(clippy::type_complexity, reason = "two lists of one caller")]
fn resolve(hops: &[NextHop]) -> Result<(Vec<(&NextHop, u32)>, Option<String>), String> {
    let (mut found, mut missing) = (Vec::new(), None);
    for hop in hops {
        match link_index(&hop.link) {
            Ok(index) => found.push((hop, index)),
            Err(error) => missing = Some(error),
        }
    }
    match (found.is_empty(), missing) {
        (true, missing) => Err(missing.unwrap_or_else(|| "the route has no next hop".into())),
        (false, missing) => Ok((found, missing)),
    }
}

fn lead_to(message: &mut RouteMessage, key: &RouteKey, hops: &[(&NextHop, u32)]) {
    if let [(hop, index)] = hops {
        message.attributes.push(RouteAttribute::Oif(*index));
        message.attributes.extend(gateway(key, hop));
        if hop.onlink {
            message.header.flags |= RouteFlags::Onlink;
        }
        return;
    }
    let many = hops.iter().map(|(hop, index)| {
        let mut next = RouteNextHop::default();
        next.interface_index = *index;
        next.attributes.extend(gateway(key, hop));
        if hop.onlink {
            next.flags |= RouteNextHopFlags::Onlink;
        }
        next
    });
    message.attributes.push(RouteAttribute::MultiPath(many.collect()));
}

/// RTA_GATEWAY, or RTA_VIA where the router has an address of the other family (RFC 5549).
fn gateway(key: &RouteKey, hop: &NextHop) -> Option<RouteAttribute> {
    match (key.destination, hop.via) {
        (IpNet::V4(_), Some(via @ IpAddr::V6(_))) => Some(RouteAttribute::Via(RouteVia::from(via))),
        (_, Some(via)) => Some(RouteAttribute::Gateway(via.into())),
        // The kernel spreads IPv6 flows over hops with a router only. A tunnel device asks for no neighbour, so any
        // router will do; one that only we use is read back as none.
        (IpNet::V6(_), None) if is_tunnel(&hop.link) => Some(RouteAttribute::Gateway(TUNNEL_ROUTER.into())),
        (_, None) => None,
    }
}

fn is_tunnel(link: &LinkName) -> bool {
    link.as_str().starts_with(TUNNEL_LINK_PREFIX)
}

fn kind_of(kind: &RouteKind) -> RouteType {
    match kind {
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unicast(_) => RouteType::Unicast,
        RouteKind::Unreachable => RouteType::Unreachable,
    }
}

/// IPv4 refuses a next hop whose route has not a narrower scope than the route that uses it.
fn scope_of(key: &RouteKey, kind: &RouteKind) -> RouteScope {
    match (key.destination, kind) {
        (IpNet::V4(_), RouteKind::Unicast(hops)) if hops.iter().all(|hop| hop.via.is_none()) => {
            RouteScope::Link
        }
        _ => RouteScope::Universe,
    }
}

fn family_of(net: &IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

/// A message as an entry, if it is of a form that we make. Others with our protocol number cannot be ours.
fn read(message: &RouteMessage, links: &LinkNames) -> Option<(RouteKey, Route)> {
    let v6 = message.header.address_family == AddressFamily::Inet6;
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let (mut destination, mut table, mut metric) = (any, u32::from(message.header.table), 0);
    let (mut mtu, mut source, mut single, mut hops) = (None, None, NextHopRead::default(), Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => mtu = mtu_of(metrics),
            RouteAttribute::MultiPath(many) => {
                hops.extend(many.iter().filter_map(|hop| read_hop(hop, links)))
            }
            other => single.take(other),
        }
    }
    if hops.is_empty() {
        single.onlink = message.header.flags.contains(RouteFlags::Onlink);
        single.dead = message.header.flags.contains(RouteFlags::Dead);
        hops.extend(single.finish(links));
    }
    hops.sort();
    let kind = match message.header.kind {
        RouteType::Unicast => RouteKind::Unicast(hops),
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        _ => return None,
    };
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some((RouteKey { table, destination, metric }, Route { kind, mtu, source }))
}

/// Several IPv6 routes of one key are what the kernel makes of hops that it does not see as one multipath route.
fn merge(routes: &mut BTreeMap<RouteKey, Route>, key: RouteKey, route: Route) {
    match (routes.get_mut(&key).map(|known| &mut known.kind), route.kind) {
        (Some(RouteKind::Unicast(known)), RouteKind::Unicast(more)) => {
            known.extend(more);
            known.sort();
        }
        (_, kind) => drop(routes.insert(key, Route { kind, ..route })),
    }
}

#[derive(Default)]
struct NextHopRead {
    index: Option<u32>,
    via: Option<IpAddr>,
    onlink: bool,
    dead: bool,
}

impl NextHopRead {
    fn take(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(index) => self.index = Some(*index),
            RouteAttribute::Gateway(address) => self.via = ip(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => self.via = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet(address)) => self.via = Some((*address).into()),
            _ => {}
        }
    }

    /// A hop over a link that is gone or down counts as absent, so that it is put again.
    fn finish(self, links: &LinkNames) -> Option<NextHop> {
        let link = links.get(&self.index?)?.clone();
        let via = self.via.filter(|via| !(is_tunnel(&link) && *via == TUNNEL_ROUTER));
        (!self.dead).then_some(NextHop { via, link, onlink: self.onlink })
    }
}

fn read_hop(hop: &RouteNextHop, links: &LinkNames) -> Option<NextHop> {
    let mut read = NextHopRead {
        index: Some(hop.interface_index),
        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
        dead: hop.flags.contains(RouteNextHopFlags::Dead),
        via: None,
    };
    hop.attributes.iter().for_each(|attribute| read.take(attribute));
    read.finish(links)
}

fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(link: &str, via: Option<&str>) -> NextHop {
        NextHop { via: via.map(|v| v.parse().unwrap()), link: link.parse().unwrap(), onlink: false }
    }

    fn key(destination: &str, table: u32, metric: u32) -> RouteKey {
        RouteKey { table, destination: destination.parse().unwrap(), metric }
    }

    #[test]
    fn an_ipv6_route_without_metric_is_wanted_as_the_kernel_shows_it() {
        let route = Route { kind: RouteKind::Unreachable, mtu: None, source: None };
        let wanted =
            BTreeMap::from([(key("fd00::/64", 254, 0), route.clone()), (key("10.0.0.0/8", 254, 0), route)]);
        let metrics: Vec<u32> = canonical(&wanted).keys().map(|key| key.metric).collect();
        assert_eq!(metrics, [0, 1024]);
    }

    #[test]
    fn several_messages_of_one_key_are_one_route_with_several_hops() {
        let one = |link| Route { kind: RouteKind::Unicast(vec![hop(link, None)]), mtu: None, source: None };
        let mut routes = BTreeMap::new();
        merge(&mut routes, key("fd00::/64", 254, 1024), one("b"));
        merge(&mut routes, key("fd00::/64", 254, 1024), one("a"));
        let wanted = RouteKind::Unicast(vec![hop("a", None), hop("b", None)]);
        assert_eq!(routes[&key("fd00::/64", 254, 1024)].kind, wanted);
    }

    #[test]
    fn a_message_that_was_made_is_read_back_as_the_same_route() {
        let links = LinkNames::from([(4, "a".parse().unwrap()), (5, "b".parse().unwrap())]);
        let hops = [hop("a", Some("10.1.0.1")), hop("b", Some("10.2.0.1"))];
        let indexed: Vec<(&NextHop, u32)> = hops.iter().zip([4, 5]).collect();
        for count in 1..=2 {
            let key = key("10.9.0.0/16", 7300, 5);
            let mut message = addressed(&key);
            message.header.kind = RouteType::Unicast;
            lead_to(&mut message, &key, &indexed[..count]);
            let (read_key, route) = read(&message, &links).unwrap();
            assert_eq!(read_key, key);
            assert_eq!(route.kind, RouteKind::Unicast(hops[..count].to_vec()));
        }
    }

    #[test]
    fn a_dead_hop_counts_as_absent() {
        let links = LinkNames::from([(4, "a".parse().unwrap())]);
        let mut next = RouteNextHop::default();
        next.interface_index = 4;
        assert!(read_hop(&next, &links).is_some());
        next.flags |= RouteNextHopFlags::Dead;
        assert!(read_hop(&next, &links).is_none());
    }
}
