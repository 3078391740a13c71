// SPDX-License-Identifier: Apache-2.0
//! What changed in the kernel without us: a stream that says which table to look at, not what is in it.

use std::collections::VecDeque;
use std::io;

use isthmus_model::ids::LinkName;
use isthmus_model::ownership::{NFT_TABLE, ROUTE_PROTOCOL};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteHeader, RouteMessage};
use rtnetlink::packet_route::rule::RuleAttribute;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use crate::link;
use crate::wire::{Answer, attributes_of, parse_route, split};

const RECEIVE_LEN: usize = 64 * 1024;
/// Enough for bursts of thousands of changes between two turns of the event loop.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// An address of the node.
    Address,
    /// A link of ours, or of the underlay.
    Link,
    /// Our nftables table was taken away.
    Nft,
    /// More happened than could be told.
    Overrun,
    /// A route of ours, or a default route.
    Route,
    /// A policy rule of ours.
    Rule,
}

/// Sockets that are subscribed already, but not yet part of an event loop.
pub(crate) struct Subscription {
    route: Socket,
    nft: Socket,
}

impl Subscription {
    /// Subscribes in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut route = Socket::new(NETLINK_ROUTE)?;
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        route
            .bind(&SocketAddr::new(0, groups.iter().fold(0, |all, group| all | 1 << (*group as u32 - 1))))?;
        let mut nft = Socket::new(NETLINK_NETFILTER)?;
        const NFNLGRP_NFTABLES: u32 = 7;
        nft.bind_auto()?;
        nft.add_membership(NFNLGRP_NFTABLES)?;
        for socket in [&route, &nft] {
            socket.set_non_blocking(true)?;
            // Without the privilege to exceed the limit the default must do: an overrun is an event as well.
            let _ = nix::sys::socket::setsockopt(
                socket,
                nix::sys::socket::sockopt::RcvBufForce,
                &RECEIVE_BUFFER_BYTES,
            );
        }
        Ok(Self { route, nft })
    }
}

/// A stream of changes that this process did not make itself.
pub struct Events {
    route: AsyncFd<Socket>,
    nft: AsyncFd<Socket>,
    /// Changes by this port are our own.
    own_port: u32,
    buffer: Vec<u8>,
    waiting: VecDeque<Change>,
}

impl Events {
    pub(crate) fn new(subscription: Subscription, own_port: u32) -> io::Result<Self> {
        let Subscription { route, nft } = subscription;
        let (buffer, waiting) = (Vec::with_capacity(RECEIVE_LEN), VecDeque::new());
        Ok(Self { route: watch(route)?, nft: watch(nft)?, own_port, buffer, waiting })
    }

    /// Waits for the next change. Cancellation safe. An error means that the socket is of no more use.
    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Ok(change);
            }
            let (ready, nft) = tokio::select! {
                ready = self.route.readable() => (ready?, false),
                ready = self.nft.readable() => (ready?, true),
            };
            let mut ready = ready;
            let buffer = &mut self.buffer;
            buffer.clear();
            let received = ready.try_io(|socket| socket.get_ref().recv(&mut *buffer, libc::MSG_DONTWAIT));
            let changes: Vec<Change> = match received {
                Ok(Ok(_)) if nft => split(buffer).iter().filter_map(nft_change).collect(),
                Ok(Ok(_)) => split(buffer).iter().filter_map(|a| route_change(a, self.own_port)).collect(),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => vec![Change::Overrun],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => Vec::new(),
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => Vec::new(),
            };
            self.waiting.extend(changes);
            self.waiting.make_contiguous().sort();
            let mut once: Vec<Change> = self.waiting.drain(..).collect();
            once.dedup();
            self.waiting.extend(once);
        }
    }
}

#[expect(unsafe_code, reason = "tokio cannot see that a socket keeps its descriptor")]
fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor and neither replaces nor closes it while AsyncFd owns the socket.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

fn route_change(answer: &Answer, own_port: u32) -> Option<Change> {
    if answer.port == own_port {
        return None;
    }
    match parse_route(answer)? {
        RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
            address(&message)
        }
        RouteNetlinkMessage::NewLink(message) => new_link(message),
        RouteNetlinkMessage::DelLink(_) => Some(Change::Link),
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => route(&message),
        RouteNetlinkMessage::NewRule(message) | RouteNetlinkMessage::DelRule(message) => {
            let ours = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Protocol(protocol) if u8::from(*protocol) == ROUTE_PROTOCOL);
            message.attributes.iter().any(ours).then_some(Change::Rule)
        }
        _ => None,
    }
}

/// Link-local addresses come and go with every pod.
fn address(message: &AddressMessage) -> Option<Change> {
    let link_local = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(std::net::IpAddr::V6(address)) => address.is_unicast_link_local(),
        _ => false,
    };
    (!message.attributes.iter().any(link_local)).then_some(Change::Address)
}

/// A pod's link that comes up is what CNI ADD just made.
fn new_link(message: LinkMessage) -> Option<Change> {
    let (name, seen): (LinkName, _) = link::read(&RouteNetlinkMessage::NewLink(message))?;
    let pod = seen.is_pod_link() || name.as_str().starts_with(isthmus_model::ownership::POD_LINK_PREFIX);
    (!pod || !seen.up && seen.is_pod_link()).then_some(Change::Link)
}

fn route(message: &RouteMessage) -> Option<Change> {
    let ours = u8::from(message.header.protocol) == ROUTE_PROTOCOL;
    let default =
        message.header.destination_prefix_length == 0 && message.header.table == RouteHeader::RT_TABLE_MAIN;
    (ours || default).then_some(Change::Route)
}

/// NFT_MSG_DELTABLE of our table.
fn nft_change(answer: &Answer) -> Option<Change> {
    const DEL_TABLE: u8 = 2;
    let name = |value: &[u8]| value.strip_suffix(&[0]).unwrap_or(value) == NFT_TABLE.as_bytes();
    let ours = attributes_of(answer.body.get(4..)?).any(|(kind, value)| kind == 1 && name(value));
    (answer.kind as u8 == DEL_TABLE && ours).then_some(Change::Nft)
}
