// SPDX-License-Identifier: Apache-2.0
//! Segmentation offload on the side of the devices: the kernel hands over up to 64 KiB of a TCP stream, or of datagrams of one size
//! between two sockets, as one packet, and takes as much. What goes through a tunnel is packets of the path's size, so they are cut here ([`Outgoing`]) and joined here ([`Run`]).
//!
//! The header before each packet is `virtio_net_hdr` (VIRTIO 1.2, 5.1.6), as TUN devices have it with IFF_VNET_HDR.

mod checksum;
mod join;
mod split;

#[cfg(test)]
mod tests;

pub use join::Run;
pub use split::Outgoing;

/// Bytes of the header before each packet of a device.
pub(crate) const HEADER_BYTES: usize = 10;

/// The checksum is not there yet: the sum of the pseudo header stands in its place.
const NEEDS_CHECKSUM: u8 = 1;
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
/// Datagrams of one size (VIRTIO_NET_HDR_GSO_UDP_L4), of either family.
const UDP_ANY: u8 = 5;
/// A bit beside the kind: the stream uses explicit congestion notification.
const ECN: u8 = 0x80;

const TCP: u8 = 6;
const TCP_HEADER_BYTES: usize = 20;
const TCP_CHECKSUM_AT: usize = 16;
const UDP: u8 = 17;
const UDP_HEADER_BYTES: usize = 8;
const UDP_LENGTH_AT: usize = 4;
const UDP_CHECKSUM_AT: usize = 6;
const FLAGS_AT: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// `virtio_net_hdr`, in the byte order of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Header {
    flags: u8,
    kind: u8,
    header_bytes: u16,
    segment_bytes: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            kind: bytes[1],
            header_bytes: word(2),
            segment_bytes: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.kind;
        let words = [self.header_bytes, self.segment_bytes, self.checksum_start, self.checksum_offset];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Where the checksum lies in the header of layer 4.
fn checksum_at(protocol: u8) -> usize {
    if protocol == UDP { UDP_CHECKSUM_AT } else { TCP_CHECKSUM_AT }
}

/// Writes the length of the whole packet into its IP header, and an IPv4 header's checksum.
/// `packet` holds at least the IP header; `layer4` is where that ends.
fn seal_ip_header(packet: &mut [u8], layer4: usize, length: usize) {
    if packet[0] >> 4 == 4 {
        put16(packet, 2, length as u16);
        put16(packet, 10, 0);
        let sum = checksum::of(&packet[..layer4], 0);
        packet[10..12].copy_from_slice(&sum.to_ne_bytes());
    } else {
        put16(packet, 4, (length - 40) as u16);
    }
}
