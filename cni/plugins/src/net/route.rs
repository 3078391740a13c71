// SPDX-License-Identifier: Apache-2.0
//! Routes of a namespace, as results name them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::result::Route;
use isthmus_netlink::Request;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};

use super::{Net, family};

/// The main table.
pub(crate) const MAIN: u32 = 254;

/// A route as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) dst: IpNet,
    pub(crate) gw: Option<IpAddr>,
    /// Index of the link that it leads to.
    pub(crate) link: Option<u32>,
    pub(crate) table: u32,
    pub(crate) priority: Option<u32>,
    /// Made by the kernel for an address.
    pub(crate) automatic: bool,
    /// For deleting it, or for putting it into another table.
    pub(crate) message: RouteMessage,
}

impl Seen {
    fn read(message: RouteMessage) -> Option<Self> {
        let v6 = message.header.address_family == family(true);
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let (mut dst, mut gw, mut link, mut priority) = (any, None, None, None);
        let mut table = u32::from(message.header.table);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => dst = ip(address)?,
                RouteAttribute::Gateway(address) => gw = ip(address),
                RouteAttribute::Oif(index) => link = Some(*index),
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(number) => priority = Some(*number),
                _ => {}
            }
        }
        let unicast = message.header.kind == RouteType::Unicast;
        let dst = IpNet::new(dst, message.header.destination_prefix_length).ok()?;
        let automatic = message.header.protocol == RouteProtocol::Kernel;
        unicast.then_some(Self { dst, gw, link, table, priority, automatic, message })
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

impl Net {
    /// Unicast routes of a family, of all tables.
    pub(crate) fn routes(&mut self, v6: bool) -> Result<Vec<Seen>, Error> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = family(v6);
        let all = self.dump(&RouteNetlinkMessage::GetRoute(ask))?;
        Ok(all
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => Seen::read(route),
                _ => None,
            })
            .collect())
    }

    /// Index of the link that the default route leads to, of either family.
    pub(crate) fn default_link(&mut self) -> Result<Option<u32>, Error> {
        for v6 in [false, true] {
            let all = self.routes(v6)?;
            let default = all.iter().find(|route| route.dst.prefix_len() == 0 && route.table == MAIN);
            if let Some(index) = default.and_then(|route| route.link) {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

/// A request for a route over a link. `source` is what the pod sends from.
fn message(index: u32, route: &Route, source: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let table = route.table.unwrap_or(MAIN);
    message.header = RouteHeader {
        address_family: family(matches!(route.dst, IpNet::V6(_))),
        destination_prefix_length: route.dst.prefix_len(),
        table: u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: RouteProtocol::Boot,
        scope: match (route.scope, route.gw) {
            (Some(scope), _) => RouteScope::from(u8::try_from(scope).unwrap_or(0)),
            (None, Some(_)) => RouteScope::Universe,
            (None, None) => RouteScope::Link,
        },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if route.dst.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(route.dst.network().into()));
    }
    attributes.extend(route.gw.map(|gw| RouteAttribute::Gateway(gw.into())));
    attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    if u8::try_from(table).is_err() {
        attributes.push(RouteAttribute::Table(table));
    }
    let metrics: Vec<RouteMetric> =
        route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    attributes.push(RouteAttribute::Oif(index));
    message
}

/// Adds a route over a link.
pub(crate) fn add(index: u32, route: &Route, source: Option<IpAddr>) -> Request {
    let message = message(index, route, source);
    Request::route(&RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Deletes a route.
pub(crate) fn delete(seen: &Seen) -> Request {
    Request::route(&RouteNetlinkMessage::DelRoute(seen.message.clone()), 0)
}

/// The same route in another table.
pub(crate) fn copy_to(seen: &Seen, table: u32) -> Request {
    let mut message = seen.message.clone();
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = RouteProtocol::Boot;
    message
        .attributes
        .retain(|attribute| !matches!(attribute, RouteAttribute::Table(_) | RouteAttribute::CacheInfo(_)));
    message.attributes.push(RouteAttribute::Table(table));
    Request::route(&RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE)
}

/// A plain route.
pub(crate) fn plain(dst: IpNet, gw: Option<IpAddr>) -> Route {
    Route {
        dst,
        gw,
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
        extra: serde_json::Map::new(),
    }
}
