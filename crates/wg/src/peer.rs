// SPDX-License-Identifier: Apache-2.0
//! Our keys, and what is kept of a peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use ipnet::IpNet;
use isthmus_model::dataplane::KeySlot;

use crate::engine::DeviceId;
use crate::gate::{FREE_INITIATIONS, FREE_RESPONSES, Gate};
use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// How long sessions live (WireGuard paper, 6.2: REJECT-AFTER-TIME).
pub(crate) const REJECT_AFTER: Duration = Duration::from_secs(180);

/// A peer within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerId(pub(crate) usize);

/// One of our own keys.
pub(crate) struct OwnKey {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
    pub(crate) initiations: Gate,
    pub(crate) responses: Gate,
    /// What the sessions use, as a gate has already counted the message.
    ungated: Arc<RateLimiter>,
}

impl OwnKey {
    pub(crate) fn new(private: PrivateKey) -> Self {
        let public = private.public();
        let initiations = Gate::new(&public, FREE_INITIATIONS);
        let responses = Gate::new(&public, FREE_RESPONSES);
        let ungated = Arc::new(RateLimiter::new(&public.point(), u64::MAX));
        Self { private, public, initiations, responses, ungated }
    }

    /// What runs the sessions with a peer. `index` has 24 bits.
    fn tunn(&self, peer: PublicKey, preshared: Option<&PresharedKey>, index: u32) -> Tunn {
        let limiter = Some(Arc::clone(&self.ungated));
        let preshared = preshared.map(|key| *key.as_bytes());
        Tunn::new(self.private.secret(), peer.point(), preshared, None, index, limiter)
    }
}

/// What a peer is set to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerConfig {
    /// The pre-shared key (WireGuard paper, 5.2). Another one counts from the next handshake on.
    pub preshared: Option<PresharedKey>,
    /// Inner source addresses that may come out, inner destinations that may go in.
    pub allowed: BTreeSet<IpNet>,
    /// How often something is sent at least; none for never.
    pub keepalive: Option<Duration>,
}

/// Sessions under one pair of keys and one pre-shared key.
pub(crate) struct Sessions {
    /// Has room for eight sessions, 11 KB, and its making costs Curve25519 work: so it is made for the first message.
    tunn: Option<Box<Tunn>>,
    /// The upper 24 bits of their indices.
    pub(crate) index: u32,
}

impl Sessions {
    fn new(index: u32) -> Self {
        Self { tunn: None, index }
    }

    /// What runs them, if there was a message yet.
    pub(crate) fn begun(&mut self) -> Option<&mut Tunn> {
        self.tunn.as_deref_mut()
    }

    /// Time since the last completed handshake, while a session is there.
    pub(crate) fn since_handshake(&self) -> Option<Duration> {
        self.tunn.as_ref()?.time_since_last_handshake()
    }
}

/// What the engine keeps of a peer.
pub(crate) struct Peer {
    pub(crate) device: DeviceId,
    /// Which of our keys it knows.
    pub(crate) slot: KeySlot,
    pub(crate) key: PublicKey,
    pub(crate) config: PeerConfig,
    /// A session is asked for whether or not there is something to send.
    pub(crate) eager: bool,
    pub(crate) sessions: Sessions,
    /// Those under the pre-shared key before, and when the last of them is over. They carry packets until the new ones can.
    pub(crate) before: Option<(Sessions, Instant)>,
    /// Packets can be sent in [`Self::sessions`].
    pub(crate) ready: bool,
    /// Where packets go.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) last_sent: Instant,
    /// It is to hear from us in this tick.
    pub(crate) greet: bool,
    /// When the last handshake was completed.
    pub(crate) handshake: Option<Instant>,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

impl Peer {
    pub(crate) fn new(
        (device, eager): (DeviceId, bool),
        slot: KeySlot,
        (key, config): (PublicKey, PeerConfig),
        index: u32,
        now: Instant,
    ) -> Self {
        Self {
            device,
            slot,
            key,
            sessions: Sessions::new(index),
            config,
            eager,
            before: None,
            ready: false,
            endpoint: None,
            last_sent: now,
            greet: false,
            handshake: None,
            received_bytes: 0,
            sent_bytes: 0,
        }
    }

    /// Sets another pre-shared key, with sessions of its own beside those that live.
    pub(crate) fn reshare(&mut self, preshared: Option<PresharedKey>, index: u32, now: Instant) {
        self.config.preshared = preshared;
        let old = std::mem::replace(&mut self.sessions, Sessions::new(index));
        if std::mem::replace(&mut self.ready, false) {
            self.before = Some((old, now + REJECT_AFTER));
        }
    }

    /// The indices that datagrams find it by.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + use<> {
        let before = self.before.as_ref().map(|(sessions, _)| sessions.index);
        [Some(self.sessions.index), before].into_iter().flatten()
    }

    pub(crate) fn keepalive(&self) -> Option<Duration> {
        self.config.keepalive
    }

    /// The sessions that a message is for. Those of before take data and finish no handshake.
    pub(crate) fn receiver(&mut self, index: u32, data: bool) -> Option<&mut Tunn> {
        if self.sessions.index == index {
            return self.sessions.begun();
        }
        let before = self.before.as_mut().filter(|_| data).map(|(sessions, _)| sessions);
        before.filter(|sessions| sessions.index == index)?.begun()
    }

    /// The sessions under the key that it has now, which begin if they have not.
    pub(crate) fn begin(&mut self, own: &BTreeMap<KeySlot, OwnKey>) -> Option<&mut Tunn> {
        let Sessions { tunn, index } = &mut self.sessions;
        if tunn.is_none() {
            let made = own.get(&self.slot)?.tunn(self.key, self.config.preshared.as_ref(), *index);
            *tunn = Some(Box::new(made));
        }
        tunn.as_deref_mut()
    }

    /// The sessions that packets go out in. Those of before while one of them lives: nothing new begins under the key of before.
    pub(crate) fn sender(&mut self, own: &BTreeMap<KeySlot, OwnKey>) -> Option<&mut Tunn> {
        if self.sends_as_before() {
            return self.before.as_mut()?.0.begun();
        }
        self.begin(own)
    }

    /// Whether a packet that goes out now has a session.
    pub(crate) fn can_send(&self) -> bool {
        self.sends_as_before() || self.sessions.since_handshake().is_some()
    }

    fn sends_as_before(&self) -> bool {
        let before = self.before.as_ref().filter(|_| !self.ready);
        before.is_some_and(|(sessions, _)| sessions.since_handshake().is_some())
    }

    /// Looks whether packets can be sent; true if that has just begun.
    pub(crate) fn refresh(&mut self, now: Instant) -> bool {
        let since = self.sessions.since_handshake();
        if let Some(since) = since {
            self.handshake = now.checked_sub(since);
        }
        let was = std::mem::replace(&mut self.ready, since.is_some());
        self.ready && !was
    }
}
