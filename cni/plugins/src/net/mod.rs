// SPDX-License-Identifier: Apache-2.0
//! The kernel's links, addresses, routes and rules, in the host's namespace or in a pod's.

pub(crate) mod conntrack;
pub(crate) mod link;
pub(crate) mod pod;
pub(crate) mod route;
pub(crate) mod rule;
pub(crate) mod shape;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use isthmus_cni_kit::error::{Error, code};
use isthmus_netlink::{Refusal, Request, Wire, netns, parse_route};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::failure;
use link::Link;

/// A link that cannot send after this will be able to later.
const CARRIER_PATIENCE: Duration = Duration::from_millis(500);
const CARRIER_PAUSE: Duration = Duration::from_micros(100);

/// The tables of one network namespace.
pub(crate) struct Net {
    wire: Wire,
}

/// Number of the address family.
pub(crate) fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn socket(error: &io::Error) -> Error {
    failure::io("netlink", error)
}

impl Net {
    /// The namespace of the calling thread.
    pub(crate) fn here() -> Result<Self, Error> {
        Ok(Self { wire: Wire::open_route().map_err(|error| socket(&error))? })
    }

    /// A pod's namespace. Code 3 if it is gone.
    pub(crate) fn inside(path: &Path) -> Result<Self, Error> {
        let opened = netns::run(path, Wire::open_route).and_then(|wire| wire);
        let wire = opened.map_err(|error| {
            Error::new(code::UNKNOWN_CONTAINER, format!("the network namespace {}: {error}", path.display()))
        })?;
        Ok(Self { wire })
    }

    /// Carries out requests in order, and stops at nothing: the first refusal is the error.
    pub(crate) fn execute(&mut self, step: &str, requests: &[Request]) -> Result<(), Error> {
        let results = self.wire.execute(requests).map_err(|error| socket(&error))?;
        results
            .into_iter()
            .collect::<Result<(), Refusal>>()
            .map_err(|refusal| failure::refused(step, &refusal))
    }

    /// Carries out one request, and leaves the refusal to the caller.
    pub(crate) fn try_one(&mut self, request: Request) -> Result<Result<(), Refusal>, Error> {
        self.wire.execute_one(request).map_err(|error| socket(&error))
    }

    /// Every entry of a table.
    pub(crate) fn dump(&mut self, ask: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.wire.dump_route(ask).map_err(|error| socket(&error))
    }

    fn ask_link(&mut self, message: LinkMessage) -> Result<Option<Link>, Error> {
        let request = Request::route(&RouteNetlinkMessage::GetLink(message), 0);
        match self.wire.ask(&request).map_err(|error| socket(&error))? {
            Ok(answer) => Ok(parse_route(&answer).as_ref().and_then(Link::read)),
            Err(refusal) if refusal.is_absent() => Ok(None),
            Err(refusal) => Err(failure::refused("show a link", &refusal)),
        }
    }

    /// The link of the name, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.ask_link(message)
    }

    /// The link of the index, if there is one.
    pub(crate) fn link_at(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.ask_link(message)
    }

    /// A link that the configuration names. Code 7 if it is not there.
    pub(crate) fn named(&mut self, name: &str, what: &str) -> Result<Link, Error> {
        self.link(name)?
            .ok_or_else(|| failure::invalid(format!("{what} {name:?}: there is no such interface")))
    }

    /// All links.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Error> {
        let all = self.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(all.iter().filter_map(Link::read).collect())
    }

    /// Makes a link. A name that is taken is code 103, a kind that the kernel lacks code 101.
    pub(crate) fn create(&mut self, message: LinkMessage) -> Result<(), Error> {
        let request = Request::route(&RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
        match self.try_one(request)? {
            Ok(()) => Ok(()),
            Err(refusal) if refusal.errno == libc::EEXIST => {
                Err(Error::new(failure::EXISTS, "there is an interface of this name already")
                    .with_details(refusal.to_string()))
            }
            Err(refusal) => Err(failure::refused("make the interface", &refusal)),
        }
    }

    /// Deletes a link. Says whether there was one.
    pub(crate) fn delete(&mut self, name: &str) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.try_one(Request::route(&RouteNetlinkMessage::DelLink(message), 0))? {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.is_absent() => Ok(false),
            Err(refusal) => Err(failure::refused(&format!("delete the interface {name}"), &refusal)),
        }
    }

    /// Addresses of a link, without those that the kernel made for itself.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>, Error> {
        let all = self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let of_link = all.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => {
                read_address(message)
            }
            _ => None,
        });
        Ok(of_link.filter(|net| !is_link_local(net.addr())).collect())
    }

    /// Waits until the link can send: the kernel gives it a queue a moment after it gained its carrier, and drops what is sent before.
    pub(crate) fn wait_until_it_sends(&mut self, index: u32) -> Result<(), Error> {
        let deadline = Instant::now() + CARRIER_PATIENCE;
        while self.link_at(index)?.is_some_and(|link| !link.sends) && Instant::now() < deadline {
            std::thread::park_timeout(CARRIER_PAUSE);
        }
        Ok(())
    }
}

fn read_address(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let other = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    IpNet::new(local.or(other)?, message.header.prefix_len).ok()
}

/// Of the kernel's own making.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// How an address is given to a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressOptions {
    /// The kernel looks for another owner first (RFC 4862, section 5.4), and the address cannot be used until then.
    pub(crate) detect_duplicates: bool,
    /// No route to the address's network comes with it.
    pub(crate) no_prefix_route: bool,
}

fn address_message(index: u32, net: IpNet, options: AddressOptions) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(matches!(net, IpNet::V6(_)));
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    if let IpNet::V4(net) = net
        && net.prefix_len() < 31
    {
        message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
    }
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Nodad, !options.detect_duplicates);
    flags.set(AddressFlags::Noprefixroute, options.no_prefix_route);
    message.attributes.push(AddressAttribute::Flags(flags));
    message
}

/// Gives a link an address.
pub(crate) fn add_address(index: u32, net: IpNet, options: AddressOptions) -> Request {
    let message = address_message(index, net, options);
    Request::route(&RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Takes an address from a link.
pub(crate) fn delete_address(index: u32, net: IpNet) -> Request {
    let mut message = address_message(index, net, AddressOptions::default());
    message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Flags(_)));
    Request::route(&RouteNetlinkMessage::DelAddress(message), 0)
}

/// A change of a link's properties.
pub(crate) fn change_link(index: u32, attributes: Vec<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    Request::route(&RouteNetlinkMessage::SetLink(message), 0)
}

/// Sets or clears flags of a link.
pub(crate) fn set_flags(index: u32, flags: LinkFlags, on: bool) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = if on { flags } else { LinkFlags::empty() };
    message.header.change_mask = flags;
    Request::route(&RouteNetlinkMessage::SetLink(message), 0)
}

/// Takes a link up.
pub(crate) fn up(index: u32) -> Request {
    set_flags(index, LinkFlags::Up, true)
}

/// Takes a link down.
pub(crate) fn down(index: u32) -> Request {
    set_flags(index, LinkFlags::Up, false)
}
