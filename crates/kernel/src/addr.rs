// SPDX-License-Identifier: Apache-2.0
//! Addresses: ours carry our number in IFA_PROTO (Linux 5.18), on whatever link they are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_model::ids::LinkName;
use isthmus_model::ownership::ROUTE_PROTOCOL;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::table::{LinkNames, Put, Table, link_index};
use crate::wire::{Request, Wire};

pub(crate) enum Addresses {}

impl Table for Addresses {
    type Key = (LinkName, IpNet);
    type Value = ();

    fn name((link, net): &Self::Key) -> String {
        format!("address {net} on {link}")
    }

    fn observe(wire: &mut Wire, links: &LinkNames) -> io::Result<BTreeMap<Self::Key, ()>> {
        let all = dump(wire, links)?;
        Ok(all.into_iter().filter(|seen| seen.ours).map(|seen| ((seen.link, seen.net), ())).collect())
    }

    fn put((link, net): &Self::Key, (): &(), _: bool) -> Result<Put<()>, String> {
        let mut message = message(link_index(link)?, *net);
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(ROUTE_PROTOCOL)));
        Ok(Request::route(&RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE).into())
    }

    fn remove((link, net): &Self::Key, (): &()) -> Result<Request, String> {
        let mut message = message(link_index(link)?, *net);
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Flags(_)));
        Ok(Request::route(&RouteNetlinkMessage::DelAddress(message), 0))
    }
}

/// The wanted addresses as entries of the table.
pub(crate) fn wanted(addresses: &BTreeSet<(LinkName, IpNet)>) -> BTreeMap<(LinkName, IpNet), ()> {
    addresses.iter().map(|entry| (entry.clone(), ())).collect()
}

/// An address of the node.
pub(crate) struct AddressSeen {
    pub(crate) link: LinkName,
    pub(crate) net: IpNet,
    pub(crate) ours: bool,
}

/// Every address of the node, of both families.
pub(crate) fn dump(wire: &mut Wire, links: &LinkNames) -> io::Result<Vec<AddressSeen>> {
    let ask = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let messages = wire.dump_route(&ask)?;
    Ok(messages.iter().filter_map(|message| read(message, links)).collect())
}

/// An address message for a link. No duplicate address detection: what we assign is ours alone by plan.
pub(crate) fn message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
    message
}

fn read(message: &RouteNetlinkMessage, links: &LinkNames) -> Option<AddressSeen> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let (mut local, mut address, mut ours): (Option<IpAddr>, _, _) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Protocol(protocol) => ours = u8::from(*protocol) == ROUTE_PROTOCOL,
            _ => {}
        }
    }
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(AddressSeen { link: links.get(&message.header.index)?.clone(), net, ours })
}
