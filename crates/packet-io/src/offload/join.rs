// SPDX-License-Identifier: Apache-2.0
//! Packets that came out of a tunnel one after the other, as one run for the node.

use super::{
    ACK, FLAGS_AT, HEADER_BYTES, Header, NEEDS_CHECKSUM, PSH, TCP, TCP_HEADER_BYTES, TCP_V4, TCP_V6, UDP,
    UDP_ANY, UDP_CHECKSUM_AT, UDP_HEADER_BYTES, UDP_LENGTH_AT, be16, be32, checksum, checksum_at, put16,
    seal_ip_header,
};

/// What one packet may hold at most (RFC 791).
const MOST_BYTES: usize = 65535;
/// How many packets are joined at most: what one UDP datagram with segmentation holds on the other side.
const MOST_PACKETS: u16 = 64;

/// Packets that follow one another in one TCP stream, or datagrams of one size between two sockets, joined as the kernel joins them
/// (GRO); or a single packet of any kind.
#[derive(Debug)]
pub struct Run {
    bytes: Vec<u8>,
    /// Whether the device takes joined streams, and joined datagrams.
    streams: bool,
    datagrams: bool,
    protocol: u8,
    /// How the run goes on; none if nothing can follow.
    open: Option<Open>,
    packets: u16,
    layer4: usize,
    headers: usize,
    /// Payload of the first packet, and of all others but perhaps the last.
    segment: usize,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    next_sequence: u32,
    next_identification: u16,
}

impl Default for Run {
    fn default() -> Self {
        let bytes = Vec::with_capacity(MOST_BYTES);
        Self {
            bytes,
            streams: true,
            datagrams: false,
            protocol: 0,
            open: None,
            packets: 0,
            layer4: 0,
            headers: 0,
            segment: 0,
        }
    }
}

impl Run {
    /// Whether streams are joined, as they are by default: [`crate::Feature::TunStreams`] of the device that the run is for.
    pub fn join_streams(&mut self, joined: bool) {
        self.streams = joined;
    }

    /// Whether datagrams are joined too: [`crate::Feature::TunDatagrams`] of that device.
    pub fn join_datagrams(&mut self, joined: bool) {
        self.datagrams = joined;
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Adds the packet, if the run is empty or the packet is its next. False if it has to begin a run of its own.
    pub fn add(&mut self, packet: &[u8]) -> bool {
        if self.is_empty() {
            self.begin(packet);
            return true;
        }
        let Some(open) = self.open else { return false };
        let Some(candidate) = Candidate::of(packet, (self.streams, self.datagrams)) else { return false };
        if !self.goes_on_with(packet, candidate, open) {
            return false;
        }
        let payload = &packet[candidate.headers..];
        self.bytes.extend_from_slice(payload);
        self.packets += 1;
        let pushed = candidate.is_pushed(packet);
        if pushed {
            self.bytes[self.layer4 + FLAGS_AT] |= PSH;
        }
        let more = payload.len() == self.segment && !pushed && self.packets < MOST_PACKETS;
        self.open = more.then(|| Open {
            next_sequence: open.next_sequence.wrapping_add(payload.len() as u32),
            next_identification: open.next_identification.wrapping_add(1),
        });
        true
    }

    /// The run as the device wants it: header and packet. Empty afterwards, with [`Self::clear`].
    pub(crate) fn seal(&mut self) -> ([u8; HEADER_BYTES], &[u8]) {
        if self.packets < 2 {
            return (Header::default().to_bytes(), &self.bytes);
        }
        let length = self.bytes.len();
        seal_ip_header(&mut self.bytes, self.layer4, length);
        // The rest of the sum is left to whoever cuts the run or reads it: each packet's own was right.
        let pseudo =
            checksum::fold(checksum::pseudo_header(&self.bytes, self.protocol, length - self.layer4));
        let checksum_at = checksum_at(self.protocol);
        self.bytes[self.layer4 + checksum_at..][..2].copy_from_slice(&pseudo.to_ne_bytes());
        if self.protocol == UDP {
            put16(&mut self.bytes, self.layer4 + UDP_LENGTH_AT, (length - self.layer4) as u16);
        }
        let header = Header {
            flags: NEEDS_CHECKSUM,
            kind: match (self.protocol, self.bytes[0] >> 4) {
                (UDP, _) => UDP_ANY,
                (_, 4) => TCP_V4,
                _ => TCP_V6,
            },
            header_bytes: self.headers as u16,
            segment_bytes: self.segment as u16,
            checksum_start: self.layer4 as u16,
            checksum_offset: checksum_at as u16,
        };
        (header.to_bytes(), &self.bytes)
    }

    /// Forgets what is in it.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.packets = 0;
        self.open = None;
    }

    fn begin(&mut self, packet: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(packet);
        self.packets = 1;
        self.open = None;
        let Some(candidate) = Candidate::of(packet, (self.streams, self.datagrams)) else { return };
        (self.protocol, self.layer4, self.headers) =
            (candidate.protocol, candidate.layer4, candidate.headers);
        self.segment = packet.len() - candidate.headers;
        if !candidate.is_pushed(packet) {
            self.open = Some(Open {
                next_sequence: be32(packet, candidate.layer4 + 4).wrapping_add(self.segment as u32),
                next_identification: be16(packet, 4).wrapping_add(1),
            });
        }
    }

    fn goes_on_with(&self, packet: &[u8], candidate: Candidate, open: Open) -> bool {
        let (layer4, headers) = (candidate.layer4, candidate.headers);
        let payload = packet.len() - headers;
        (self.protocol, self.layer4, self.headers) == (candidate.protocol, layer4, headers)
            && payload <= self.segment
            && self.bytes.len() + payload <= MOST_BYTES
            && self.same_ip_header(packet, open)
            && if self.protocol == UDP {
                self.bytes[layer4..layer4 + 4] == packet[layer4..layer4 + 4]
            } else {
                be32(packet, layer4 + 4) == open.next_sequence
                    && self.same_tcp_header(packet, layer4, headers)
            }
    }

    /// All that a cut restores from the first packet: class, lifetime, fragmentation, addresses.
    fn same_ip_header(&self, packet: &[u8], open: Open) -> bool {
        let first = &self.bytes;
        if packet[0] >> 4 == 4 {
            // With "do not fragment" the identification means nothing (RFC 6864, 4.1).
            let follows = packet[6] & 0x40 != 0 || be16(packet, 4) == open.next_identification;
            follows
                && packet[..2] == first[..2]
                && packet[6..10] == first[6..10]
                && packet[12..20] == first[12..20]
        } else {
            packet[..4] == first[..4] && packet[6..40] == first[6..40]
        }
    }

    /// Ports, acknowledgement, flags but for the push, window, urgent pointer and options.
    fn same_tcp_header(&self, packet: &[u8], layer4: usize, headers: usize) -> bool {
        let (first, next) = (&self.bytes[layer4..headers], &packet[layer4..headers]);
        first[..4] == next[..4]
            && first[8..FLAGS_AT] == next[8..FLAGS_AT]
            && (first[FLAGS_AT] | PSH) == (next[FLAGS_AT] | PSH)
            && first[14..16] == next[14..16]
            && first[18..] == next[18..]
    }
}

/// A packet that may begin or continue a run.
#[derive(Clone, Copy)]
struct Candidate {
    protocol: u8,
    layer4: usize,
    headers: usize,
}

impl Candidate {
    /// A whole packet with payload, without IP options, and with a right checksum, since nobody looks at it again after it was
    /// joined: of TCP, with an ACK and perhaps a push and nothing else; or of UDP.
    fn of(packet: &[u8], (streams, datagrams): (bool, bool)) -> Option<Self> {
        let (layer4, protocol) = match packet.first()? {
            0x45 if packet.len() > 20 => {
                let whole = be16(packet, 6) & 0x3fff == 0 && usize::from(be16(packet, 2)) == packet.len();
                whole.then_some((20, packet[9]))
            }
            first if first >> 4 == 6 && packet.len() > 40 => {
                (usize::from(be16(packet, 4)) == packet.len() - 40).then_some((40, packet[6]))
            }
            _ => None,
        }?;
        let headers = match protocol {
            TCP if streams => Self::headers_of_tcp(packet, layer4),
            UDP if datagrams => Self::headers_of_udp(packet, layer4),
            _ => None,
        }?;
        if headers >= packet.len() || (layer4 == 20 && checksum::of(&packet[..20], 0) != 0) {
            return None;
        }
        let pseudo = checksum::pseudo_header(packet, protocol, packet.len() - layer4);
        (checksum::of(&packet[layer4..], pseudo) == 0).then_some(Self { protocol, layer4, headers })
    }

    fn headers_of_tcp(packet: &[u8], layer4: usize) -> Option<usize> {
        if packet.len() < layer4 + TCP_HEADER_BYTES {
            return None;
        }
        let headers = layer4 + usize::from(packet[layer4 + 12] >> 4) * 4;
        let plain = packet[layer4 + FLAGS_AT] & !PSH == ACK;
        (plain && headers >= layer4 + TCP_HEADER_BYTES).then_some(headers)
    }

    /// A datagram without a checksum stays alone.
    fn headers_of_udp(packet: &[u8], layer4: usize) -> Option<usize> {
        let headers = layer4 + UDP_HEADER_BYTES;
        let whole = packet.len() > headers
            && usize::from(be16(packet, layer4 + UDP_LENGTH_AT)) == packet.len() - layer4
            && be16(packet, layer4 + UDP_CHECKSUM_AT) != 0;
        whole.then_some(headers)
    }

    /// Nothing follows it.
    fn is_pushed(self, packet: &[u8]) -> bool {
        self.protocol == TCP && packet[self.layer4 + FLAGS_AT] & PSH != 0
    }
}
