// SPDX-License-Identifier: Apache-2.0
//! What the node sends into a device, as packets of the path's size.

use super::{
    CWR, ECN, FIN, FLAGS_AT, HEADER_BYTES, Header, NEEDS_CHECKSUM, PSH, TCP, TCP_HEADER_BYTES, TCP_V4,
    TCP_V6, UDP, UDP_ANY, UDP_HEADER_BYTES, UDP_LENGTH_AT, be16, be32, checksum, checksum_at, put16,
    seal_ip_header,
};

/// One read from a device: a packet, or a run of TCP or of datagrams that was left uncut.
#[derive(Debug)]
pub struct Outgoing<'b> {
    packet: &'b [u8],
    run: Option<Cut>,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    protocol: u8,
    layer4: usize,
    headers: usize,
    segment: usize,
}

impl Cut {
    /// None for what makes no sense.
    fn of(packet: &[u8], header: Header) -> Option<Self> {
        let layer4 = usize::from(header.checksum_start);
        let protocol = if header.kind & !ECN == UDP_ANY { UDP } else { TCP };
        let least = if protocol == UDP { UDP_HEADER_BYTES } else { TCP_HEADER_BYTES };
        let ip = if packet[0] >> 4 == 4 { 20 } else { 40 };
        if layer4 < ip || packet.len() < layer4 + least || header.segment_bytes == 0 {
            return None;
        }
        // The header's own idea of the length is not believed: of forwarded packets it may be anything.
        let own = if protocol == UDP { least } else { usize::from(packet[layer4 + 12] >> 4) * 4 };
        let (headers, segment) = (layer4 + own, usize::from(header.segment_bytes));
        (own >= least && headers < packet.len()).then_some(Self { protocol, layer4, headers, segment })
    }
}

impl<'b> Outgoing<'b> {
    /// Reads what the device gave. None for what makes no sense: it is to be dropped.
    pub(crate) fn parse(bytes: &'b mut [u8]) -> Option<Self> {
        let (header, packet) = bytes.split_first_chunk_mut::<HEADER_BYTES>()?;
        let header = Header::parse(header);
        let version = packet.first()? >> 4;
        if packet.len() < if version == 4 { 20 } else { 40 } {
            return None;
        }
        match header.kind & !ECN {
            0 => {
                if header.flags & NEEDS_CHECKSUM != 0 {
                    finish_checksum(packet, header)?;
                }
                Some(Self { packet, run: None })
            }
            TCP_V4 | TCP_V6 | UDP_ANY => {
                let cut = Cut::of(packet, header)?;
                Some(Self { packet, run: Some(cut) })
            }
            _ => None,
        }
    }

    /// How many packets it makes.
    pub fn count(&self) -> usize {
        self.run.map_or(1, |cut| (self.packet.len() - cut.headers).div_ceil(cut.segment))
    }

    /// Writes the `index`-th packet and returns its length; None if `to` has not the room.
    pub fn write(&self, index: usize, to: &mut [u8]) -> Option<usize> {
        let Some(cut) = self.run else {
            to.get_mut(..self.packet.len())?.copy_from_slice(self.packet);
            return Some(self.packet.len());
        };
        let from = cut.headers + index * cut.segment;
        let payload = self.packet.get(from..(from + cut.segment).min(self.packet.len()))?;
        let length = cut.headers + payload.len();
        let to = to.get_mut(..length)?;
        to[..cut.headers].copy_from_slice(&self.packet[..cut.headers]);
        to[cut.headers..].copy_from_slice(payload);
        if to[0] >> 4 == 4 {
            let identification = be16(to, 4).wrapping_add(index as u16);
            put16(to, 4, identification);
        }
        seal_ip_header(to, cut.layer4, length);
        if cut.protocol == UDP {
            put16(to, cut.layer4 + UDP_LENGTH_AT, (length - cut.layer4) as u16);
        } else {
            self.continue_stream(cut, index, to);
        }
        let at = cut.layer4 + checksum_at(cut.protocol);
        put16(to, at, 0);
        let pseudo = checksum::pseudo_header(to, cut.protocol, length - cut.layer4);
        let sum = checksum::of(&to[cut.layer4..], pseudo);
        let sum = if cut.protocol == UDP { unless_zero(sum) } else { sum };
        to[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
        Some(length)
    }

    /// Sequence number and flags of the `index`-th packet of a stream.
    fn continue_stream(&self, cut: Cut, index: usize, to: &mut [u8]) {
        let sequence = be32(to, cut.layer4 + 4).wrapping_add((index * cut.segment) as u32);
        to[cut.layer4 + 4..cut.layer4 + 8].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < self.count() {
            to[cut.layer4 + FLAGS_AT] &= !(FIN | PSH);
        }
        if index > 0 {
            to[cut.layer4 + FLAGS_AT] &= !CWR;
        }
    }
}

/// Puts the checksum where the kernel left it to the device.
fn finish_checksum(packet: &mut [u8], header: Header) -> Option<()> {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    if start % 2 != 0 || at + 2 > packet.len() {
        return None;
    }
    let sum = unless_zero(checksum::of(&packet[start..], 0));
    packet[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    Some(())
}

/// A UDP checksum of zero would say that there is none (RFC 768); for TCP both mean the same.
fn unless_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}
