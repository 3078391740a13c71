// SPDX-License-Identifier: Apache-2.0
//! Messages of DHCP (RFC 2131, section 2), and the Ethernet frames that carry them while the client has no address.
//!
//! Options are byte strings here: what they say is read where it is needed, so that one that nobody asked for cannot spoil a message.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;

/// Codes of options (RFC 2132, and RFC 3442 for the last).
pub(crate) mod code {
    pub(crate) const SUBNET_MASK: u8 = 1;
    pub(crate) const ROUTER: u8 = 3;
    pub(crate) const STATIC_ROUTES: u8 = 33;
    pub(crate) const REQUESTED_ADDRESS: u8 = 50;
    pub(crate) const LEASE_SECONDS: u8 = 51;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const KIND: u8 = 53;
    pub(crate) const SERVER: u8 = 54;
    pub(crate) const WANTED: u8 = 55;
    pub(crate) const TEXT: u8 = 56;
    pub(crate) const MAX_BYTES: u8 = 57;
    pub(crate) const RENEW_SECONDS: u8 = 58;
    pub(crate) const REBIND_SECONDS: u8 = 59;
    pub(crate) const CLIENT_ID: u8 = 61;
    pub(crate) const CLASSLESS_ROUTES: u8 = 121;
}

const PAD: u8 = 0;
const END: u8 = 255;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Where the fields `sname`, `file` and the options begin.
const SNAME: usize = 44;
const FILE: usize = 108;
const OPTIONS: usize = 240;
/// Relays of old drop what is shorter (RFC 1542, section 2.1).
const SHORTEST: usize = 300;

/// What a message is for (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Ack = 5,
    Nak = 6,
    Release = 7,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        let all = [Self::Discover, Self::Offer, Self::Request, Self::Ack, Self::Nak, Self::Release];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Options by code.
pub(crate) type Options = BTreeMap<u8, Vec<u8>>;

/// A message of either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) reply: bool,
    pub(crate) xid: u32,
    /// Answers shall go to everybody.
    pub(crate) broadcast: bool,
    /// The client's address that it has already.
    pub(crate) ciaddr: Ipv4Addr,
    /// The address that the client gets.
    pub(crate) yiaddr: Ipv4Addr,
    pub(crate) mac: Mac,
    /// Without option 53.
    pub(crate) options: Options,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Message {
    /// The message as the payload of a UDP datagram.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![if self.reply { 2 } else { 1 }, 1, 6, 0];
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend([0, 0, if self.broadcast { 0x80 } else { 0 }, 0]);
        bytes.extend(self.ciaddr.octets());
        bytes.extend(self.yiaddr.octets());
        // Those of the next server and of the relay.
        bytes.extend([0; 8]);
        bytes.extend(self.mac.0);
        bytes.resize(OPTIONS - COOKIE.len(), 0);
        bytes.extend(COOKIE);
        put(&mut bytes, code::KIND, &[self.kind as u8]);
        for (code, value) in &self.options {
            put(&mut bytes, *code, value);
        }
        bytes.push(END);
        bytes.resize(bytes.len().max(SHORTEST), PAD);
        bytes
    }

    /// Reads a payload. None for what is no message of Ethernet, or is cut.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let reply = match bytes.get(..4)? {
            [1, 1, 6, _] => false,
            [2, 1, 6, _] => true,
            _ => return None,
        };
        if bytes.get(OPTIONS - COOKIE.len()..OPTIONS)? != COOKIE {
            return None;
        }
        let mut options = Options::new();
        take(&bytes[OPTIONS..], &mut options)?;
        // RFC 2132, section 9.3: more options where there are no names.
        let overload = options.get(&code::OVERLOAD).and_then(|value| value.first()).copied().unwrap_or(0);
        if overload & 1 != 0 {
            take(&bytes[FILE..OPTIONS - COOKIE.len()], &mut options)?;
        }
        if overload & 2 != 0 {
            take(&bytes[SNAME..FILE], &mut options)?;
        }
        let kind = Kind::of(*options.remove(&code::KIND)?.first()?)?;
        Some(Self {
            kind,
            reply,
            xid: u32::from_be_bytes(*bytes[4..].first_chunk()?),
            broadcast: bytes[10] & 0x80 != 0,
            ciaddr: address(&bytes[12..])?,
            yiaddr: address(&bytes[16..])?,
            mac: Mac(*bytes[28..].first_chunk()?),
            options,
        })
    }
}

/// Appends an option; one that is too long for its length's byte in parts (RFC 3396).
fn put(bytes: &mut Vec<u8>, code: u8, value: &[u8]) {
    let empty: &[u8] = &[];
    for part in value.chunks(255).chain(value.is_empty().then_some(empty)) {
        bytes.extend([code, part.len() as u8]);
        bytes.extend(part);
    }
}

/// Reads options. Parts of one are joined (RFC 3396).
fn take(mut bytes: &[u8], options: &mut Options) -> Option<()> {
    while let Some((code, rest)) = bytes.split_first() {
        bytes = match *code {
            PAD => rest,
            END => return Some(()),
            code => {
                let (length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                options.entry(code).or_default().extend(value);
                rest
            }
        };
    }
    Some(())
}

/// The first address of a byte string.
pub(crate) fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

const ETHERNET_LEN: usize = 14;
const IPV4: [u8; 2] = [8, 0];
const IP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const UDP: u8 = 17;

/// The whole frame from the client's port to the server's, for every host on the link.
pub(crate) fn frame(from: (Mac, Ipv4Addr), to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (from.1.octets(), to.octets());
    // Payloads of ours are bounded: options by the configuration's check.
    let (udp_len, ip_len) = ((UDP_LEN + payload.len()) as u16, (IP_LEN + UDP_LEN + payload.len()) as u16);
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, UDP, 0, 0];
    ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
    ip.extend(source);
    ip.extend(destination);
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = Vec::with_capacity(usize::from(udp_len));
    udp.extend(CLIENT_PORT.to_be_bytes());
    udp.extend(SERVER_PORT.to_be_bytes());
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let pseudo = [&source[..], &destination, &[0, UDP], &udp_len.to_be_bytes()].concat();
    // Zero says that there is none (RFC 768).
    let sum = checksum(&[&pseudo, &udp]).max(1);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    [&[0xff; 6][..], &from.0.0, &IPV4, &ip, &udp].concat()
}

/// The payload of a frame from a server's port to the client's. The checksum of UDP is not looked at: a link within one machine leaves it
/// unfinished (CHECKSUM_PARTIAL).
pub(crate) fn payload(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(ETHERNET_LEN..).filter(|_| frame[12..14] == IPV4)?;
    let header =
        packet.get(..usize::from(packet.first()? & 0xf) * 4).filter(|header| header.len() >= IP_LEN)?;
    let number = |bytes: &[u8], at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let whole = header[0] >> 4 == 4 && header[9] == UDP && number(header, 6)? & 0x3fff == 0;
    let udp = packet.get(header.len()..usize::from(number(header, 2)?)).filter(|_| whole)?;
    let ports = (number(udp, 0)?, number(udp, 2)?);
    let length = usize::from(number(udp, 4)?);
    udp.get(UDP_LEN..length).filter(|_| ports == (SERVER_PORT, CLIENT_PORT) && checksum(&[header]) == 0)
}

/// The Internet's checksum (RFC 1071). Each part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            kind: Kind::Offer,
            reply: true,
            xid: 0x0102_0304,
            broadcast: true,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::new(10, 0, 0, 50),
            mac: Mac([2, 0, 0, 0, 0, 7]),
            options: Options::from([(code::ROUTER, vec![10, 0, 0, 1]), (77, vec![7; 300])]),
        }
    }

    #[test]
    fn a_message_is_read_back_as_it_was_written_with_an_option_longer_than_255_bytes() {
        assert_eq!(Message::parse(&message().encode()), Some(message()));
        let short = Message { options: Options::new(), ..message() };
        assert_eq!((short.encode().len(), Message::parse(&short.encode())), (SHORTEST, Some(short)));
    }

    #[test]
    fn options_may_go_on_in_the_fields_of_names() {
        let mut bytes = Message { options: Options::from([(code::OVERLOAD, vec![3])]), ..message() }.encode();
        bytes[FILE..FILE + 3].copy_from_slice(&[15, 1, b'f']);
        bytes[SNAME..SNAME + 3].copy_from_slice(&[15, 1, b's']);
        assert_eq!(Message::parse(&bytes).unwrap().options[&15], b"fs");
    }

    #[test]
    fn what_is_cut_or_of_another_kind_is_no_message() {
        let bytes = message().encode();
        // The last is the end's mark; what is missing before it is missed.
        for length in 0..bytes.len() - 1 {
            let cut = Message::parse(&bytes[..length]);
            assert!(cut.is_none() || cut.is_some_and(|cut| cut.options != message().options), "{length}");
        }
        for (at, value) in [(0, 3), (1, 6), (2, 16), (OPTIONS - 1, 0), (OPTIONS + 2, 99)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert_eq!(Message::parse(&bytes), None, "{at}");
        }
    }

    #[test]
    fn a_frame_of_the_other_direction_gives_its_payload() {
        let mut frame =
            frame((Mac([2, 0, 0, 0, 0, 7]), Ipv4Addr::UNSPECIFIED), Ipv4Addr::BROADCAST, b"payload");
        assert_eq!(payload(&frame), None, "a client's");
        frame[34..38].copy_from_slice(&[0, 67, 0, 68]);
        assert_eq!(payload(&frame), Some(&b"payload"[..]));
        for (at, value) in [(12, 6), (14, 0x46), (20, 0x20), (23, 6), (24, 9), (39, 3), (39, 200)] {
            let mut frame = frame.clone();
            frame[at] = value;
            assert_eq!(payload(&frame), None, "{at}");
        }
        assert!((0..frame.len()).all(|length| payload(&frame[..length]).is_none()));
    }
}
