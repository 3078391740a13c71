// SPDX-License-Identifier: Apache-2.0
//! The requests that make a pod's link.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use isthmus_model::ids::LinkName;
use isthmus_model::kernel::MacAddress;
use isthmus_model::ownership::{HOST_LINK_MAC, POD_GATEWAY_V4, POD_GATEWAY_V6};
use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{POD_ALIAS_MAX, PodLink};
use crate::link::POD_ALIAS;
use crate::wire::{Refusal, Request, Wire, parse_route};
use crate::{addr, neigh};

/// Both ends in one request, sent inside the pod's namespace.
pub(super) fn create(wanted: &PodLink, host_ns: BorrowedFd<'_>) -> Request {
    let mut peer = end(&wanted.host_link, HOST_LINK_MAC, wanted.mtu);
    peer.attributes.push(LinkAttribute::NetNsFd(host_ns.as_raw_fd()));
    let mut message = end(&wanted.ifname, pod_mac(wanted), wanted.mtu);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Request::route(&RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// The indices of a link's ends, each in its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) pod: u32,
    pub(super) host: u32,
}

/// Makes the pair and looks at what was made.
pub(super) fn create_and_see(
    wire: &mut Wire,
    create: &Request,
    ifname: &LinkName,
) -> io::Result<Result<Ends, Refusal>> {
    let answer = match wire.execute_and_ask(create, &get(named(ifname)))? {
        Ok(answer) => parse_route(&answer),
        Err(refusal) => return Ok(Err(refusal)),
    };
    let Some(RouteNetlinkMessage::NewLink(link)) = answer else { return Err(not_a_link()) };
    let pod = link.header.index;
    let other = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    });
    // Kernels before 5.10 leave out a number that is the same at both ends.
    Ok(Ok(Ends { pod, host: other.unwrap_or(pod) }))
}

/// The index of the socket's namespace's link of this name, if there is one.
pub(super) fn index(wire: &mut Wire, link: &LinkName) -> io::Result<Option<u32>> {
    match wire.ask(&get(named(link)))? {
        Ok(answer) => match parse_route(&answer) {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link.header.index)),
            _ => Err(not_a_link()),
        },
        Err(refusal) if refusal.is_absent() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// The question for a link, without its counters.
fn get(mut link: LinkMessage) -> Request {
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    Request::route(&RouteNetlinkMessage::GetLink(link), 0)
}

fn named(link: &LinkName) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(link.to_string()));
    message
}

fn not_a_link() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer about a link")
}

pub(super) fn delete(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request::route(&RouteNetlinkMessage::DelLink(message), 0)
}

/// Puts a link into a group of links.
pub(super) fn mark(index: u32, group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Group(group));
    set_link(message)
}

/// Deletes all links of a group at once.
pub(super) fn delete_group(group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    Request::route(&RouteNetlinkMessage::DelLink(message), 0)
}

/// The pod's Ethernet address: the wanted one, or one made from its first address (locally administered).
pub(super) fn pod_mac(wanted: &PodLink) -> MacAddress {
    let made = || {
        let tail: [u8; 4] = match wanted.addresses.first() {
            Some(IpAddr::V4(address)) => address.octets(),
            Some(IpAddr::V6(address)) => {
                let octets = address.octets();
                [octets[12], octets[13], octets[14], octets[15]]
            }
            None => [0; 4],
        };
        [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
    };
    wanted.mac.unwrap_or_else(made)
}

/// Whether the link can send: the kernel gives it a queue (any but `noop`) a moment after it gained its carrier.
pub(super) fn can_send(wire: &mut Wire, index: u32) -> io::Result<bool> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let Ok(answer) = wire.ask(&get(message))? else {
        return Ok(false);
    };
    let Some(RouteNetlinkMessage::NewLink(link)) = parse_route(&answer) else { return Ok(false) };
    Ok(link.attributes.iter().any(|it| matches!(it, LinkAttribute::Qdisc(queue) if queue != "noop")))
}

/// Alias and state in one, so that an interrupted call leaves no link in use that does not say whose it is. The pod's addresses are
/// permanent neighbours: no packet waits for ARP or NDP. The link-local address answers where one is asked for.
pub(super) fn host_end(wanted: &PodLink, index: u32) -> Vec<Request> {
    let mut set = LinkMessage::default();
    set.header.index = index;
    set.attributes.push(host_end_settings());
    let alias: String = wanted.alias.chars().take(POD_ALIAS_MAX).collect();
    let mut opened = up(index);
    opened.attributes.push(LinkAttribute::IfAlias(format!("{POD_ALIAS}{alias}")));
    let mut requests = vec![set_link(set), set_link(opened)];
    if wanted.addresses.iter().any(IpAddr::is_ipv6) {
        requests.push(address(index, POD_GATEWAY_V6.into()));
    }
    let mac = pod_mac(wanted);
    requests.extend(wanted.addresses.iter().map(|address| neighbour(index, *address, mac)));
    requests
}

/// No address but ours. The source of what comes from a pod is checked by our nftables table against the pod's addresses; the reverse
/// path filter would check it against routes, which may lead through a gateway.
fn host_end_settings() -> LinkAttribute {
    /// Numbers and values of linux/ip.h, IPV4_DEVCONF_*.
    const FORWARDING: (u16, u32) = (1, 1);
    const PROXY_ARP: (u16, u32) = (3, 0);
    const SEND_REDIRECTS: (u16, u32) = (6, 0);
    const RP_FILTER: (u16, u32) = (8, 0);
    /// IFLA_INET_CONF of linux/if_link.h. The library reads it, and writes no zeros into it.
    const INET_CONF: u16 = 1;
    let mut conf = Vec::new();
    for (number, value) in [FORWARDING, PROXY_ARP, SEND_REDIRECTS, RP_FILTER] {
        conf.extend(8_u16.to_ne_bytes());
        conf.extend(number.to_ne_bytes());
        conf.extend(value.to_ne_bytes());
    }
    LinkAttribute::AfSpecUnspec(vec![
        AfSpecUnspec::Inet(vec![AfSpecInet::Other(DefaultNla::new(INET_CONF, conf))]),
        AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]),
    ])
}

pub(super) fn pod_end(wanted: &PodLink, index: u32) -> Vec<Request> {
    const LOOPBACK: u32 = 1;
    let mut requests = vec![set_link(up(LOOPBACK)), set_link(up(index))];
    requests.extend(wanted.addresses.iter().map(|ip| address(index, *ip)));
    if wanted.addresses.iter().any(IpAddr::is_ipv4) {
        let gateway = POD_GATEWAY_V4.into();
        requests.push(neighbour(index, gateway, HOST_LINK_MAC));
        requests.push(route(index, Some(gateway), None));
        requests.push(route(index, None, Some(gateway)));
    }
    if wanted.addresses.iter().any(IpAddr::is_ipv6) {
        let gateway = POD_GATEWAY_V6.into();
        requests.push(neighbour(index, gateway, HOST_LINK_MAC));
        requests.push(route(index, None, Some(gateway)));
    }
    requests
}

/// Whether the calling thread's namespace has a default route of the family.
pub(super) fn has_default_route(wire: &mut Wire, v6: bool) -> io::Result<bool> {
    let mut ask = RouteMessage::default();
    ask.header.address_family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let messages = wire.dump_route(&RouteNetlinkMessage::GetRoute(ask))?;
    Ok(messages.iter().any(|message| {
        matches!(message, RouteNetlinkMessage::NewRoute(route) if route.header.destination_prefix_length == 0
            && route.header.kind == RouteType::Unicast)
    }))
}

/// An end with one queue each way, as the kernel would use. Left to itself it makes as many as there are processors and then waits, with its
/// lock of all links held, for a grace period to use one of them.
fn end(name: &LinkName, mac: MacAddress, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message.attributes.extend([LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)]);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    message
}

fn up(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn set_link(message: LinkMessage) -> Request {
    Request::route(&RouteNetlinkMessage::SetLink(message), 0)
}

fn address(index: u32, ip: IpAddr) -> Request {
    let message = addr::message(index, IpNet::from(ip));
    Request::route(&RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

fn neighbour(index: u32, ip: IpAddr, mac: MacAddress) -> Request {
    let message = neigh::message(index, ip, Some(mac));
    Request::route(&RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// A route of the pod: to one address on the link, or the default through a gateway.
fn route(index: u32, destination: Option<IpAddr>, via: Option<IpAddr>) -> Request {
    let ip = destination.or(via);
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if ip.is_some_and(|ip| ip.is_ipv6()) {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        },
        destination_prefix_length: destination.map_or(0, |ip| IpNet::from(ip).prefix_len()),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: if via.is_some() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes.extend(destination.map(|ip| RouteAttribute::Destination(ip.into())));
    message.attributes.extend(via.map(|ip| RouteAttribute::Gateway(ip.into())));
    message.attributes.push(RouteAttribute::Oif(index));
    Request::route(&RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(addresses: &[&str], mac: Option<MacAddress>) -> PodLink {
        PodLink {
            netns_path: "/proc/self/ns/net".into(),
            ifname: "eth0".parse().unwrap(),
            host_link: "ist0".parse().unwrap(),
            alias: "ns/pod".into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            mtu: 1400,
            mac,
        }
    }

    #[test]
    fn the_pods_ethernet_address_follows_from_its_first_address_unless_one_is_wanted() {
        assert_eq!(pod_mac(&wanted(&["10.1.2.3", "fd00::9"], None)), [0x0a, 0x58, 10, 1, 2, 3]);
        assert_eq!(pod_mac(&wanted(&["10.1.2.3"], Some([2; 6]))), [2; 6]);
    }

    #[test]
    fn a_pod_of_one_family_gets_no_route_of_the_other() {
        assert_eq!(pod_end(&wanted(&["10.1.2.3"], None), 2).len(), 6);
        assert_eq!(pod_end(&wanted(&["fd00::9"], None), 2).len(), 5);
    }
}
