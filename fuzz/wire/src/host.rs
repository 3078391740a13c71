// SPDX-License-Identifier: Apache-2.0
//! One engine with one device and one peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use isthmus_model::dataplane::KeySlot;
use isthmus_wg::{
    Action, DeviceId, Drop, Engine, PeerConfig, PeerFacts, PresharedKey, PrivateKey, PublicKey,
};

/// Room for any packet of these tests.
const BUFFER: usize = 2048;

/// How a device asks for sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// At once and whenever there is none, as a gateway's.
    Eager,
    /// When there is something to send, as any other WireGuard's.
    Standard,
}

/// A datagram that an engine sends.
pub(crate) struct Sent {
    pub(crate) to: SocketAddr,
    pub(crate) datagram: Vec<u8>,
}

/// One end.
pub struct Host {
    engine: Engine,
    device: DeviceId,
    peer: PublicKey,
    allowed: &'static str,
    /// Where it is.
    pub address: SocketAddr,
    /// Packets that came out, not looked at yet.
    pub(crate) delivered: Vec<Vec<u8>>,
    /// What went no further.
    pub dropped: BTreeMap<Drop, u64>,
}

impl Host {
    pub(crate) fn new(
        kind: Kind,
        own: u8,
        peer: u8,
        allowed: &'static str,
        address: &str,
        now: Instant,
    ) -> Self {
        let mut engine = Engine::new(u32::from(own) * 77, now);
        engine.set_keys([(KeySlot::First, PrivateKey::from_bytes([own; 32]))].into());
        let device = engine.add_device(KeySlot::First, kind == Kind::Eager);
        let peer = PrivateKey::from_bytes([peer; 32]).public();
        let address = address.parse().expect("an address");
        let mut host =
            Self { engine, device, peer, allowed, address, delivered: Vec::new(), dropped: BTreeMap::new() };
        host.set(None, None, now);
        host
    }

    /// The peer has this pre-shared key and this keepalive from now on.
    pub fn set(&mut self, preshared: Option<u8>, keepalive: Option<Duration>, now: Instant) {
        let allowed = [self.allowed.parse().expect("a network")].into();
        let preshared = preshared.map(|seed| PresharedKey::from_bytes([seed; 32]));
        assert!(self.engine.set_peer(
            self.device,
            self.peer,
            PeerConfig { preshared, allowed, keepalive },
            now
        ));
    }

    /// The peer is there.
    pub fn leads_to(&mut self, endpoint: SocketAddr) {
        self.engine.set_endpoint(self.device, self.peer, endpoint);
    }

    /// What is known of the peer.
    pub fn facts(&self) -> PeerFacts {
        self.engine.peer_facts(self.device, self.peer).expect("the peer stays")
    }

    pub(crate) fn send(&mut self, packet: &[u8], now: Instant) -> Vec<Sent> {
        let mut buffer = [0; BUFFER];
        let action = self.engine.handle_packet(self.device, packet, &mut buffer, now);
        self.note(outcome(action)).into_iter().collect()
    }

    pub(crate) fn receive(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Vec<Sent> {
        let mut buffer = [0; BUFFER];
        let action = self.engine.handle_datagram(from, datagram, &mut buffer, now);
        let mut sent: Vec<Sent> = self.note(outcome(action)).into_iter().collect();
        sent.extend(self.due(now));
        sent
    }

    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Sent> {
        self.engine.handle_timeout(now);
        assert!(self.engine.poll_timeout() > now, "it would be woken without end");
        self.due(now)
    }

    /// Everything else that is to be sent.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Sent> {
        let (mut sent, mut buffer) = (Vec::new(), [0; BUFFER]);
        while let Some((to, datagram)) = self.engine.poll_transmit(&mut buffer, now) {
            sent.push(Sent { to, datagram: datagram.to_vec() });
            assert!(sent.len() < 1000, "it sends without end");
        }
        sent
    }

    fn note(&mut self, outcome: Outcome) -> Option<Sent> {
        match outcome {
            Outcome::Nothing => None,
            Outcome::Sent(sent) => Some(sent),
            Outcome::Delivered(packet) => {
                self.delivered.push(packet);
                None
            }
            Outcome::Dropped(reason) => {
                *self.dropped.entry(reason).or_default() += 1;
                None
            }
        }
    }
}

/// An action that holds no buffer.
enum Outcome {
    Nothing,
    Sent(Sent),
    Delivered(Vec<u8>),
    Dropped(Drop),
}

fn outcome(action: Action<'_>) -> Outcome {
    match action {
        Action::Nothing => Outcome::Nothing,
        Action::Send { to, datagram } => Outcome::Sent(Sent { to, datagram: datagram.to_vec() }),
        Action::Deliver { packet, .. } => Outcome::Delivered(packet.to_vec()),
        Action::Dropped(reason) => Outcome::Dropped(reason),
    }
}
