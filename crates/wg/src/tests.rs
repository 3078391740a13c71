// SPDX-License-Identifier: Apache-2.0
//! Two engines and a wire in memory.

mod allocations;
mod flood;
mod hostile;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use isthmus_model::dataplane::{KeySlot, Tunnel};
use isthmus_model::ids::LinkName;
use proptest::prelude::*;

use crate::{Action, DeviceId, Drop, Engine, PeerConfig, PresharedKey, PrivateKey, Refusal};

const BUFFER: usize = 2048;

struct Side {
    engine: Engine,
    address: SocketAddr,
    delivered: Vec<Vec<u8>>,
    dropped: Vec<Drop>,
}

/// What is on its way: from, to, datagram.
type Wire = Vec<(SocketAddr, SocketAddr, Vec<u8>)>;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn link(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn tunnel(peer: &PrivateKey, endpoint: Option<&str>, allowed: &[&str]) -> Tunnel {
    Tunnel {
        peer: "west".parse().unwrap(),
        peer_key: peer.public().to_string(),
        endpoint: endpoint.map(|text| text.parse().unwrap()),
        allowed: allowed.iter().map(|text| text.parse().unwrap()).collect(),
        keepalive_s: 0,
        key_slot: KeySlot::First,
        lane: 0,
    }
}

fn packet_v4(source: [u8; 4], destination: [u8; 4], payload: usize) -> Vec<u8> {
    let mut packet = vec![0; 20 + payload];
    packet[0] = 0x45;
    let length = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet
}

fn east_packet() -> Vec<u8> {
    packet_v4([10, 1, 0, 5], [10, 2, 0, 7], 33)
}

fn west_packet() -> Vec<u8> {
    packet_v4([10, 2, 0, 7], [10, 1, 0, 5], 1300)
}

impl Side {
    fn new(seed: u8, address: &str) -> Self {
        let mut engine = Engine::new(u32::from(seed) * 77, Instant::now());
        engine.set_keys([(KeySlot::First, key(seed))].into());
        Self { engine, address: address.parse().unwrap(), delivered: Vec::new(), dropped: Vec::new() }
    }

    fn configure(&mut self, name: &str, tunnel: Tunnel) -> DeviceId {
        let refusals = self.engine.configure(&BTreeMap::from([(link(name), tunnel)]), Instant::now());
        assert_eq!(refusals, []);
        self.engine.id_of(&link(name)).unwrap()
    }

    fn note(&mut self, action: Action<'_>, wire: &mut Wire) {
        match action {
            Action::Nothing => {}
            Action::Send { to, datagram } => wire.push((self.address, to, datagram.to_vec())),
            Action::Deliver { packet, .. } => self.delivered.push(packet.to_vec()),
            Action::Dropped(reason) => self.dropped.push(reason),
        }
    }

    fn send(&mut self, id: DeviceId, packet: &[u8], wire: &mut Wire) {
        let mut buffer = [0; BUFFER];
        let mut engine = std::mem::replace(&mut self.engine, Engine::new(0, Instant::now()));
        let action = engine.handle_packet(id, packet, &mut buffer, Instant::now());
        self.note(action, wire);
        self.engine = engine;
    }

    fn receive(&mut self, from: SocketAddr, datagram: &[u8], wire: &mut Wire) {
        let mut buffer = [0; BUFFER];
        let mut engine = std::mem::replace(&mut self.engine, Engine::new(0, Instant::now()));
        let action = engine.handle_datagram(from, datagram, &mut buffer, Instant::now());
        self.note(action, wire);
        self.engine = engine;
        self.poll(wire, Instant::now());
    }

    fn poll(&mut self, wire: &mut Wire, now: Instant) {
        let mut buffer = [0; BUFFER];
        while let Some((to, datagram)) = self.engine.poll_transmit(&mut buffer, now) {
            wire.push((self.address, to, datagram.to_vec()));
        }
    }

    fn tick(&mut self, wire: &mut Wire, now: Instant) {
        self.engine.handle_timeout(now);
        self.poll(wire, now);
    }
}

/// Carries datagrams both ways until nothing is on the way.
fn settle(east: &mut Side, west: &mut Side, wire: &mut Wire) {
    while !wire.is_empty() {
        for (from, to, datagram) in std::mem::take(wire) {
            if to == east.address {
                east.receive(from, &datagram, wire);
            } else if to == west.address {
                west.receive(from, &datagram, wire);
            }
        }
    }
}

/// East knows where west is; west knows east only by key.
fn pair() -> (Side, DeviceId, Side, DeviceId, Wire) {
    let mut east = Side::new(1, "192.0.2.1:51820");
    let mut west = Side::new(2, "192.0.2.2:51820");
    let to_west = east.configure("iw-west", tunnel(&key(2), Some("192.0.2.2:51820"), &["10.2.0.0/16"]));
    let to_east = west.configure("iw-east", tunnel(&key(1), None, &["10.1.0.0/16"]));
    (east, to_west, west, to_east, Vec::new())
}

#[test]
fn the_packet_that_asks_for_the_session_arrives_and_so_does_the_answer() {
    let (mut east, to_west, mut west, to_east, mut wire) = pair();
    east.send(to_west, &east_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    assert_eq!(west.delivered, [east_packet()]);
    west.send(to_east, &west_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    assert_eq!(east.delivered, [west_packet()]);
    assert_eq!((east.dropped, west.dropped), (vec![], vec![]));
}

#[test]
fn a_tunnel_with_an_endpoint_comes_up_without_traffic() {
    let (mut east, to_west, mut west, to_east, mut wire) = pair();
    east.poll(&mut wire, Instant::now());
    settle(&mut east, &mut west, &mut wire);
    assert!(east.engine.facts()[&to_west].since_handshake.is_some());
    assert!(west.engine.facts()[&to_east].since_handshake.is_some());
}

#[test]
fn nothing_of_a_packet_is_readable_on_the_wire_and_small_ones_are_padded() {
    let (mut east, to_west, mut west, _, mut wire) = pair();
    east.poll(&mut wire, Instant::now());
    settle(&mut east, &mut west, &mut wire);
    let packet = east_packet();
    east.send(to_west, &packet, &mut wire);
    let (_, _, datagram) = &wire[0];
    assert!(!datagram.windows(12).any(|window| packet.windows(12).any(|plain| plain == window)));
    assert_eq!(datagram.len(), packet.len().next_multiple_of(16) + crate::OVERHEAD_BYTES);
}

#[test]
fn a_source_that_is_not_allowed_does_not_come_out() {
    let (mut east, to_west, mut west, _, mut wire) = pair();
    east.send(to_west, &packet_v4([10, 9, 0, 5], [10, 2, 0, 7], 10), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    assert_eq!((west.delivered.len(), west.dropped), (0, vec![Drop::NotAllowed]));
}

#[test]
fn a_packet_that_says_it_is_shorter_than_its_header_does_not_come_out() {
    let (mut east, to_west, mut west, _, mut wire) = pair();
    let mut packet = east_packet();
    packet[2..4].copy_from_slice(&10u16.to_be_bytes());
    east.send(to_west, &packet, &mut wire);
    settle(&mut east, &mut west, &mut wire);
    assert_eq!((west.delivered.len(), west.dropped), (0, vec![Drop::Malformed]));
}

#[test]
fn a_destination_that_is_not_allowed_does_not_go_in() {
    let (mut east, to_west, _, _, mut wire) = pair();
    east.send(to_west, &packet_v4([10, 1, 0, 5], [8, 8, 8, 8], 10), &mut wire);
    assert_eq!((wire.len(), east.dropped), (0, vec![Drop::NotAllowed]));
}

#[test]
fn a_datagram_that_was_seen_is_dropped_the_second_time() {
    let (mut east, to_west, mut west, _, mut wire) = pair();
    east.poll(&mut wire, Instant::now());
    settle(&mut east, &mut west, &mut wire);
    east.send(to_west, &east_packet(), &mut wire);
    let (from, _, datagram) = wire[0].clone();
    west.receive(from, &datagram, &mut wire);
    west.receive(from, &datagram, &mut wire);
    assert_eq!((west.delivered.len(), west.dropped), (1, vec![Drop::Replayed]));
}

#[test]
fn a_recorded_initiation_moves_no_endpoint_and_makes_no_session() {
    let (mut east, _, mut west, to_east, mut wire) = pair();
    east.poll(&mut wire, Instant::now());
    let (_, _, initiation) = wire[0].clone();
    settle(&mut east, &mut west, &mut wire);
    west.receive("203.0.113.66:4000".parse().unwrap(), &initiation, &mut wire);
    assert_eq!(west.engine.facts()[&to_east].endpoint, Some(east.address));
    assert_eq!((wire.len(), west.dropped), (0, vec![Drop::Replayed]));
}

#[test]
fn a_peer_that_moves_is_followed_with_its_first_packet_and_a_forger_is_not() {
    let (mut east, to_west, mut west, to_east, mut wire) = pair();
    east.poll(&mut wire, Instant::now());
    settle(&mut east, &mut west, &mut wire);
    let moved: SocketAddr = "[2001:db8::9]:40000".parse().unwrap();
    east.address = moved;
    east.send(to_west, &east_packet(), &mut wire);
    let (_, _, mut forged) = wire[0].clone();
    settle(&mut east, &mut west, &mut wire);
    assert_eq!(west.engine.facts()[&to_east].endpoint, Some(moved));
    forged[8] += 1;
    west.receive("203.0.113.66:4000".parse().unwrap(), &forged, &mut wire);
    assert_eq!(west.engine.facts()[&to_east].endpoint, Some(moved));
    assert_eq!(west.dropped, [Drop::Forged]);
}

#[test]
fn an_initiation_from_a_stranger_is_dropped() {
    let (mut east, _, _, _, mut wire) = pair();
    let mut stranger = Side::new(9, "203.0.113.9:51820");
    stranger.configure("iw-x", tunnel(&key(1), Some("192.0.2.1:51820"), &["10.1.0.0/16"]));
    stranger.poll(&mut wire, Instant::now());
    let (from, _, initiation) = wire.remove(0);
    east.receive(from, &initiation, &mut Vec::new());
    assert_eq!(east.dropped, [Drop::Unknown]);
}

#[test]
fn a_flood_of_initiations_is_answered_with_cookies() {
    let (mut east, _, mut west, _, mut wire) = pair();
    east.poll(&mut wire, Instant::now());
    let (from, _, initiation) = wire.remove(0);
    for _ in 0..200 {
        west.receive(from, &initiation, &mut wire);
    }
    let cookies = wire.iter().filter(|(_, _, datagram)| datagram[0] == 3 && datagram.len() == 64).count();
    assert!((50..=150).contains(&cookies), "{cookies} cookies of 200");
}

#[test]
fn tunnels_that_stay_keep_their_session_when_others_come_and_go() {
    let (mut east, to_west, mut west, _, mut wire) = pair();
    east.poll(&mut wire, Instant::now());
    settle(&mut east, &mut west, &mut wire);
    let stays = tunnel(&key(2), Some("192.0.2.2:51820"), &["10.2.0.0/16", "10.3.0.0/16"]);
    let comes = tunnel(&key(3), None, &["10.4.0.0/16"]);
    let both = BTreeMap::from([(link("iw-west"), stays.clone()), (link("iw-a"), comes)]);
    assert_eq!(east.engine.configure(&both, Instant::now()), []);
    assert_eq!(east.engine.configure(&BTreeMap::from([(link("iw-west"), stays)]), Instant::now()), []);
    assert_eq!(east.engine.facts().len(), 1);
    east.send(to_west, &packet_v4([10, 1, 0, 5], [10, 3, 0, 1], 1), &mut wire);
    assert_eq!(wire[0].2[0], 4, "a data message at once, no new handshake");
}

#[test]
fn two_gateways_of_one_peer_have_the_same_cidrs_and_a_tunnel_each() {
    let (mut east, to_west, mut west, _, mut wire) = pair();
    let mut north = Side::new(3, "192.0.2.3:51820");
    north.configure("iw-east", tunnel(&key(1), Some("192.0.2.1:51820"), &["10.1.0.0/16"]));
    let both = BTreeMap::from([
        (link("iw-west"), tunnel(&key(2), Some("192.0.2.2:51820"), &["10.2.0.0/16"])),
        (link("iw-north"), tunnel(&key(3), Some("192.0.2.3:51820"), &["10.2.0.0/16"])),
    ]);
    assert_eq!(east.engine.configure(&both, Instant::now()), []);
    let to_north = east.engine.id_of(&link("iw-north")).unwrap();
    for id in [to_west, to_north] {
        east.send(id, &east_packet(), &mut wire);
    }
    while !wire.is_empty() {
        for (from, to, datagram) in std::mem::take(&mut wire) {
            let side =
                [&mut east, &mut west, &mut north].into_iter().find(|side| side.address == to).unwrap();
            side.receive(from, &datagram, &mut wire);
        }
    }
    assert_eq!((west.delivered.len(), north.delivered.len()), (1, 1));
    let facts = east.engine.facts();
    assert_eq!([to_west, to_north].map(|id| facts[&id].endpoint), [Some(west.address), Some(north.address)]);
}

#[test]
fn tunnels_that_cannot_run_are_named_and_the_others_run() {
    let mut east = Side::new(1, "192.0.2.1:51820");
    let mut broken = tunnel(&key(2), None, &[]);
    broken.peer_key = "nonsense".into();
    let wanted = BTreeMap::from([
        (link("iw-broken"), broken),
        (link("iw-itself"), tunnel(&key(1), None, &[])),
        (link("iw-one"), tunnel(&key(5), None, &[])),
        (link("iw-two"), tunnel(&key(5), None, &[])),
    ]);
    let refusals = east.engine.configure(&wanted, Instant::now());
    assert!(matches!(refusals[0], Refusal::Key(..)));
    assert_eq!(
        refusals[1..],
        [Refusal::Itself(link("iw-itself")), Refusal::Twice(link("iw-one"), link("iw-two"))]
    );
    assert!(east.engine.id_of(&link("iw-one")).is_some());
}

#[test]
fn two_keys_of_ours_have_a_tunnel_each_and_the_old_one_receives_until_it_goes() {
    let (mut east, old_to_west, mut west, old_to_east, mut wire) = pair();
    let both = |slot| if slot == KeySlot::First { key(1) } else { key(7) };
    let to_west =
        |key_slot| Tunnel { key_slot, ..tunnel(&key(2), Some("192.0.2.2:51820"), &["10.2.0.0/16"]) };
    let to_east = |seed| tunnel(&key(seed), Some("192.0.2.1:51820"), &["10.1.0.0/16"]);
    let slots = [KeySlot::First, KeySlot::Second];
    east.engine.set_keys(slots.map(|slot| (slot, both(slot))).into());
    let tunnels = BTreeMap::from([
        (link("iw-west"), to_west(KeySlot::First)),
        (link("iw-west-2"), to_west(KeySlot::Second)),
    ]);
    assert_eq!(east.engine.configure(&tunnels, Instant::now()), []);
    let tunnels = BTreeMap::from([(link("iw-east"), to_east(1)), (link("iw-east-2"), to_east(7))]);
    assert_eq!(west.engine.configure(&tunnels, Instant::now()), []);
    let new_to_west = east.engine.id_of(&link("iw-west-2")).unwrap();
    let new_to_east = west.engine.id_of(&link("iw-east-2")).unwrap();
    for (here, there) in [(old_to_west, old_to_east), (new_to_west, new_to_east)] {
        east.send(here, &east_packet(), &mut wire);
        settle(&mut east, &mut west, &mut wire);
        west.send(there, &west_packet(), &mut wire);
        settle(&mut east, &mut west, &mut wire);
    }
    assert_eq!((west.delivered.len(), east.delivered.len()), (2, 2));
    assert_eq!((east.dropped.clone(), west.dropped.clone()), (vec![], vec![]));

    east.engine.set_keys([(KeySlot::Second, both(KeySlot::Second))].into());
    west.send(old_to_east, &west_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    assert_eq!((east.delivered.len(), east.dropped.clone()), (2, vec![Drop::Unknown]), "its key is gone");
    let refusals =
        east.engine.configure(&[(link("iw-west"), to_west(KeySlot::First))].into(), Instant::now());
    assert_eq!(refusals, [Refusal::NoKey(link("iw-west"), KeySlot::First)]);
}

#[test]
fn a_tunnel_whose_peer_has_another_key_keeps_its_device_and_loses_its_sessions() {
    let (mut east, to_west, mut west, to_east, mut wire) = pair();
    east.poll(&mut wire, Instant::now());
    settle(&mut east, &mut west, &mut wire);
    let new = east.configure("iw-west", tunnel(&key(3), Some("192.0.2.3:51820"), &["10.2.0.0/16"]));
    assert_eq!(new, to_west);
    assert_eq!(east.engine.facts()[&new].since_handshake, None);
    west.send(to_east, &west_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    assert_eq!(east.dropped, [Drop::Unknown], "from the peer of before");
}

#[test]
fn a_keepalive_goes_out_when_nothing_else_did() {
    let (mut east, _, mut west, _, mut wire) = pair();
    let mut lively = tunnel(&key(2), Some("192.0.2.2:51820"), &["10.2.0.0/16"]);
    lively.keepalive_s = 5;
    east.configure("iw-west", lively);
    east.poll(&mut wire, Instant::now());
    settle(&mut east, &mut west, &mut wire);
    let later = Instant::now() + Duration::from_secs(6);
    east.tick(&mut wire, later);
    assert_eq!(wire.len(), 1);
    assert_eq!((wire[0].2[0], wire[0].2.len()), (4, crate::OVERHEAD_BYTES));
}

#[test]
fn a_pre_shared_key_that_the_peer_never_gets_ends_the_session_when_its_time_is_over() {
    let (mut east, mut west) = (Side::new(1, "192.0.2.1:51820"), Side::new(2, "192.0.2.2:51820"));
    let (to_west, to_east) = (device(&mut east), device(&mut west));
    let mut wire = Wire::new();
    east.set(to_west, 2, config(&["10.2.0.0/16"], Some(9)), Some(west.address));
    west.set(to_east, 1, config(&["10.1.0.0/16"], Some(9)), None);
    east.send(to_west, &east_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    east.set(to_west, 2, config(&["10.2.0.0/16"], Some(10)), None);
    east.send(to_west, &east_packet(), &mut wire);
    assert_eq!(wire.pop().unwrap().2[0], 4, "under the key before");
    east.tick(&mut wire, Instant::now() + crate::peer::REJECT_AFTER);
    wire.clear();
    east.send(to_west, &east_packet(), &mut wire);
    assert!(wire.iter().all(|(_, _, datagram)| datagram[0] == 1), "nothing but initiations");
    settle(&mut east, &mut west, &mut wire);
    assert_eq!(west.delivered.len(), 1);
}

/// A device that is configured peer by peer.
fn device(side: &mut Side) -> DeviceId {
    side.engine.add_device(KeySlot::First, false)
}

fn config(allowed: &[&str], preshared: Option<u8>) -> PeerConfig {
    PeerConfig {
        preshared: preshared.map(|seed| PresharedKey::from_bytes([seed; 32])),
        allowed: allowed.iter().map(|text| text.parse().unwrap()).collect(),
        keepalive: None,
    }
}

impl Side {
    fn set(&mut self, device: DeviceId, peer: u8, config: PeerConfig, endpoint: Option<SocketAddr>) {
        assert!(self.engine.set_peer(device, key(peer).public(), config, Instant::now()));
        if let Some(endpoint) = endpoint {
            self.engine.set_endpoint(device, key(peer).public(), endpoint);
        }
    }
}

/// Carries datagrams between any sides until nothing is on the way.
fn settle_all(sides: &mut [&mut Side], wire: &mut Wire) {
    while !wire.is_empty() {
        for (from, to, datagram) in std::mem::take(wire) {
            if let Some(side) = sides.iter_mut().find(|side| side.address == to) {
                side.receive(from, &datagram, wire);
            }
        }
    }
}

#[test]
fn of_many_peers_of_a_device_the_one_with_the_longest_prefix_gets_the_packet() {
    let mut hub = Side::new(1, "192.0.2.1:51820");
    let (mut wide, mut narrow) = (Side::new(2, "192.0.2.2:51820"), Side::new(3, "192.0.2.3:51820"));
    let at_hub = device(&mut hub);
    hub.set(at_hub, 2, config(&["10.0.0.0/8"], None), Some(wide.address));
    hub.set(at_hub, 3, config(&["10.2.0.0/16"], None), Some(narrow.address));
    for side in [&mut wide, &mut narrow] {
        let id = device(side);
        side.set(id, 1, config(&["0.0.0.0/0"], None), None);
    }
    let mut wire = Wire::new();
    let inside = |last| packet_v4([10, 1, 0, 5], last, 33);
    hub.send(at_hub, &inside([10, 2, 0, 7]), &mut wire);
    hub.send(at_hub, &inside([10, 3, 0, 7]), &mut wire);
    settle_all(&mut [&mut hub, &mut wide, &mut narrow], &mut wire);
    assert_eq!(
        (&wide.delivered, &narrow.delivered),
        (&vec![inside([10, 3, 0, 7])], &vec![inside([10, 2, 0, 7])])
    );

    // What one peer may send, another may not: its session does not make up for its source.
    let from_wide = DeviceId::clone(&wide.engine.devices().next().unwrap());
    wide.send(from_wide, &packet_v4([10, 2, 0, 7], [10, 1, 0, 5], 9), &mut wire);
    settle_all(&mut [&mut hub, &mut wide, &mut narrow], &mut wire);
    assert_eq!((hub.delivered.len(), hub.dropped.clone()), (0, vec![Drop::NotAllowed]));

    // The network moves to the other peer, and so do its packets.
    hub.set(at_hub, 2, config(&["10.0.0.0/8", "10.2.0.0/16"], None), None);
    hub.set(at_hub, 3, config(&[], None), None);
    hub.send(at_hub, &inside([10, 2, 0, 7]), &mut wire);
    settle_all(&mut [&mut hub, &mut wide, &mut narrow], &mut wire);
    assert_eq!((wide.delivered.len(), narrow.delivered.len()), (2, 1));
    hub.engine.remove_peer(at_hub, key(2).public());
    hub.send(at_hub, &inside([10, 2, 0, 7]), &mut wire);
    assert_eq!((wire.len(), hub.dropped.last()), (0, Some(&Drop::NotAllowed)));
}

#[test]
fn a_device_that_is_not_eager_is_silent_until_there_is_something_to_send() {
    let (mut east, mut west) = (Side::new(1, "192.0.2.1:51820"), Side::new(2, "192.0.2.2:51820"));
    let (to_west, to_east) = (device(&mut east), device(&mut west));
    east.set(to_west, 2, config(&["10.2.0.0/16"], None), Some(west.address));
    west.set(to_east, 1, config(&["10.1.0.0/16"], None), None);
    let mut wire = Wire::new();
    east.tick(&mut wire, Instant::now() + Duration::from_secs(1));
    assert_eq!(wire.len(), 0);
    east.send(to_west, &east_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    assert_eq!(west.delivered, [east_packet()]);
    let facts = east.engine.peer_facts(to_west, key(2).public()).unwrap();
    assert!(facts.handshake.is_some() && facts.sent_bytes > 0, "{facts:?}");
}

#[test]
fn a_pre_shared_key_that_only_one_side_has_makes_no_session() {
    let (mut east, mut west) = (Side::new(1, "192.0.2.1:51820"), Side::new(2, "192.0.2.2:51820"));
    let (to_west, to_east) = (device(&mut east), device(&mut west));
    east.set(to_west, 2, config(&["10.2.0.0/16"], Some(9)), Some(west.address));
    west.set(to_east, 1, config(&["10.1.0.0/16"], None), None);
    let mut wire = Wire::new();
    east.send(to_west, &east_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    assert_eq!((west.delivered.len(), east.dropped.clone()), (0, vec![Drop::Forged]));
}

#[test]
fn a_pre_shared_key_changes_while_the_session_goes_on() {
    let (mut east, mut west) = (Side::new(1, "192.0.2.1:51820"), Side::new(2, "192.0.2.2:51820"));
    let (to_west, to_east) = (device(&mut east), device(&mut west));
    let mut wire = Wire::new();
    east.set(to_west, 2, config(&["10.2.0.0/16"], Some(9)), Some(west.address));
    west.set(to_east, 1, config(&["10.1.0.0/16"], Some(9)), None);
    let exchange = |east: &mut Side, west: &mut Side, wire: &mut Wire, times| {
        east.send(to_west, &east_packet(), wire);
        settle(east, west, wire);
        west.send(to_east, &west_packet(), wire);
        settle(east, west, wire);
        assert_eq!((west.delivered.len(), east.delivered.len()), (times, times));
    };
    exchange(&mut east, &mut west, &mut wire, 1);
    // East first: the new key reaches nobody yet, and packets go on under the old one.
    east.set(to_west, 2, config(&["10.2.0.0/16"], Some(10)), None);
    east.poll(&mut wire, Instant::now());
    settle(&mut east, &mut west, &mut wire);
    exchange(&mut east, &mut west, &mut wire, 2);
    west.set(to_east, 1, config(&["10.1.0.0/16"], Some(10)), None);
    exchange(&mut east, &mut west, &mut wire, 3);
    exchange(&mut east, &mut west, &mut wire, 4);
    for (side, device, peer) in [(&east, to_west, 2), (&west, to_east, 1)] {
        let facts = side.engine.peer_facts(device, key(peer).public()).unwrap();
        assert!(facts.since_handshake.is_some(), "{facts:?}");
    }
}

#[test]
fn of_a_thousand_peers_each_has_its_own_session_and_all_go_without_a_trace() {
    let mut hub = Side::new(1, "192.0.2.1:51820");
    let at_hub = device(&mut hub);
    let mut wire = Wire::new();
    for number in 0u16..1000 {
        let [high, low] = number.to_be_bytes();
        // The lowest bits of the first byte do not count (RFC 7748, 5).
        let mut seed = [7; 32];
        seed[1..3].copy_from_slice(&[high, low]);
        let key_of_spoke = PrivateKey::from_bytes(seed);
        let allowed = config(&[&format!("10.9.{high}.{low}/32")], None);
        assert!(hub.engine.set_peer(at_hub, key_of_spoke.public(), allowed, Instant::now()));
        // More initiations a second, and a cookie is asked for.
        if number % 13 != 0 {
            continue;
        }
        let mut spoke = Side::new(2, &format!("198.51.100.1:{}", 1000 + number));
        spoke.engine.set_keys([(KeySlot::First, key_of_spoke)].into());
        let id = device(&mut spoke);
        spoke.set(id, 1, config(&["0.0.0.0/0"], None), Some(hub.address));
        let packet = packet_v4([10, 9, high, low], [10, 1, 0, 5], 9);
        spoke.send(id, &packet, &mut wire);
        settle(&mut hub, &mut spoke, &mut wire);
        assert_eq!(std::mem::take(&mut hub.delivered), [packet], "peer {number}");
    }
    assert_eq!(hub.engine.held()[0], 1000);
    assert_eq!(hub.engine.begun(), 1000_usize.div_ceil(13), "only who has spoken has room for sessions");
    hub.engine.remove_device(at_hub);
    assert!(hub.engine.is_empty());
}

proptest! {
    #[test]
    fn any_datagram_at_all_is_taken_without_a_panic(kind in 0u8..6, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_, _, mut west, _, mut wire) = pair();
        let mut datagram = vec![kind, 0, 0, 0];
        datagram.extend(body);
        west.receive("203.0.113.1:1".parse().unwrap(), &datagram, &mut wire);
        prop_assert!(west.delivered.is_empty());
    }
}

/// An engine of east's in place of the one that it has, as another process would have it: with the other half of the indices.
fn successor(east: &Side, half: crate::Half) -> Side {
    let mut engine = Engine::in_half(half, 7, Instant::now());
    engine.set_keys([(KeySlot::First, key(1))].into());
    Side { engine, address: east.address, delivered: Vec::new(), dropped: Vec::new() }
}

#[test]
fn an_engine_takes_over_from_one_that_retires_and_each_packet_arrives_whichever_session_it_is_in() {
    use crate::{Addressee, Half, addressee};
    let mut old = Side::new(1, "192.0.2.1:51820");
    old.engine = successor(&old, Half::Lower).engine;
    let mut west = Side::new(2, "192.0.2.2:51820");
    let config = || tunnel(&key(2), Some("192.0.2.2:51820"), &["10.2.0.0/16"]);
    let to_west = old.configure("iw-west", config());
    let to_east = west.configure("iw-east", tunnel(&key(1), None, &["10.1.0.0/16"]));
    let mut wire = Vec::new();
    old.poll(&mut wire, Instant::now());
    settle(&mut old, &mut west, &mut wire);
    west.send(to_east, &west_packet(), &mut wire);
    let in_old_session = std::mem::take(&mut wire);

    old.engine.retire(true);
    let mut new = successor(&old, Half::Upper);
    let id = new.configure("iw-west", config());
    new.poll(&mut wire, Instant::now());
    settle(&mut new, &mut west, &mut wire);
    assert!(new.engine.facts()[&id].since_handshake.is_some());

    // The old one still sends, the new one does already.
    old.send(to_west, &east_packet(), &mut wire);
    new.send(id, &east_packet(), &mut wire);
    settle(&mut new, &mut west, &mut wire);
    assert_eq!(west.delivered, [east_packet(), east_packet()]);
    // What comes under either session says whose it is.
    west.send(to_east, &west_packet(), &mut wire);
    for (from, _, datagram) in in_old_session {
        assert_eq!(addressee(&datagram), Some(Addressee::Session(Half::Lower)));
        old.receive(from, &datagram, &mut Vec::new());
    }
    for (from, _, datagram) in std::mem::take(&mut wire) {
        assert_eq!(addressee(&datagram), Some(Addressee::Session(Half::Upper)));
        new.receive(from, &datagram, &mut Vec::new());
    }
    assert_eq!((&old.delivered[..], &new.delivered[..]), (&[west_packet()][..], &[west_packet()][..]));
}

#[test]
fn a_retired_engine_begins_nothing_and_answers_nothing_until_it_is_called_back() {
    let (mut east, to_west, mut west, to_east, mut wire) = pair();
    east.engine.retire(true);
    let later = |s| Instant::now() + Duration::from_secs(s);
    east.tick(&mut wire, later(1));
    east.send(to_west, &east_packet(), &mut wire);
    assert_eq!((wire.len(), east.dropped.pop()), (0, Some(Drop::Retired)));
    let to_east_config = tunnel(&key(1), Some("192.0.2.1:51820"), &["10.1.0.0/16"]);
    west.configure("iw-east", to_east_config);
    west.tick(&mut wire, later(1));
    settle(&mut east, &mut west, &mut wire);
    assert_eq!(
        (east.dropped.pop(), west.engine.facts()[&to_east].since_handshake),
        (Some(Drop::Retired), None)
    );
    east.engine.retire(false);
    east.tick(&mut wire, later(2));
    settle(&mut east, &mut west, &mut wire);
    assert!(west.engine.facts()[&to_east].since_handshake.is_some());
}
