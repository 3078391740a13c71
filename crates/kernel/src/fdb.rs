// SPDX-License-Identifier: Apache-2.0
//! Forwarding entries of our VXLAN links: which outer address an inner Ethernet address is behind.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use isthmus_model::ids::LinkName;
use isthmus_model::kernel::MacAddress;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::table::{LinkNames, Put, Table, link_index};
use crate::wire::{Request, Wire};

pub(crate) enum Forwarding {}

impl Table for Forwarding {
    type Key = (LinkName, MacAddress);
    type Value = IpAddr;

    fn name((link, mac): &Self::Key) -> String {
        let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("forwarding entry {} on {link}", mac.join(":"))
    }

    /// `links` are our VXLAN links only.
    fn observe(wire: &mut Wire, links: &LinkNames) -> io::Result<BTreeMap<Self::Key, IpAddr>> {
        let mut entries = BTreeMap::new();
        if links.is_empty() {
            return Ok(entries);
        }
        let mut ask = NeighbourMessage::default();
        ask.header.family = AddressFamily::Bridge;
        for message in wire.dump_route(&RouteNetlinkMessage::GetNeighbour(ask))? {
            if let RouteNetlinkMessage::NewNeighbour(message) = message {
                entries.extend(read(&message, links));
            }
        }
        Ok(entries)
    }

    fn put((link, mac): &Self::Key, outer: &IpAddr, _: bool) -> Result<Put<IpAddr>, String> {
        let message = message(link_index(link)?, *mac, *outer);
        Ok(Request::route(&RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).into())
    }

    fn remove((link, mac): &Self::Key, outer: &IpAddr) -> Result<Request, String> {
        let message = message(link_index(link)?, *mac, *outer);
        Ok(Request::route(&RouteNetlinkMessage::DelNeighbour(message), 0))
    }
}

fn message(index: u32, mac: MacAddress, outer: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(outer.into()));
    message
}

fn read(message: &NeighbourMessage, links: &LinkNames) -> Option<((LinkName, MacAddress), IpAddr)> {
    let link = links.get(&message.header.ifindex)?.clone();
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut mac, mut outer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Destination(address) => outer = outer_address(address),
            _ => {}
        }
    }
    Some(((link, mac?), outer?))
}

/// The parser knows the family of the table (bridge), not that of the outer address.
fn outer_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}
