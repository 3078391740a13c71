// SPDX-License-Identifier: Apache-2.0
//! What becomes due with time: handshakes, their repetition, keepalives, packets that waited for a session.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use boringtun::noise::TunnResult;
use isthmus_model::dataplane::KeySlot;

use super::{Engine, TICK};
use crate::MESSAGE_BYTES;
use crate::peer::{OwnKey, Peer, PeerId, Sessions};

impl Engine {
    /// When [`Self::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Instant {
        self.next_tick
    }

    /// Looks at all timers; what they want to send comes from [`Self::poll_transmit`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        for own in self.own.values_mut() {
            own.initiations.tick(now);
            own.responses.tick(now);
        }
        self.due.clear();
        self.due.extend(self.peers.iter().map(|(id, _)| PeerId(id)));
    }

    /// What else is to be sent, until it is `None`. `buffer` as for [`Self::handle_packet`], for the largest packet ever handed in.
    pub fn poll_transmit<'b>(
        &mut self,
        buffer: &'b mut [u8],
        now: Instant,
    ) -> Option<(SocketAddr, &'b [u8])> {
        let found = match self.poll_flush(buffer) {
            Some(found) => Some(found),
            None => self.poll_due(buffer, now),
        };
        let (to, length) = found?;
        Some((to, &buffer[..length]))
    }

    fn poll_flush(&mut self, buffer: &mut [u8]) -> Option<(SocketAddr, usize)> {
        while let Some(id) = self.flushable.front() {
            if let Some(peer) = self.peers.get_mut(id.0).filter(|peer| peer.ready)
                && let Some(endpoint) = peer.endpoint
                && let Some(tunn) = peer.sessions.begun()
                && let Some(length) = written(tunn.decapsulate(None, &[], buffer))
            {
                return Some((endpoint, length));
            }
            self.flushable.pop_front();
        }
        None
    }

    fn poll_due(&mut self, buffer: &mut [u8], now: Instant) -> Option<(SocketAddr, usize)> {
        while let Some(id) = self.due.pop_front() {
            let Some(peer) = self.peers.get_mut(id.0) else { continue };
            let sent = match self.retired {
                true => {
                    expire(peer, now);
                    None
                }
                false => run_timers(peer, &self.own, buffer, now),
            };
            if peer.before.as_ref().is_some_and(|(_, until)| now >= *until)
                && let Some((before, _)) = peer.before.take()
            {
                self.indices.remove(&before.index);
                self.last_index = None;
            }
            if sent.is_some() {
                return sent;
            }
        }
        None
    }
}

/// Sessions end when they are too old, and nothing is sent for it.
fn expire(peer: &mut Peer, now: Instant) {
    let mut unsent = [0; MESSAGE_BYTES];
    let before = peer.before.as_mut().map(|(sessions, _)| sessions);
    for tunn in before.into_iter().chain([&mut peer.sessions]).filter_map(Sessions::begun) {
        tunn.update_timers(&mut unsent);
    }
    peer.refresh(now);
}

fn run_timers(
    peer: &mut Peer,
    own: &BTreeMap<KeySlot, OwnKey>,
    buffer: &mut [u8],
    now: Instant,
) -> Option<(SocketAddr, usize)> {
    let endpoint = peer.endpoint?;
    let mut sent = peer.sessions.begun().and_then(|tunn| written(tunn.update_timers(buffer)));
    peer.refresh(now);
    if let Some(tunn) = peer.before.as_mut().and_then(|(sessions, _)| sessions.begun()) {
        // It expires by its timers, but asks for nothing any more.
        let mut unsent = [0; MESSAGE_BYTES];
        tunn.update_timers(&mut unsent);
    }
    let wanted = peer.eager || peer.greet || peer.keepalive().is_some() || peer.before.is_some();
    if sent.is_none() && !peer.ready && wanted {
        // Without a session: ask for one, and again when an attempt of 90 s was given up.
        let tunn = peer.begin(own)?;
        let begins = tunn.is_expired();
        sent = written(tunn.format_handshake_initiation(buffer, begins));
    }
    let silent = now.saturating_duration_since(peer.last_sent);
    let due = peer.greet || peer.keepalive().is_some_and(|every| silent >= every);
    if sent.is_none() && peer.ready && due {
        sent = peer.sessions.begun().and_then(|tunn| written(tunn.encapsulate(&[], buffer)));
    }
    peer.greet = false;
    if sent.is_some() {
        peer.last_sent = now;
    }
    Some((endpoint, sent?))
}

fn written(result: TunnResult<'_>) -> Option<usize> {
    match result {
        TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
        _ => None,
    }
}
