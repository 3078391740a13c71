// SPDX-License-Identifier: Apache-2.0
//! Anybody who knows our public key sends as much as the link carries.

use blake2::digest::consts::U16;
use blake2::digest::{Digest, Mac};
use blake2::{Blake2s256, Blake2sMac};
use boringtun::noise::{Tunn, TunnResult};

use super::*;
use crate::PublicKey;

/// Numbers that look random (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Writes the code that everybody can make who knows the receiver's public key (WireGuard paper, 5.4.4: mac1).
fn sign(message: &mut [u8], receiver: PublicKey) {
    let at = message.len() - 32;
    let label = [b"mac1----".as_slice(), receiver.as_bytes()].concat();
    let mac = Blake2sMac::<U16>::new_from_slice(&Blake2s256::digest(label)).unwrap();
    let code = mac.chain_update(&message[..at]).finalize().into_bytes();
    message[at..at + 16].copy_from_slice(&code);
}

/// A message of this kind with nothing genuine in it but that code.
fn forged(kind: u8, length: usize, receiver: PublicKey, numbers: &mut Numbers) -> Vec<u8> {
    let mut message = vec![0; length];
    numbers.fill(&mut message);
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    sign(&mut message, receiver);
    message
}

fn count(side: &Side, reason: Drop) -> usize {
    side.dropped.iter().filter(|dropped| **dropped == reason).count()
}

/// What was sent is cookies (64 bytes for 148, or for 92) and nothing else.
#[track_caller]
fn cookies(wire: &Wire) -> usize {
    assert!(wire.iter().all(|(_, _, datagram)| datagram[0] == 3 && datagram.len() == 64));
    wire.len()
}

#[test]
fn a_flood_of_forged_initiations_costs_a_hundred_curve_operations_a_second_and_no_memory() {
    let (_, _, mut west, _, mut wire) = pair();
    west.poll(&mut wire, Instant::now());
    let (held, mut numbers) = (west.engine.held(), Numbers(7300));
    for _ in 0..10_000 {
        let [a, b, c] = [1, 2, 3].map(|_| numbers.below(256));
        let from = format!("198.{a}.{b}.{c}:{}", 1 + numbers.below(60_000)).parse().unwrap();
        west.receive(from, &forged(1, 148, key(2).public(), &mut numbers), &mut wire);
    }
    // With the right code and a random key inside, refused means that the key was computed with.
    assert_eq!((count(&west, Drop::Forged), cookies(&wire)), (100, 9900));
    assert_eq!(west.engine.held(), held);
}

#[test]
fn a_million_datagrams_of_any_kind_break_nothing_and_leave_nothing() {
    let (mut east, to_west, mut west, _, mut wire) = pair();
    let mut genuine = Vec::new();
    east.send(to_west, &east_packet(), &mut wire);
    while !wire.is_empty() {
        genuine.extend(wire.iter().map(|(_, _, datagram)| datagram.clone()));
        for (from, to, datagram) in std::mem::take(&mut wire) {
            let side = if to == east.address { &mut east } else { &mut west };
            side.receive(from, &datagram, &mut wire);
        }
    }
    let (held, mut numbers) = (west.engine.held(), Numbers(7301));
    let before = west.engine.facts();
    let mut buffer = [0; BUFFER];
    let mut asked = 0;
    for _ in 0..1_000_000 {
        let datagram = any_datagram(&genuine, &mut numbers);
        let from = SocketAddr::from(([198, 51, 100, numbers.below(256) as u8], 4000));
        match west.engine.handle_datagram(from, &datagram, &mut buffer, Instant::now()) {
            Action::Dropped(_) => {}
            Action::Send { to, datagram } if datagram[0] == 3 => {
                assert_eq!((to, datagram.len()), (from, 64));
                asked += 1;
            }
            other => panic!("{other:?} of {datagram:?}"),
        }
    }
    west.poll(&mut wire, Instant::now());
    assert_eq!((wire.len(), west.engine.held(), west.engine.facts().len()), (0, held, before.len()));
    for (device, facts) in west.engine.facts() {
        assert_eq!(facts.endpoint, before[&device].endpoint);
        assert_eq!(facts.received_bytes, before[&device].received_bytes);
    }
    assert!(asked > 1000, "{asked} cookies: none of the datagrams got far");
    east.send(to_west, &east_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    assert_eq!(west.delivered, [east_packet(), east_packet()], "the session has lived through it");
}

fn any_datagram(genuine: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut datagram;
    match numbers.below(8) {
        // Any bytes of any length.
        0 => {
            datagram = vec![0; numbers.below(200)];
            numbers.fill(&mut datagram);
        }
        // A message's first bytes, and any length.
        1 | 2 => {
            datagram = vec![0; 4 + numbers.below(200)];
            numbers.fill(&mut datagram);
            datagram[..4].copy_from_slice(&[numbers.below(6) as u8, 0, 0, 0]);
        }
        // The right length and code, any contents.
        3 if numbers.below(16) == 0 => datagram = forged(1, 148, key(2).public(), numbers),
        3 => datagram = forged(2, 92, key(2).public(), numbers),
        // A genuine one, changed.
        _ => {
            datagram = genuine[numbers.below(genuine.len())].clone();
            let checked = if datagram[0] < 3 { datagram.len() - 16 } else { datagram.len() };
            let at = numbers.below(checked);
            if numbers.below(4) == 0 {
                datagram.truncate(at);
            } else {
                datagram[at] ^= 1 + numbers.below(255) as u8;
            }
        }
    }
    datagram
}

#[test]
fn one_who_shows_a_cookie_has_the_share_of_one_address() {
    let (_, _, mut west, _, mut wire) = pair();
    let mut numbers = Numbers(7302);
    for _ in 0..100 {
        let initiation = forged(1, 148, key(2).public(), &mut numbers);
        west.receive("198.51.100.1:9".parse().unwrap(), &initiation, &mut wire);
    }
    assert_eq!((wire.len(), count(&west, Drop::Forged)), (0, 100));
    // One with a key of its own takes the cookie and shows it, as each of its peers would.
    let (own, from) = (key(9), "203.0.113.9:51820".parse().unwrap());
    let mut stranger = Tunn::new(own.secret(), key(2).public().point(), None, None, 7, None);
    west.receive(from, &initiation(&mut stranger), &mut wire);
    let (_, _, cookie) = wire.pop().unwrap();
    assert!(matches!(stranger.decapsulate(None, &cookie, &mut [0; 148]), TunnResult::Done));
    for _ in 0..200 {
        west.receive(from, &initiation(&mut stranger), &mut wire);
    }
    assert_eq!(wire, [], "the cookie counts");
    assert_eq!((count(&west, Drop::Unknown), count(&west, Drop::TooMany)), (20, 180));
    west.receive("203.0.113.10:51820".parse().unwrap(), &initiation(&mut stranger), &mut wire);
    assert_eq!(cookies(&wire), 1, "it is of one address");
}

fn initiation(stranger: &mut Tunn) -> Vec<u8> {
    let mut buffer = [0; 148];
    match stranger.format_handshake_initiation(&mut buffer, true) {
        TunnResult::WriteToNetwork(initiation) => initiation.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn forged_responses_are_asked_for_a_cookie_as_well() {
    let (mut east, _, _, _, mut wire) = pair();
    east.poll(&mut wire, Instant::now());
    let index = wire.remove(0).2[4..8].to_vec();
    let mut numbers = Numbers(7303);
    for _ in 0..3000 {
        let mut response = forged(2, 92, key(1).public(), &mut numbers);
        response[8..12].copy_from_slice(&index);
        sign(&mut response, key(1).public());
        east.receive("203.0.113.66:4000".parse().unwrap(), &response, &mut wire);
    }
    assert_eq!((count(&east, Drop::Forged), cookies(&wire)), (1000, 2000));
}
