// SPDX-License-Identifier: Apache-2.0
//! Permanent neighbours on our VXLAN links. Those of pod links live and die with the link.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use isthmus_model::ids::LinkName;
use isthmus_model::kernel::MacAddress;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::table::{LinkNames, Put, Table, link_index};
use crate::wire::{Request, Wire};

pub(crate) enum Neighbours {}

impl Table for Neighbours {
    type Key = (LinkName, IpAddr);
    type Value = MacAddress;

    fn name((link, address): &Self::Key) -> String {
        format!("neighbour {address} on {link}")
    }

    /// `links` are our VXLAN links only.
    fn observe(wire: &mut Wire, links: &LinkNames) -> io::Result<BTreeMap<Self::Key, MacAddress>> {
        let mut neighbours = BTreeMap::new();
        if links.is_empty() {
            return Ok(neighbours);
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = NeighbourMessage::default();
            ask.header.family = family;
            for message in wire.dump_route(&RouteNetlinkMessage::GetNeighbour(ask))? {
                if let RouteNetlinkMessage::NewNeighbour(message) = message {
                    neighbours.extend(read(&message, links));
                }
            }
        }
        Ok(neighbours)
    }

    fn put((link, address): &Self::Key, mac: &MacAddress, _: bool) -> Result<Put<MacAddress>, String> {
        let message = message(link_index(link)?, *address, Some(*mac));
        Ok(Request::route(&RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).into())
    }

    fn remove((link, address): &Self::Key, _: &MacAddress) -> Result<Request, String> {
        Ok(Request::route(&RouteNetlinkMessage::DelNeighbour(message(link_index(link)?, *address, None)), 0))
    }
}

/// A permanent neighbour entry.
pub(crate) fn message(index: u32, address: IpAddr, mac: Option<MacAddress>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
    message
}

fn read(message: &NeighbourMessage, links: &LinkNames) -> Option<((LinkName, IpAddr), MacAddress)> {
    let link = links.get(&message.header.ifindex)?.clone();
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(((link, address?), mac?))
}
