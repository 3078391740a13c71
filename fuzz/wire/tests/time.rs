// SPDX-License-Identifier: Apache-2.0
//! What the protocol says of time (WireGuard paper, 6), for devices of both kinds.

use std::time::Duration;

use isthmus_fuzz_wire::mutate::Generator;
use isthmus_fuzz_wire::{EAST, Kind, WEST, World, forge};
use isthmus_wg::{Drop, PrivateKey, PublicKey};

const KINDS: [[Kind; 2]; 4] = [
    [Kind::Standard, Kind::Standard],
    [Kind::Standard, Kind::Eager],
    [Kind::Eager, Kind::Standard],
    [Kind::Eager, Kind::Eager],
];

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Everything arrives at once; both send a packet each quarter of a second.
fn talk(world: &mut World) {
    for by in [EAST, WEST] {
        world.send(by, 200);
    }
    world.settle();
}

/// How many handshakes were completed, seen from east: each begins its session anew.
fn handshakes(world: &mut World, time: Duration) -> usize {
    let (mut last, mut count) = (None, 0);
    world.pass(time, |world| {
        talk(world);
        let at = world.hosts[EAST].facts().handshake;
        // The engine rounds to when it has looked.
        let moved = |before: std::time::Instant| at.is_some_and(|at| at > before + seconds(1));
        if last.is_none_or(moved) {
            (last, count) = (at, count + usize::from(at.is_some()));
        }
    });
    count
}

#[test]
fn keys_are_replaced_every_two_minutes_under_traffic_and_nothing_is_lost() {
    for kinds in KINDS {
        let mut world = World::new(kinds, true);
        world.send(EAST, 100);
        world.settle();
        let count = handshakes(&mut world, seconds(1000));
        assert_eq!(world.lost(), 0, "{kinds:?}");
        assert!((8..=10).contains(&count), "{kinds:?}: {count} handshakes in 1000 s");
    }
}

#[test]
fn when_only_one_side_sends_keys_are_replaced_as_well_and_nothing_is_lost() {
    for kinds in KINDS {
        for sender in [EAST, WEST] {
            let mut world = World::new(kinds, true);
            world.send(EAST, 100);
            world.settle();
            world.pass(seconds(1000), |world| {
                world.send(sender, 100);
                world.settle();
            });
            assert_eq!(world.lost(), 0, "{kinds:?}, {sender} sends");
        }
    }
}

#[test]
fn a_standard_device_without_traffic_falls_silent() {
    let mut world = World::new(KINDS[0], true);
    talk(&mut world);
    world.pass(seconds(30), World::settle);
    world.pass(seconds(900), |world| assert_eq!(world.flying, []));
    talk(&mut world);
    assert_eq!(world.lost(), 0, "the packets that ask for a session wait for it");
}

#[test]
fn a_persistent_keepalive_is_heard_as_often_as_it_was_asked_for_across_sessions() {
    for kinds in KINDS {
        let mut world = World::new(kinds, false);
        world.set(EAST, None, Some(seconds(25)));
        let mut last = world.clock.passed();
        world.pass(seconds(1000), |world| {
            if world.flying.iter().any(|flying| flying.by == EAST) {
                let silent = world.clock.passed() - last;
                assert!(silent <= seconds(26), "{kinds:?}: silent for {silent:?}");
                last = world.clock.passed();
            }
            world.settle();
        });
        assert!(world.clock.passed() - last <= seconds(26), "{kinds:?}");
        // The way back is open all the time.
        world.send(WEST, 100);
        world.settle();
        assert_eq!(world.lost(), 0, "{kinds:?}");
    }
}

#[test]
fn one_who_moves_is_followed_with_the_next_packet_also_while_keys_are_replaced() {
    for kinds in KINDS {
        let mut world = World::new(kinds, false);
        world.send(EAST, 100);
        world.settle();
        world.pass(seconds(300), |world| {
            // Every three seconds; also between an initiation and its response.
            let moves = world.clock.passed().as_secs() / 3;
            world.hosts[EAST].address.set_port(40_000 + moves as u16);
            for by in [EAST, WEST] {
                world.send(by, 200);
                world.settle();
            }
            assert_eq!(world.hosts[WEST].facts().endpoint, Some(world.hosts[EAST].address), "{kinds:?}");
        });
        assert_eq!(world.lost(), 0, "{kinds:?}");
    }
}

#[test]
fn a_session_carries_nothing_after_three_minutes() {
    for kinds in KINDS {
        let mut world = World::new(kinds, true);
        talk(&mut world);
        // East's answers to handshakes and everything of west's are lost from now on.
        world.pass(seconds(180), |world| {
            world.send(EAST, 100);
            world.flying.clear();
        });
        world.pass(seconds(60), |world| {
            world.send(EAST, 100);
            let kinds: Vec<u8> = world.flying.iter().map(|flying| flying.datagram[0]).collect();
            assert!(kinds.iter().all(|kind| *kind != 4), "{kinds:?} at {:?}", world.clock.passed());
            world.flying.clear();
        });
    }
}

#[test]
fn after_any_time_without_a_wire_packets_pass_within_six_seconds() {
    for kinds in KINDS {
        for silence in [10, 100, 170, 200, 400, 2000] {
            let mut world = World::new(kinds, true);
            talk(&mut world);
            world.pass(seconds(silence), |world| {
                world.send(EAST, 100);
                world.flying.clear();
            });
            let mut passed = false;
            world.pass(seconds(6), |world| {
                let number = world.send(EAST, 100);
                world.settle();
                passed |= world.is_delivered(number);
            });
            assert!(passed, "{kinds:?} after {silence} s");
        }
    }
}

fn public(host: usize) -> PublicKey {
    PrivateKey::from_bytes([1 + host as u8; 32]).public()
}

/// A second's worth of forged initiations for west; what it sends for them is lost.
fn flood(world: &mut World, generator: &mut Generator) {
    for _ in 0..250 {
        let forged = forge::message(1, 148, public(WEST), generator);
        world.refuse(WEST, &forged);
    }
    world.flying.retain(|flying| flying.to != isthmus_fuzz_wire::STRANGER);
}

#[test]
fn under_a_flood_of_initiations_a_cookie_lets_those_in_who_receive_at_their_address() {
    for kinds in KINDS {
        let (mut world, mut generator) = (World::new(kinds, false), Generator::new(7300));
        world.flying.clear();
        flood(&mut world, &mut generator);
        let number = world.send(EAST, 100);
        let mut cookies = 0;
        // One initiation that asks, five seconds later one that shows the cookie; an eager device may just have asked.
        world.pass(seconds(12), |world| {
            flood(world, &mut generator);
            while !world.flying.is_empty() {
                let flying = std::mem::take(&mut world.flying);
                cookies +=
                    flying.iter().filter(|flying| flying.by == WEST && flying.datagram[0] == 3).count();
                flying.iter().for_each(|flying| world.arrive(flying));
            }
        });
        assert!(world.is_delivered(number), "{kinds:?}");
        assert!(cookies > 0, "{kinds:?}: no cookie was asked for");
    }
}

#[test]
fn a_flood_costs_a_hundred_curve_operations_a_second_and_keys_are_replaced_under_it() {
    let (mut world, mut generator) = (World::new(KINDS[0], true), Generator::new(7301));
    talk(&mut world);
    let time = seconds(400);
    world.pass(time, |world| {
        for _ in 0..50 {
            world.refuse(WEST, &forge::message(1, 148, public(WEST), &mut generator));
        }
        world.flying.retain(|flying| flying.to != isthmus_fuzz_wire::STRANGER);
        talk(world);
    });
    assert_eq!(world.lost(), 0);
    let since = world.hosts[EAST].facts().since_handshake;
    assert!(since.is_some_and(|since| since < seconds(130)), "{since:?}");
    // With the right code and a random key inside, refused means that the key was computed with.
    let computed = world.hosts[WEST].dropped[&Drop::Forged];
    assert!(computed <= 100 * (time.as_secs() + 1), "{computed} in {time:?}");
}
