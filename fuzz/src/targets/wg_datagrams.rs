// SPDX-License-Identifier: Apache-2.0
//! Datagrams of anybody who reaches the WireGuard port: any bytes, and genuine ones that were changed, repeated or held back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::tunnels::{Done, Side, packet_to_east, shake_hands, two_sides};
use crate::Seed;
use crate::changed::changed;
use crate::input::{Input, Script};

const ANY: u8 = 0;
const CHANGED: u8 = 1;
const GENUINE: u8 = 2;
const WEST_SENDS: u8 = 3;
const EAST_SENDS: u8 = 4;
const TICK: u8 = 5;
const SHAKE_HANDS: u8 = 6;
const TO_WEST: u8 = 7;
const KINDS: usize = 8;
/// Datagrams that are remembered.
const WIRE: usize = 64;

struct Run {
    east: Side,
    west: Side,
    /// What each side has sent, oldest first.
    of_west: Vec<Vec<u8>>,
    of_east: Vec<Vec<u8>>,
    clock: Instant,
    /// Nothing has happened yet.
    fresh: bool,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let [east, west] = two_sides();
    let mut run =
        Run { east, west, of_west: Vec::new(), of_east: Vec::new(), clock: Instant::now(), fresh: true };
    while !input.is_empty() {
        run.step(&mut input);
        run.fresh = false;
        run.of_west.truncate(WIRE);
        run.of_east.truncate(WIRE);
    }
}

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(KINDS) as u8 {
            ANY => {
                let from = stranger(input);
                self.refused(from, input.piece());
            }
            CHANGED => {
                let from = stranger(input);
                if let Some(datagram) =
                    one_of(&self.of_west, input).and_then(|genuine| changed(&genuine, input))
                {
                    self.refused(from, &datagram);
                }
            }
            GENUINE => {
                let from = if input.flag() { stranger(input) } else { self.west.address };
                if let Some(datagram) = one_of(&self.of_west, input) {
                    let done = self.east.receive(from, &datagram);
                    sent(&mut self.of_east, done);
                    self.of_east.extend(self.east.due());
                }
            }
            WEST_SENDS => sent(&mut self.of_west, self.west.send(&packet_to_east())),
            EAST_SENDS => {
                let mut packet = packet_to_east();
                packet[16..20].copy_from_slice(&[10, 2, 0, 7]);
                sent(&mut self.of_east, self.east.send(&packet));
            }
            TICK => {
                self.clock += Duration::from_millis(input.u16().into());
                self.of_west.extend(self.west.tick(self.clock.max(Instant::now())));
                self.of_east.extend(self.east.tick(self.clock.max(Instant::now())));
            }
            SHAKE_HANDS if std::mem::take(&mut self.fresh) => shake_hands(&mut self.east, &mut self.west),
            TO_WEST => {
                if let Some(datagram) = one_of(&self.of_east, input) {
                    let done = self.west.receive(self.east.address, &datagram);
                    sent(&mut self.of_west, done);
                    self.of_west.extend(self.west.due());
                }
            }
            _ => {}
        }
    }

    /// What nobody with a key has made moves nothing and brings nothing.
    fn refused(&mut self, from: SocketAddr, datagram: &[u8]) {
        let moved = |side: &Side| {
            let facts = side.facts();
            (facts.endpoint, facts.received_bytes, facts.sent_bytes)
        };
        let before = moved(&self.east);
        let done = self.east.receive(from, datagram);
        assert!(!matches!(done, Done::Deliver(_)), "a forged packet came out");
        assert_eq!(moved(&self.east), before, "a forged datagram counts");
    }
}

/// An address that nobody of us has.
fn stranger(input: &mut Input<'_>) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, input.u8()], 4000))
}

fn one_of(datagrams: &[Vec<u8>], input: &mut Input<'_>) -> Option<Vec<u8>> {
    let newest_first = input.u8();
    datagrams.len().checked_sub(1 + usize::from(newest_first)).map(|at| datagrams[at].clone())
}

fn sent(wire: &mut Vec<Vec<u8>>, done: Done) {
    if let Done::Send(datagram) = done {
        wire.push(datagram);
    }
}

pub(crate) fn seeds() -> Vec<Seed> {
    let hands = || Script::default().bytes(&[SHAKE_HANDS, WEST_SENDS, EAST_SENDS]);
    let any = |datagram: &[u8]| hands().bytes(&[ANY, 9]).piece(datagram).end();
    let data = |receiver: u32| [&[4, 0, 0, 0][..], &receiver.to_le_bytes(), &[0; 40]].concat();
    let initiation = [&[1, 0, 0, 0][..], &[7; 144]].concat();
    let response = [&[2, 0, 0, 0][..], &[7; 88]].concat();
    let cookie = [&[3, 0, 0, 0][..], &[7; 60]].concat();
    let changed = |at: u16, by: u8| hands().bytes(&[CHANGED, 9, 0]).u16(at).bytes(&[by]).end();
    vec![
        ("data-of-a-stranger", any(&data(77 << 8))),
        ("initiation-of-a-stranger", any(&initiation)),
        ("response-of-a-stranger", any(&response)),
        ("cookie-of-a-stranger", any(&cookie)),
        ("genuine-and-again", hands().bytes(&[GENUINE, 0, 0, GENUINE, 1, 5, 0]).end()),
        ("changed-counter", changed(8, 1)),
        ("changed-receiver", changed(4, 1)),
        ("cut", changed(40, 0)),
        (
            "slow-handshake",
            Script::default()
                .bytes(&[WEST_SENDS, CHANGED, 1, 0])
                .u16(60)
                .bytes(&[4, GENUINE, 0, 0, TO_WEST, 0, GENUINE, 0, 0, TICK])
                .u16(300)
                .end(),
        ),
        ("flood", Script::default().bytes(&[WEST_SENDS]).bytes(&[GENUINE, 0, 0].repeat(150)).end()),
    ]
}
