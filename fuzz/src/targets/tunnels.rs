// SPDX-License-Identifier: Apache-2.0
//! Two WireGuard engines that lead to each other, without a wire between them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use isthmus_model::dataplane::{KeySlot, Tunnel};
use isthmus_wg::{Action, DeviceId, Drop, Engine, MESSAGE_BYTES, OVERHEAD_BYTES, PrivateKey, TunnelFacts};

const EAST_KEY: [u8; 32] = [1; 32];
const WEST_KEY: [u8; 32] = [2; 32];

/// What an engine wants done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Done {
    Nothing,
    Send(Vec<u8>),
    Deliver(Vec<u8>),
    Dropped(Drop),
}

pub(super) struct Side {
    engine: Engine,
    id: DeviceId,
    pub(super) address: SocketAddr,
    pub(super) allowed: Vec<IpNet>,
}

/// East takes packets of 10.2.0.0/16 and fd00:2::/64 from west; west takes and sends anything.
pub(super) fn two_sides() -> [Side; 2] {
    let east =
        Side::new(EAST_KEY, "192.0.2.1:51820", WEST_KEY, "192.0.2.2:51820", &["10.2.0.0/16", "fd00:2::/64"]);
    let west = Side::new(WEST_KEY, "192.0.2.2:51820", EAST_KEY, "192.0.2.1:51820", &["0.0.0.0/0", "::/0"]);
    [east, west]
}

/// Has the two agree on a session that both can send with.
pub(super) fn shake_hands(east: &mut Side, west: &mut Side) {
    let Done::Send(initiation) = west.send(&packet_to_east()) else { panic!("no handshake begins") };
    let Done::Send(response) = east.receive(west.address, &initiation) else { panic!("no response") };
    let Done::Send(confirmation) = west.receive(east.address, &response) else { panic!("no confirmation") };
    assert_eq!(east.receive(west.address, &confirmation), Done::Nothing);
    west.due();
}

/// What west sends first.
pub(super) fn packet_to_east() -> Vec<u8> {
    let mut packet = vec![0; 60];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 60]);
    packet[12..20].copy_from_slice(&[10, 2, 0, 7, 10, 1, 0, 5]);
    packet
}

impl Side {
    fn new(own: [u8; 32], at: &str, peer: [u8; 32], peer_at: &str, allowed: &[&str]) -> Self {
        let now = Instant::now();
        let mut engine = Engine::new(u32::from(own[0]) * 77, now);
        engine.set_keys([(KeySlot::First, PrivateKey::from_bytes(own))].into());
        let name: isthmus_model::ids::LinkName = "iw-0".parse().expect("a name");
        let allowed: Vec<IpNet> = allowed.iter().map(|net| net.parse().expect("a network")).collect();
        let tunnel = Tunnel {
            peer: "peer".parse().expect("a name"),
            peer_key: PrivateKey::from_bytes(peer).public().to_string(),
            endpoint: Some(peer_at.parse().expect("an endpoint")),
            allowed: allowed.iter().copied().collect(),
            keepalive_s: 0,
            key_slot: KeySlot::First,
            lane: 0,
        };
        assert_eq!(engine.configure(&BTreeMap::from([(name.clone(), tunnel)]), now), []);
        let id = engine.id_of(&name).expect("it runs");
        Self { engine, id, address: at.parse().expect("an endpoint"), allowed }
    }

    /// Takes a packet from the device, with no more room than is asked for.
    pub(super) fn send(&mut self, packet: &[u8]) -> Done {
        let room = (packet.len().next_multiple_of(16) + OVERHEAD_BYTES).max(MESSAGE_BYTES);
        let mut buffer = vec![0; room];
        done(self.engine.handle_packet(self.id, packet, &mut buffer, Instant::now()))
    }

    /// Takes a datagram from the port, with no more room than is asked for.
    pub(super) fn receive(&mut self, from: SocketAddr, datagram: &[u8]) -> Done {
        let mut buffer = vec![0; datagram.len().max(MESSAGE_BYTES)];
        let done = done(self.engine.handle_datagram(from, datagram, &mut buffer, Instant::now()));
        match &done {
            Done::Send(answer) => assert!(answer.len() <= datagram.len(), "more is sent than came"),
            Done::Deliver(packet) => {
                assert!(packet.len() + OVERHEAD_BYTES <= datagram.len(), "more comes out than went in");
                self.may_come_out(packet);
            }
            Done::Nothing | Done::Dropped(_) => {}
        }
        done
    }

    /// Everything else that is to be sent.
    pub(super) fn due(&mut self) -> Vec<Vec<u8>> {
        let (mut sent, mut buffer) = (Vec::new(), vec![0; 65_600]);
        while let Some((_, datagram)) = self.engine.poll_transmit(&mut buffer, Instant::now()) {
            sent.push(datagram.to_vec());
            assert!(sent.len() < 1000, "it sends without end");
        }
        sent
    }

    /// So much time passes for the engine's own timers.
    pub(super) fn tick(&mut self, at: Instant) -> Vec<Vec<u8>> {
        self.engine.handle_timeout(at);
        assert!(self.engine.poll_timeout() > at, "it would be woken without end");
        self.due()
    }

    pub(super) fn facts(&self) -> TunnelFacts {
        self.engine.facts().remove(&self.id).expect("the tunnel stays")
    }

    /// Whether the source is one that the tunnel may bring. A header may say that the packet is shorter than itself: then so
    /// much comes out, and the kernel takes it for no packet.
    fn may_come_out(&self, packet: &[u8]) {
        if packet.len() < 40 {
            return;
        }
        let source = source(packet).expect("an IP packet");
        assert!(self.allowed.iter().any(|net| net.contains(&source)), "{source} came out");
    }
}

/// The source of what can be an IP packet.
pub(super) fn source(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?)),
        _ => None,
    }
}

fn done(action: Action<'_>) -> Done {
    match action {
        Action::Nothing => Done::Nothing,
        Action::Send { datagram, .. } => Done::Send(datagram.to_vec()),
        Action::Deliver { packet, .. } => Done::Deliver(packet.to_vec()),
        Action::Dropped(reason) => Done::Dropped(reason),
    }
}
