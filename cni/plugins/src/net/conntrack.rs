// SPDX-License-Identifier: Apache-2.0
//! Connections of UDP that the kernel follows (linux/netfilter/nfnetlink_conntrack.h): where the first packet of one went, all others go,
//! whatever the rules say by then.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use isthmus_cni_kit::error::Error;
use isthmus_netlink::{Answer, Request, Wire, attributes_of};
use rtnetlink::packet_core::{NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::{Net, is_link_local, read_address, socket};
use crate::failure;

/// `NFNL_SUBSYS_CTNETLINK`, above the message's own number.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const NESTED: u16 = 1 << 15;
/// `struct nfgenmsg`.
const HEADER_LEN: usize = 4;
const UDP: u8 = 17;
/// With the next part of a table.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection: what its first packet was sent to, and what answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) to: SocketAddr,
    pub(crate) answers: SocketAddr,
    family: u8,
    /// Attributes that name it.
    name: Vec<u8>,
}

/// The end that a tuple names: of what is sent its destination, of answers their source.
fn end(tuple: &[u8], (v4, v6, port): (u16, u16, u16)) -> Option<SocketAddr> {
    let part = |bytes: &[u8], kind: u16| {
        attributes_of(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value.to_vec())
    };
    let (ip, protocol) = (part(tuple, 1)?, part(tuple, 2)?);
    if part(&protocol, 1)? != [UDP] {
        return None;
    }
    let port = u16::from_be_bytes(part(&protocol, port)?.try_into().ok()?);
    let four = part(&ip, v4).and_then(|value| <[u8; 4]>::try_from(value).ok()).map(IpAddr::from);
    let ip =
        four.or_else(|| part(&ip, v6).and_then(|value| <[u8; 16]>::try_from(value).ok()).map(IpAddr::from))?;
    Some(SocketAddr::new(ip, port))
}

fn append(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(((value.len() + 4) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

impl Connection {
    /// None of what is not of UDP.
    fn read(answer: &Answer) -> Option<Self> {
        let family = *answer.body.first()?;
        let attributes = answer.body.get(HEADER_LEN..)?;
        let part =
            |kind: u16| attributes_of(attributes).find(|(found, _)| *found == kind).map(|(_, value)| value);
        let (original, reply) = (part(ORIGINAL)?, part(REPLY)?);
        let mut name = Vec::new();
        append(&mut name, ORIGINAL | NESTED, original);
        // With its number: one that took its place stays.
        append(&mut name, ID, part(ID)?);
        if let Some(zone) = part(ZONE) {
            append(&mut name, ZONE, zone);
        }
        Some(Self { to: end(original, (2, 4, 3))?, answers: end(reply, (1, 3, 2))?, family, name })
    }

    fn delete(&self) -> Request {
        let body = [&[self.family, 0, 0, 0], self.name.as_slice()].concat();
        Request { kind: DELETE, flags: 0, body }
    }
}

/// Goes through a table as it comes: a node may have a million connections.
fn stream(wire: &mut Wire, ask: &Request, mut each: impl FnMut(&Answer)) -> io::Result<()> {
    let sequence = wire.advance(1);
    let mut datagram = Vec::new();
    ask.encode(sequence, NLM_F_DUMP, &mut datagram);
    wire.send(&datagram)?;
    loop {
        let answers = wire.receive(Instant::now() + PATIENCE)?;
        for answer in answers.iter().filter(|answer| answer.sequence == sequence) {
            match answer.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => answer.verdict()?,
                _ => each(answer),
            }
        }
    }
}

/// Ends the connections that the closure names, of both families. One that ended meanwhile is none.
pub(crate) fn end_where(stale: impl Fn(&Connection) -> bool) -> Result<(), Error> {
    let mut wire = Wire::open(NETLINK_NETFILTER).map_err(|error| socket(&error))?;
    // AF_UNSPEC: all families.
    let ask = Request { kind: GET, flags: 0, body: vec![0; HEADER_LEN] };
    let mut ends = Vec::new();
    let each = |answer: &Answer| ends.extend(Connection::read(answer).filter(&stale).map(|one| one.delete()));
    stream(&mut wire, &ask, each).map_err(|error| socket(&error))?;
    let results = wire.execute(&ends).map_err(|error| socket(&error))?;
    let refused = results.into_iter().filter_map(Result::err).find(|refusal| !refusal.is_absent());
    refused.map_or(Ok(()), |refusal| Err(failure::refused("end a connection", &refusal)))
}

impl Net {
    /// Addresses of all links.
    pub(crate) fn all_addresses(&mut self) -> Result<Vec<IpAddr>, Error> {
        let all = self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let addresses = all.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => Some(read_address(message)?.addr()),
            _ => None,
        });
        Ok(addresses.filter(|address| !is_link_local(*address)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), protocol: u8) -> Vec<u8> {
        let (mut ip, mut proto, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
        append(&mut ip, 1, &source);
        append(&mut ip, 2, &destination);
        append(&mut proto, 1, &[protocol]);
        append(&mut proto, 2, &ports.0.to_be_bytes());
        append(&mut proto, 3, &ports.1.to_be_bytes());
        append(&mut tuple, 1 | NESTED, &ip);
        append(&mut tuple, 2 | NESTED, &proto);
        tuple
    }

    fn shown(protocol: u8) -> Answer {
        let mut body = vec![2, 0, 0, 0];
        append(&mut body, ORIGINAL | NESTED, &tuple([192, 0, 2, 2], [192, 0, 2, 1], (4000, 53), protocol));
        append(&mut body, REPLY | NESTED, &tuple([10, 77, 0, 2], [192, 0, 2, 2], (5353, 4000), protocol));
        append(&mut body, ID, &[1, 2, 3, 4]);
        Answer { kind: SUBSYSTEM, flags: 0, sequence: 1, port: 0, body }
    }

    #[test]
    fn a_connection_is_read_and_named_as_the_kernel_shows_it() {
        let connection = Connection::read(&shown(UDP)).unwrap();
        assert_eq!(
            (connection.to.to_string().as_str(), connection.answers.to_string().as_str()),
            ("192.0.2.1:53", "10.77.0.2:5353")
        );
        let request = connection.delete();
        let named = attributes_of(&request.body[HEADER_LEN..]).map(|(kind, _)| kind).collect::<Vec<_>>();
        assert_eq!((request.body[0], named), (2, vec![ORIGINAL, ID]));
        assert_eq!(Connection::read(&shown(6)), None, "of TCP");
        let whole = shown(UDP).body;
        for length in 0..whole.len() {
            let cut = Answer { body: whole[..length].to_vec(), ..shown(UDP) };
            assert_eq!(Connection::read(&cut), None, "{length}");
        }
    }
}
