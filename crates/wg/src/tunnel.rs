// SPDX-License-Identifier: Apache-2.0
//! A tunnel to one remote gateway, and the pairings of keys that it can speak with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use ipnet::IpNet;
use isthmus_model::ids::LinkName;

use crate::engine::TunnelId;
use crate::key::{PrivateKey, PublicKey};

/// A key that was replaced stays usable for this long after its successor carries traffic: packets are still on the way.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// A key that a peer replaced is forgotten after this long in any case (REJECT_AFTER_TIME of the protocol).
pub(crate) const PEER_KEY_LIMIT: Duration = Duration::from_secs(180);
/// Initiations a second that are answered without asking for a cookie.
const INITIATIONS_PER_S: u64 = 100;

/// One of our own keys.
pub(crate) struct OwnKey {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
    /// Guards the port: asks for a cookie under load, before any Curve25519 work.
    pub(crate) gate: RateLimiter,
    /// What the sessions use, as the gate has already counted the message.
    ungated: Arc<RateLimiter>,
}

impl OwnKey {
    pub(crate) fn new(private: PrivateKey) -> Self {
        let public = private.public();
        let gate = RateLimiter::new(&public.point(), INITIATIONS_PER_S);
        let ungated = Arc::new(RateLimiter::new(&public.point(), u64::MAX));
        Self { private, public, gate, ungated }
    }
}

/// The sessions between one key of ours and one key of the peer.
pub(crate) struct Pairing {
    pub(crate) tunnel: TunnelId,
    pub(crate) own: PublicKey,
    pub(crate) peer: PublicKey,
    pub(crate) tunn: Tunn,
    /// Since when packets can be sent with it.
    pub(crate) ready_since: Option<Instant>,
}

impl Pairing {
    /// `index` has 24 bits: the upper part of the session indices on the wire.
    pub(crate) fn new(tunnel: TunnelId, own: &OwnKey, peer: PublicKey, index: u32) -> Self {
        let limiter = Some(Arc::clone(&own.ungated));
        let tunn = Tunn::new(own.private.secret(), peer.point(), None, None, index, limiter);
        Self { tunnel, own: own.public, peer, tunn, ready_since: None }
    }

    /// Looks whether packets can be sent with it; true if that has just begun.
    pub(crate) fn refresh(&mut self, now: Instant) -> bool {
        let ready = self.tunn.time_since_last_handshake().is_some();
        let begins = ready && self.ready_since.is_none();
        self.ready_since = if ready { self.ready_since.or(Some(now)) } else { None };
        begins
    }

    pub(crate) fn ready_for(&self, now: Instant) -> Duration {
        self.ready_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// What the engine keeps of a tunnel.
pub(crate) struct TunnelEntry {
    pub(crate) name: LinkName,
    pub(crate) allowed: Vec<IpNet>,
    pub(crate) keepalive: Option<Duration>,
    /// The peer's key of today.
    pub(crate) peer: PublicKey,
    /// When the peer's key changed last.
    pub(crate) peer_since: Instant,
    /// Where it was announced to listen.
    pub(crate) announced: Option<SocketAddr>,
    /// Where packets go.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Indices of pairings, oldest first.
    pub(crate) pairings: Vec<u32>,
    /// The pairing that packets are sent with.
    pub(crate) sending: u32,
    pub(crate) last_sent: Instant,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}
