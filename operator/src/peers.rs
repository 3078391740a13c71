// SPDX-License-Identifier: Apache-2.0
//! The links to peers: one task that owns them, answers who may come in, and keeps what was heard.

mod redeem;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use isthmus_mesh::identity::RootKey;
use isthmus_mesh::invitation::Token;
use isthmus_mesh::record::Announcement;
use isthmus_mesh::wire::{RefusedReason, Timings};
use isthmus_mesh_link::{
    Admission, Credentials, DialTarget, LinkError, Peer, PeerEvent, PeerEventKind, ServeLimits,
};
use isthmus_model::ids::{ClusterId, ClusterIdentity};
use isthmus_planner::{LinkFailure, PeerView, Peering};
use jiff::{SignedDuration, Timestamp};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{info, warn};

pub(crate) use redeem::Desk;

/// A peering that was just made by a redemption is not missed before the watches have shown it.
const GRACE: Duration = Duration::from_secs(10);
/// Words of a peer that was silent for longer than this change a condition.
const SILENCE: SignedDuration = SignedDuration::from_secs(10);

/// Whom to talk to, and what to say.
pub(crate) struct Wish {
    /// This cluster's ID.
    pub(crate) cluster_id: ClusterId,
    /// Peers by peering, with the token if there is one.
    pub(crate) peers: BTreeMap<String, (Peering, Option<Token>)>,
    /// What every peer is told.
    pub(crate) announcement: Arc<Announcement>,
}

/// What the links know, by peering.
#[derive(Clone, Default)]
pub(crate) struct Views(Arc<Mutex<BTreeMap<String, PeerView>>>);

impl Views {
    /// All of it now.
    pub(crate) fn read(&self) -> BTreeMap<String, PeerView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<String, PeerView>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The links.
pub(crate) struct Peers {
    root: RootKey,
    address: SocketAddr,
    views: Views,
    wake: Arc<Notify>,
    desk: Desk,
    /// Differs from process to process: revisions count within it.
    epoch: u64,
    credentials: Option<Arc<Credentials>>,
    server: Option<AbortHandle>,
    local: watch::Sender<Arc<Announcement>>,
    contacts: BTreeMap<String, Contact>,
    events: (mpsc::Sender<PeerEvent>, mpsc::Receiver<PeerEvent>),
}

struct Contact {
    peer: Peer,
    /// Until when a peering that a redemption has made may be missing in the wish.
    awaited_until: Option<Instant>,
    dial: Option<(Vec<String>, Option<Token>, AbortHandle)>,
}

impl Drop for Contact {
    fn drop(&mut self) {
        self.peer.close();
        if let Some((_, _, task)) = &self.dial {
            task.abort();
        }
    }
}

impl Peers {
    pub(crate) fn new(root: RootKey, address: SocketAddr, desk: Desk, wake: Arc<Notify>) -> Self {
        Self {
            root,
            address,
            views: Views::default(),
            wake,
            desk,
            epoch: u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default(),
            credentials: None,
            server: None,
            local: watch::Sender::new(Arc::default()),
            contacts: BTreeMap::new(),
            events: mpsc::channel(256),
        }
    }

    /// What the links know.
    pub(crate) fn views(&self) -> Views {
        self.views.clone()
    }

    /// Runs for as long as wishes come. No wish: we do not lead, and nobody is talked to.
    pub(crate) async fn run(mut self, mut wishes: mpsc::Receiver<Option<Wish>>) {
        loop {
            tokio::select! {
                wish = wishes.recv() => match wish {
                    Some(Some(wish)) => self.converge(wish).await,
                    Some(None) => self.fall_silent(),
                    None => return,
                },
                Some(event) = self.events.1.recv() => self.take(event).await,
            }
        }
    }

    fn fall_silent(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
        self.credentials = None;
        self.contacts.clear();
        // What was heard ages from now on; another replica hears it anew.
        self.views.change(BTreeMap::clear);
    }

    async fn converge(&mut self, wish: Wish) {
        if self.credentials.as_ref().is_none_or(|known| *known.cluster_id() != wish.cluster_id) {
            self.fall_silent();
            self.credentials = self.credentials_for(wish.cluster_id);
        }
        self.local.send_if_modified(|local| {
            let changed = **local != *wish.announcement;
            if changed {
                local.clone_from(&wish.announcement);
            }
            changed
        });
        let Some(credentials) = self.credentials.clone() else { return };
        self.listen(&credentials).await;
        let gone = |name: &String, contact: &Contact| match wish.peers.get(name) {
            Some((peering, _)) => peering.identity != *contact.peer.identity(),
            None => contact.awaited_until.is_none_or(|until| until < Instant::now()),
        };
        let gone: Vec<String> = self
            .contacts
            .iter()
            .filter(|(name, contact)| gone(name, contact))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            info!(peering = name, "the peering is gone");
            self.contacts.remove(&name);
            self.views.change(|views| views.remove(&name));
        }
        for (name, (peering, token)) in wish.peers {
            self.dial(&name, &peering, token, &credentials);
        }
    }

    fn credentials_for(&self, cluster_id: ClusterId) -> Option<Arc<Credentials>> {
        match RootKey::from_pem(&self.root.key_pem(), self.root.cert_pem()) {
            Ok(root) => Some(Arc::new(Credentials::new(root, cluster_id))),
            Err(error) => {
                warn!(%error, "no credentials for peers");
                None
            }
        }
    }

    async fn listen(&mut self, credentials: &Arc<Credentials>) {
        if self.server.as_ref().is_some_and(|server| !server.is_finished()) {
            return;
        }
        match TcpListener::bind(self.address).await {
            Ok(listener) => {
                let events = self.events.0.clone();
                let serving = isthmus_mesh_link::serve(
                    listener,
                    Arc::clone(credentials),
                    events,
                    ServeLimits::default(),
                );
                self.server = Some(tokio::spawn(serving).abort_handle());
            }
            // The former leader on this node may not be gone yet; the next wish tries again.
            Err(error) => warn!(address = %self.address, %error, "cannot listen for peers"),
        }
    }

    fn dial(&mut self, name: &str, peering: &Peering, token: Option<Token>, credentials: &Arc<Credentials>) {
        let contact = self.contacts.entry(name.to_owned()).or_insert_with(|| Contact {
            peer: Peer::new(peering.identity.clone(), self.epoch, self.local.subscribe()),
            awaited_until: None,
            dial: None,
        });
        contact.awaited_until = None;
        let same = |(endpoints, known, _): &(Vec<String>, Option<Token>, AbortHandle)| {
            *endpoints == peering.endpoints && *known == token
        };
        if contact.dial.as_ref().is_some_and(same) {
            return;
        }
        if let Some((_, _, task)) = contact.dial.take() {
            task.abort();
        }
        if peering.endpoints.is_empty() {
            return;
        }
        let endpoints = peering.endpoints.clone();
        let target =
            DialTarget { endpoints: endpoints.clone(), token: token.clone(), timings: Timings::default() };
        let random = || getrandom::u64().unwrap_or_default();
        let dialing = isthmus_mesh_link::dial(
            target,
            contact.peer.clone(),
            Arc::clone(credentials),
            self.events.0.clone(),
            random,
        );
        contact.dial = Some((endpoints, token, tokio::spawn(dialing).abort_handle()));
    }

    fn name_of(&self, identity: &ClusterIdentity) -> Option<String> {
        let found = self.contacts.iter().find(|(_, contact)| contact.peer.identity() == identity);
        found.map(|(name, _)| name.clone())
    }

    async fn take(&mut self, event: PeerEvent) {
        let PeerEvent { identity, kind } = event;
        let name = self.name_of(&identity);
        match (kind, name) {
            (PeerEventKind::Arrived { cluster_id, reply }, name) => {
                let known = name.and_then(|name| self.contacts.get(&name));
                info!(%identity, %cluster_id, known = known.is_some(), "a peer connects");
                let _ = reply
                    .send(known.map_or(Admission::Unknown, |known| Admission::Known(known.peer.clone())));
            }
            (PeerEventKind::Redeem { token, cluster_id, reply }, _) => {
                let local = self.local.subscribe();
                let peer = Peer::new(identity.clone(), self.epoch, local);
                let answer = self.desk.redeem(&token, &identity, &cluster_id).await;
                let answer = answer.map(|name| {
                    let contact = Contact {
                        peer: peer.clone(),
                        awaited_until: Some(Instant::now() + GRACE),
                        dial: None,
                    };
                    self.contacts.insert(name, contact);
                });
                let _ = reply.send(redeem::answer(answer, peer));
            }
            (_, None) => {}
            (kind, Some(name)) => self.note(&name, kind),
        }
    }

    /// Keeps what was heard, and wakes the planner where it matters.
    fn note(&mut self, name: &str, kind: PeerEventKind) {
        let now = Timestamp::now();
        let wake = self.views.change(|views| {
            let view = views.entry(name.to_owned()).or_default();
            let was_silent = view.last_heard.is_none_or(|heard| now.duration_since(heard) > SILENCE);
            match kind {
                PeerEventKind::Connected { cluster_id, remote } => {
                    info!(peering = name, %cluster_id, %remote, "connected");
                    view.connected = true;
                    view.failure = None;
                    view.last_heard = Some(now);
                    true
                }
                PeerEventKind::Announced { announcement, invalid } => {
                    view.announcement = Some(announcement);
                    view.invalid = invalid.into_iter().map(|one| (one.what, one.reason)).collect();
                    view.last_heard = Some(now);
                    true
                }
                PeerEventKind::Heard => {
                    view.last_heard = Some(now);
                    was_silent
                }
                PeerEventKind::Disconnected { reason } => {
                    let failure = failure(&reason);
                    let changed = view.connected || view.failure.as_ref() != Some(&failure);
                    if changed {
                        warn!(peering = name, reason = failure.message, "not connected");
                    }
                    view.connected = false;
                    view.failure = Some(failure);
                    changed
                }
                PeerEventKind::Arrived { .. } | PeerEventKind::Redeem { .. } => false,
            }
        });
        if wake {
            self.wake.notify_one();
        }
    }
}

/// A link's end in the words of a condition.
fn failure(error: &LinkError) -> LinkFailure {
    let (reason, lasting) = match error {
        LinkError::Refused { reason, .. } => match reason {
            RefusedReason::TokenExpired => ("TokenExpired", true),
            RefusedReason::TokenUnknown => ("TokenUnknown", true),
            RefusedReason::TokenUsed => ("TokenUsed", true),
            RefusedReason::UnknownIdentity => ("UnknownIdentity", true),
            RefusedReason::SelfPeering => ("SelfPeering", true),
            RefusedReason::AlreadyConnected | RefusedReason::Busy => ("Busy", false),
            RefusedReason::Other => ("Refused", true),
        },
        LinkError::NotProven { .. } => ("IdentityNotProven", true),
        LinkError::Unreachable { .. } => ("Unreachable", false),
        LinkError::Tls { .. } => ("HandshakeFailed", false),
        _ => ("Disconnected", false),
    };
    LinkFailure { reason, message: error.to_string(), lasting }
}
