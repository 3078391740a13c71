// SPDX-License-Identifier: Apache-2.0
//! The engine: every peer of every device behind one port.

mod indices;
mod peers;
mod timers;
mod tunnels;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use isthmus_model::dataplane::KeySlot;
use slab::Slab;

use crate::address::destination;
use crate::allowed::AllowedIps;
use crate::gate::Admission;
use crate::key::PublicKey;
use crate::peer::{OwnKey, Peer, PeerId};

pub use indices::{Addressee, Half, addressee};
pub use tunnels::TunnelFacts;

use indices::Indices;

/// How often the timers of the protocol are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Packets up to here are padded to 16 bytes (WireGuard paper, 5.4.6); larger ones could exceed the path by it.
const PADDED_UP_TO: usize = 1280;

/// Bytes of a cookie reply (WireGuard paper, 5.4.7).
const COOKIE_BYTES: usize = 64;
/// Counters from here on are refused (6.1 of the paper): the replay window of a session ends before them.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// A device within one engine; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(u32);

impl DeviceId {
    /// As a number, for an event loop that needs one.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// What a datagram to a session's index is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Response,
    Cookie,
    Data,
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
    /// Write the packet to the device.
    Deliver {
        /// Which device.
        device: DeviceId,
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
    /// Nobody that we know, or the device is gone.
    Unknown,
    /// The inner source (inbound) or destination (outbound) is not allowed for the peer.
    NotAllowed,
    /// A message authentication code, a signature of the time, or a tag is wrong.
    Forged,
    /// Seen already, or too old.
    Replayed,
    /// Nothing is known of where the peer is.
    NoEndpoint,
    /// There is no session, and whoever takes over asks for one.
    Retired,
    /// More handshakes of its address than are worked on in a second.
    TooMany,
}

/// What is known of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerFacts {
    /// Where packets go now.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last completed handshake, while a session is there.
    pub since_handshake: Option<Duration>,
    /// When the last handshake was completed, also of a session that is over.
    pub handshake: Option<Instant>,
    /// Bytes of inner packets received.
    pub received_bytes: u64,
    /// Bytes of inner packets sent.
    pub sent_bytes: u64,
}

/// A device: what leads out of it.
struct Device {
    /// Which of our keys its peers know.
    slot: KeySlot,
    /// Sessions are asked for whether or not there is something to send.
    eager: bool,
    allowed: AllowedIps,
}

/// Every device of a process and every peer. Not shared between threads: whoever owns it calls it.
pub struct Engine {
    /// Ours: none yet, one, or two while the key rotates.
    own: BTreeMap<KeySlot, OwnKey>,
    devices: BTreeMap<DeviceId, Device>,
    peers: Slab<Peer>,
    /// Peers by the key of ours that they know and by their own.
    by_key: BTreeMap<(KeySlot, PublicKey), PeerId>,
    /// Peers by the upper part of their session indices.
    indices: HashMap<u32, PeerId>,
    /// What was asked of them last: messages of one session follow one another.
    last_index: Option<(u32, PeerId)>,
    /// Peers whose queue of waiting packets can go out.
    flushable: VecDeque<PeerId>,
    /// Peers whose timers are to be looked at in this tick.
    due: VecDeque<PeerId>,
    /// Devices by name, each with one peer.
    tunnels: tunnels::Tunnels,
    /// Another engine takes over: nothing new begins here.
    retired: bool,
    next_tick: Instant,
    free: Indices,
    next_device: u32,
}

impl Engine {
    /// An engine without keys, devices or peers. `first_index` should be random, so that the indices on the wire say nothing.
    pub fn new(first_index: u32, now: Instant) -> Self {
        Self::with_indices(Indices::new(None, first_index), now)
    }

    /// As [`Self::new`], with the indices of one half alone: another engine may serve the same port with the other.
    pub fn in_half(half: Half, first_index: u32, now: Instant) -> Self {
        Self::with_indices(Indices::new(Some(half), first_index), now)
    }

    fn with_indices(free: Indices, now: Instant) -> Self {
        Self {
            own: BTreeMap::new(),
            devices: BTreeMap::new(),
            peers: Slab::new(),
            by_key: BTreeMap::new(),
            indices: HashMap::new(),
            last_index: None,
            flushable: VecDeque::new(),
            due: VecDeque::new(),
            tunnels: tunnels::Tunnels::default(),
            retired: false,
            next_tick: now + TICK,
            free,
            next_device: 0,
        }
    }

    /// Begins nothing new, or does again: a retired engine carries packets in the sessions that live, and asks for none, answers none and
    /// sends no keepalives, as another engine does all that.
    pub fn retire(&mut self, retired: bool) {
        self.retired = retired;
    }

    /// Takes an IP packet from the device. `buffer` holds it and [`crate::OVERHEAD_BYTES`] more, padding included
    /// (16 bytes), and at least [`crate::MESSAGE_BYTES`].
    pub fn handle_packet<'b>(
        &mut self,
        device: DeviceId,
        packet: &[u8],
        buffer: &'b mut [u8],
        now: Instant,
    ) -> Action<'b> {
        let Some(device) = self.devices.get_mut(&device) else { return Action::Dropped(Drop::Unknown) };
        let Some(to) = destination(packet) else { return Action::Dropped(Drop::Malformed) };
        let known = device.allowed.peer_of(to).and_then(|id| self.peers.get_mut(id.0));
        let Some(peer) = known else { return Action::Dropped(Drop::NotAllowed) };
        let Some(endpoint) = peer.endpoint else { return Action::Dropped(Drop::NoEndpoint) };
        if self.retired && !peer.can_send() {
            return Action::Dropped(Drop::Retired);
        }
        peer.sent_bytes += packet.len() as u64;
        peer.last_sent = now;
        let Some(tunn) = peer.sender(&self.own) else { return Action::Dropped(Drop::Unknown) };
        let padded_len = packet.len().next_multiple_of(16);
        let result = if padded_len <= PADDED_UP_TO && padded_len != packet.len() {
            let mut padded = [0; PADDED_UP_TO];
            padded[..packet.len()].copy_from_slice(packet);
            tunn.encapsulate(&padded[..padded_len], buffer)
        } else {
            tunn.encapsulate(packet, buffer)
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
        now: Instant,
    ) -> Action<'b> {
        let message = match Tunn::parse_incoming_packet(datagram) {
            Ok(message) => message,
            Err(_) => return Action::Dropped(Drop::Malformed),
        };
        match message {
            Packet::HandshakeInit(_) | Packet::HandshakeResponse(_) if self.retired => {
                Action::Dropped(Drop::Retired)
            }
            Packet::HandshakeInit(_) => self.handle_initiation(from, datagram, buffer),
            Packet::HandshakeResponse(p) => {
                self.handle_session((p.receiver_idx, Kind::Response), from, datagram, buffer, now)
            }
            Packet::PacketCookieReply(p) => {
                self.handle_session((p.receiver_idx, Kind::Cookie), from, datagram, buffer, now)
            }
            Packet::PacketData(p) => {
                self.handle_session((p.receiver_idx, Kind::Data), from, datagram, buffer, now)
            }
        }
    }

    fn handle_initiation<'b>(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        buffer: &'b mut [u8],
    ) -> Action<'b> {
        let mut found = None;
        for (slot, own) in &mut self.own {
            let mut cookie = [0; COOKIE_BYTES];
            match own.initiations.admit(from.ip(), datagram, &mut cookie) {
                Admission::Admitted(Packet::HandshakeInit(initiation)) => {
                    let half = parse_handshake_anon(&own.private.secret(), &own.public.point(), &initiation);
                    let Ok(half) = half else { return Action::Dropped(Drop::Forged) };
                    found = Some((*slot, PublicKey::from_bytes(half.peer_static_public)));
                    break;
                }
                Admission::Ask(reply) => return ask(from, reply, buffer),
                Admission::TooMany => return Action::Dropped(Drop::TooMany),
                // Made for another key of ours, or for nobody here.
                Admission::Admitted(_) | Admission::Forged => {}
            }
        }
        let Some((slot, peer)) = found else { return Action::Dropped(Drop::Forged) };
        let known = self.by_key.get(&(slot, peer)).and_then(|id| self.peers.get_mut(id.0));
        let Some(peer) = known else { return Action::Dropped(Drop::Unknown) };
        let Some(tunn) = peer.begin(&self.own) else { return Action::Dropped(Drop::Unknown) };
        match tunn.decapsulate(Some(from.ip()), datagram, buffer) {
            TunnResult::WriteToNetwork(datagram) => {
                // A known endpoint stays: an initiation can be a recording. What follows in the session moves it.
                peer.endpoint.get_or_insert(from);
                Action::Send { to: from, datagram }
            }
            TunnResult::Err(error) => Action::Dropped(drop_reason(&error)),
            _ => Action::Nothing,
        }
    }

    fn handle_session<'b>(
        &mut self,
        (receiver, kind): (u32, Kind),
        from: SocketAddr,
        datagram: &[u8],
        buffer: &'b mut [u8],
        now: Instant,
    ) -> Action<'b> {
        if kind == Kind::Data && counter(datagram) >= REJECT_AFTER_MESSAGES {
            return Action::Dropped(Drop::Replayed);
        }
        let index = receiver >> 8;
        let known = match self.last_index {
            Some((last, id)) if last == index => Some(id),
            _ => self.indices.get(&index).copied(),
        };
        self.last_index = known.map(|id| (index, id));
        let known = known.and_then(|id| Some((id, self.peers.get_mut(id.0)?)));
        let Some((id, peer)) = known else { return Action::Dropped(Drop::Unknown) };
        let slot = peer.slot;
        let Some(tunn) = peer.receiver(index, kind == Kind::Data) else {
            return Action::Dropped(Drop::Unknown);
        };
        if kind == Kind::Response
            && let Some(own) = self.own.get_mut(&slot)
        {
            let mut cookie = [0; COOKIE_BYTES];
            match own.responses.admit(from.ip(), datagram, &mut cookie) {
                Admission::Admitted(_) => {}
                Admission::Ask(reply) => return ask(from, reply, buffer),
                Admission::Forged => return Action::Dropped(Drop::Forged),
                Admission::TooMany => return Action::Dropped(Drop::TooMany),
            }
        }
        let (packet, source) = match tunn.decapsulate(Some(from.ip()), datagram, buffer) {
            TunnResult::Err(error) => return Action::Dropped(drop_reason(&error)),
            TunnResult::WriteToTunnelV4(packet, source) => (packet, Some(IpAddr::V4(source))),
            TunnResult::WriteToTunnelV6(packet, source) => (packet, Some(IpAddr::V6(source))),
            TunnResult::WriteToNetwork(reply) => (reply, None),
            TunnResult::Done => (&mut [][..], None),
        };
        if !peer.ready && peer.refresh(now) {
            self.flushable.push_back(id);
        }
        // A cookie is not proof of a session.
        if kind != Kind::Cookie {
            peer.endpoint = Some(from);
        }
        let Some(source) = source else {
            return if packet.is_empty() {
                Action::Nothing
            } else {
                Action::Send { to: from, datagram: packet }
            };
        };
        // The length in its header can be less than a header (the session hands over what that says).
        if destination(packet).is_none() {
            return Action::Dropped(Drop::Malformed);
        }
        let Some(device) = self.devices.get_mut(&peer.device) else { return Action::Dropped(Drop::Unknown) };
        if device.allowed.peer_of(source) != Some(id) {
            return Action::Dropped(Drop::NotAllowed);
        }
        peer.received_bytes += packet.len() as u64;
        Action::Deliver { device: peer.device, packet }
    }
}

/// Sends a cookie.
fn ask<'b>(to: SocketAddr, reply: &[u8], buffer: &'b mut [u8]) -> Action<'b> {
    let datagram = &mut buffer[..reply.len()];
    datagram.copy_from_slice(reply);
    Action::Send { to, datagram }
}

/// The counter of a data message, which has been seen to be one.
fn counter(datagram: &[u8]) -> u64 {
    datagram.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes)
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
