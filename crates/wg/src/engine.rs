// SPDX-License-Identifier: Apache-2.0
//! The engine: every tunnel of a node behind one port.

mod configure;
mod timers;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use isthmus_model::dataplane::KeySlot;
use isthmus_model::ids::LinkName;

use crate::address::{destination, within};
use crate::key::{PrivateKey, PublicKey};
use crate::tunnel::{OwnKey, TunnelEntry};

/// How often the timers of the protocol are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Packets up to here are padded to 16 bytes (WireGuard paper, 5.4.6); larger ones could exceed the path by it.
const PADDED_UP_TO: usize = 1280;

/// Of a session's index, what is the tunnel's.
const INDEX_MASK: u32 = 0x00ff_ffff;

/// A tunnel within one engine; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId(u32);

impl TunnelId {
    /// As a number, for an event loop that needs one.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// What shall be done after an event was handled.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<'b> {
    /// Nothing.
    Nothing,
    /// Send the datagram.
    Send {
        /// Where to.
        to: SocketAddr,
        /// What.
        datagram: &'b [u8],
    },
    /// Write the packet to the tunnel's device.
    Deliver {
        /// Whose device.
        tunnel: TunnelId,
        /// An IP packet, its source checked.
        packet: &'b [u8],
    },
    /// Nothing, and something was dropped.
    Dropped(Drop),
}

/// Why a packet or datagram went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drop {
    /// Not a message of the protocol, not an IP packet.
    Malformed,
    /// Nobody that we have a tunnel to, or the tunnel is gone.
    Unknown,
    /// The inner source (inbound) or destination (outbound) is not allowed for the tunnel.
    NotAllowed,
    /// A message authentication code, a signature of the time, or a tag is wrong.
    Forged,
    /// Seen already, or too old.
    Replayed,
    /// Nothing is known of where the peer is.
    NoEndpoint,
}

/// What is known of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelFacts {
    /// Its name.
    pub name: LinkName,
    /// Where packets go now.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last completed handshake, while a session is there.
    pub since_handshake: Option<Duration>,
    /// Bytes of inner packets received.
    pub received_bytes: u64,
    /// Bytes of inner packets sent.
    pub sent_bytes: u64,
}

/// Every tunnel of a node. Not shared between threads: whoever owns it calls it.
pub struct Engine {
    /// Ours: one, or two while the key rotates.
    own: BTreeMap<KeySlot, OwnKey>,
    tunnels: BTreeMap<TunnelId, TunnelEntry>,
    /// Tunnels by the upper part of their session indices.
    indices: BTreeMap<u32, TunnelId>,
    /// Tunnels whose queue of waiting packets can go out.
    flushable: VecDeque<TunnelId>,
    /// Tunnels whose timers are to be looked at in this tick.
    due: VecDeque<TunnelId>,
    next_tick: Instant,
    next_index: u32,
    next_id: u32,
}

impl Engine {
    /// An engine without tunnels, with a key in the first slot. `first_index` should be random, so that the indices on the
    /// wire say nothing.
    pub fn new(key: PrivateKey, first_index: u32, now: Instant) -> Self {
        Self {
            own: BTreeMap::from([(KeySlot::First, OwnKey::new(key))]),
            tunnels: BTreeMap::new(),
            indices: BTreeMap::new(),
            flushable: VecDeque::new(),
            due: VecDeque::new(),
            next_tick: now + TICK,
            next_index: first_index & INDEX_MASK,
            next_id: 0,
        }
    }

    /// The tunnel of this name.
    pub fn id_of(&self, name: &LinkName) -> Option<TunnelId> {
        self.tunnels.iter().find(|(_, tunnel)| tunnel.name == *name).map(|(id, _)| *id)
    }

    /// Takes an IP packet from the tunnel's device. `buffer` holds it and [`crate::OVERHEAD_BYTES`] more, padding included
    /// (16 bytes), and at least [`crate::MESSAGE_BYTES`].
    pub fn handle_packet<'b>(
        &mut self,
        id: TunnelId,
        packet: &[u8],
        buffer: &'b mut [u8],
        now: Instant,
    ) -> Action<'b> {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return Action::Dropped(Drop::Unknown) };
        let Some(to) = destination(packet) else { return Action::Dropped(Drop::Malformed) };
        if !within(&tunnel.allowed, to) {
            return Action::Dropped(Drop::NotAllowed);
        }
        let Some(endpoint) = tunnel.endpoint else { return Action::Dropped(Drop::NoEndpoint) };
        tunnel.sent_bytes += packet.len() as u64;
        tunnel.last_sent = now;
        let padded_len = packet.len().next_multiple_of(16);
        let result = if padded_len <= PADDED_UP_TO && padded_len != packet.len() {
            let mut padded = [0; PADDED_UP_TO];
            padded[..packet.len()].copy_from_slice(packet);
            tunnel.tunn.encapsulate(&padded[..padded_len], buffer)
        } else {
            tunnel.tunn.encapsulate(packet, buffer)
        };
        match result {
            TunnResult::WriteToNetwork(datagram) => Action::Send { to: endpoint, datagram },
            TunnResult::Err(error) => Action::Dropped(drop_reason(&error)),
            _ => Action::Nothing,
        }
    }

    /// Takes a datagram from the port. `buffer` is at least as long as the datagram and [`crate::MESSAGE_BYTES`].
    pub fn handle_datagram<'b>(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        buffer: &'b mut [u8],
    ) -> Action<'b> {
        let message = match Tunn::parse_incoming_packet(datagram) {
            Ok(message) => message,
            Err(_) => return Action::Dropped(Drop::Malformed),
        };
        match message {
            Packet::HandshakeInit(_) => self.handle_initiation(from, datagram, buffer),
            Packet::HandshakeResponse(p) => self.handle_session(p.receiver_idx, true, from, datagram, buffer),
            Packet::PacketCookieReply(p) => {
                self.handle_session(p.receiver_idx, false, from, datagram, buffer)
            }
            Packet::PacketData(p) => self.handle_session(p.receiver_idx, true, from, datagram, buffer),
        }
    }

    /// What is known of each tunnel, by its identifier.
    pub fn facts(&self) -> BTreeMap<TunnelId, TunnelFacts> {
        let facts = self.tunnels.iter().map(|(id, entry)| {
            let facts = TunnelFacts {
                name: entry.name.clone(),
                endpoint: entry.endpoint,
                since_handshake: entry.tunn.time_since_last_handshake(),
                received_bytes: entry.received_bytes,
                sent_bytes: entry.sent_bytes,
            };
            (*id, facts)
        });
        facts.collect()
    }

    fn handle_initiation<'b>(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        buffer: &'b mut [u8],
    ) -> Action<'b> {
        let mut found = None;
        for (slot, own) in &self.own {
            let mut cookie = [0; 64];
            match own.gate.verify_packet(Some(from.ip()), datagram, &mut cookie) {
                Ok(Packet::HandshakeInit(initiation)) => {
                    let half = parse_handshake_anon(&own.private.secret(), &own.public.point(), &initiation);
                    let Ok(half) = half else { return Action::Dropped(Drop::Forged) };
                    found = Some((*slot, PublicKey::from_bytes(half.peer_static_public)));
                    break;
                }
                Err(TunnResult::WriteToNetwork(reply)) => {
                    let datagram = &mut buffer[..reply.len()];
                    datagram.copy_from_slice(reply);
                    return Action::Send { to: from, datagram };
                }
                // Made for another key of ours, or for nobody here.
                _ => {}
            }
        }
        let Some((slot, peer)) = found else { return Action::Dropped(Drop::Forged) };
        let mut tunnels = self.tunnels.values_mut();
        let Some(tunnel) = tunnels.find(|tunnel| tunnel.key_slot == slot && tunnel.peer == peer) else {
            return Action::Dropped(Drop::Unknown);
        };
        match tunnel.tunn.decapsulate(Some(from.ip()), datagram, buffer) {
            TunnResult::WriteToNetwork(datagram) => {
                // A known endpoint stays: an initiation can be a recording. What follows in the session moves it.
                tunnel.endpoint.get_or_insert(from);
                Action::Send { to: from, datagram }
            }
            TunnResult::Err(error) => Action::Dropped(drop_reason(&error)),
            _ => Action::Nothing,
        }
    }

    fn handle_session<'b>(
        &mut self,
        receiver: u32,
        moves: bool,
        from: SocketAddr,
        datagram: &[u8],
        buffer: &'b mut [u8],
    ) -> Action<'b> {
        let known = self.indices.get(&(receiver >> 8)).and_then(|id| Some((*id, self.tunnels.get_mut(id)?)));
        let Some((id, tunnel)) = known else { return Action::Dropped(Drop::Unknown) };
        let (packet, source) = match tunnel.tunn.decapsulate(Some(from.ip()), datagram, buffer) {
            TunnResult::Err(error) => return Action::Dropped(drop_reason(&error)),
            TunnResult::WriteToTunnelV4(packet, source) => (packet, Some(IpAddr::V4(source))),
            TunnResult::WriteToTunnelV6(packet, source) => (packet, Some(IpAddr::V6(source))),
            TunnResult::WriteToNetwork(reply) => (reply, None),
            TunnResult::Done => (&mut [][..], None),
        };
        if !tunnel.ready && tunnel.refresh() {
            self.flushable.push_back(id);
        }
        if moves {
            tunnel.endpoint = Some(from);
        }
        match source {
            // The length in its header can be less than a header (the session hands over what that says).
            Some(_) if destination(packet).is_none() => Action::Dropped(Drop::Malformed),
            Some(source) if within(&tunnel.allowed, source) => {
                tunnel.received_bytes += packet.len() as u64;
                Action::Deliver { tunnel: id, packet }
            }
            Some(_) => Action::Dropped(Drop::NotAllowed),
            None if packet.is_empty() => Action::Nothing,
            None => Action::Send { to: from, datagram: packet },
        }
    }
}

fn drop_reason(error: &WireGuardError) -> Drop {
    match error {
        WireGuardError::DuplicateCounter
        | WireGuardError::InvalidCounter
        | WireGuardError::WrongTai64nTimestamp => Drop::Replayed,
        WireGuardError::InvalidMac | WireGuardError::InvalidAeadTag | WireGuardError::WrongKey => {
            Drop::Forged
        }
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex | WireGuardError::UnexpectedPacket => {
            Drop::Unknown
        }
        _ => Drop::Malformed,
    }
}
