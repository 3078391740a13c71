// SPDX-License-Identifier: Apache-2.0
//! Inner packets of any kind through a session: what a pod sends into a tunnel, and what a peer sends out of it.

use std::net::IpAddr;

use isthmus_wg::OVERHEAD_BYTES;

use super::tunnels::{Done, Side, packet_to_east, shake_hands, source, two_sides};
use crate::Seed;
use crate::input::{Input, Script};

/// Packets one after the other: who sends, and what.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let [mut east, mut west] = two_sides();
    shake_hands(&mut east, &mut west);
    while !input.is_empty() {
        let from_east = input.flag();
        let packet = input.piece();
        if from_east { carry(&mut east, &mut west, packet) } else { carry(&mut west, &mut east, packet) }
    }
}

fn carry(from: &mut Side, to: &mut Side, packet: &[u8]) {
    let wanted =
        destination(packet).is_some_and(|address| from.allowed.iter().any(|net| net.contains(&address)));
    let datagram = match from.send(packet) {
        Done::Send(datagram) => datagram,
        dropped => {
            assert!(matches!(dropped, Done::Dropped(_)), "{dropped:?} of a packet while a session is there");
            return assert!(!wanted, "a packet for the peer was dropped: {dropped:?}");
        }
    };
    assert!(wanted, "a packet for nobody was sent");
    let padded_len = datagram.len() - OVERHEAD_BYTES;
    assert!(padded_len >= packet.len() && padded_len <= packet.len().next_multiple_of(16));
    let told = length(packet);
    let allowed = source(packet).is_some_and(|address| to.allowed.iter().any(|net| net.contains(&address)));
    let expected = told <= padded_len && allowed;
    match to.receive(from.address, &datagram) {
        Done::Deliver(delivered) => {
            assert!(expected, "a packet came out that may not");
            let mut sent = packet.to_vec();
            sent.resize(padded_len, 0);
            assert_eq!(delivered, sent[..told]);
        }
        Done::Dropped(reason) => assert!(!expected, "dropped on the way: {reason:?}"),
        other => panic!("{other:?} of a packet"),
    }
}

/// What the IP header says of the packet's length.
fn length(packet: &[u8]) -> usize {
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if packet[0] >> 4 == 4 { word(2) } else { word(4) + 40 }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
        _ => None,
    }
}

pub(crate) fn seeds() -> Vec<Seed> {
    let to_east = packet_to_east();
    let changed = |at: usize, bytes: &[u8]| {
        let mut packet = to_east.clone();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    v6.extend(
        ["fd00:2::7", "fd00:1::5"]
            .map(|address| address.parse::<std::net::Ipv6Addr>().expect("an address").octets())
            .concat(),
    );
    v6.extend([0; 8]);
    let from_west = |packet: &[u8]| Script::default().bytes(&[0]).piece(packet).end();
    let both = Script::default()
        .bytes(&[0])
        .piece(&to_east)
        .bytes(&[1])
        .piece(&changed(12, &[10, 1, 0, 5, 10, 2, 0, 7]));
    vec![
        ("both-ways", both.end()),
        ("v6", from_west(&v6)),
        ("v6-cut", from_west(&v6[..45])),
        ("foreign-source", from_west(&changed(12, &[10, 1, 0, 9]))),
        ("longer-than-it-is", from_west(&changed(2, &[0, 65]))),
        ("up-to-the-padding", from_west(&changed(2, &[0, 64]))),
        ("longer-than-the-padding", from_west(&changed(2, &[0xff, 0xff]))),
        ("no-packet", from_west(&[0x15; 30])),
    ]
}
