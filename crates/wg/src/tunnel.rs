// SPDX-License-Identifier: Apache-2.0
//! Our keys, and a tunnel from one of them to one remote gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use ipnet::IpNet;
use isthmus_model::dataplane::KeySlot;
use isthmus_model::ids::LinkName;

use crate::key::{PrivateKey, PublicKey};

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

    /// Sessions with a peer. `index` has 24 bits.
    pub(crate) fn sessions(&self, peer: PublicKey, index: u32) -> Tunn {
        let limiter = Some(Arc::clone(&self.ungated));
        Tunn::new(self.private.secret(), peer.point(), None, None, index, limiter)
    }
}

/// What the engine keeps of a tunnel.
pub(crate) struct TunnelEntry {
    pub(crate) name: LinkName,
    pub(crate) allowed: Vec<IpNet>,
    pub(crate) keepalive: Option<Duration>,
    /// Which of our keys it has.
    pub(crate) key_slot: KeySlot,
    pub(crate) peer: PublicKey,
    /// Its sessions.
    pub(crate) tunn: Tunn,
    /// Packets can be sent.
    pub(crate) ready: bool,
    /// Where it was announced to listen.
    pub(crate) announced: Option<SocketAddr>,
    /// Where packets go.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) last_sent: Instant,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

impl TunnelEntry {
    /// Looks whether packets can be sent; true if that has just begun.
    pub(crate) fn refresh(&mut self) -> bool {
        let was = std::mem::replace(&mut self.ready, self.tunn.time_since_last_handshake().is_some());
        self.ready && !was
    }
}
