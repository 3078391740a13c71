// SPDX-License-Identifier: Apache-2.0
//! The only two fields of an inner packet that the engine reads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The destination of an IP packet, if it is one.
pub(crate) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => Some(Ipv4Addr::from(octets::<4>(packet, 16)?).into()),
        6 if packet.len() >= 40 => Some(Ipv6Addr::from(octets::<16>(packet, 24)?).into()),
        _ => None,
    }
}

fn octets<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_at_all_are_read_without_a_panic(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            let address = destination(&packet);
            prop_assert_eq!(address.is_some(), matches!((packet.first().map(|b| b >> 4), packet.len()), (Some(4), 20..) | (Some(6), 40..)));
        }
    }
}
