// SPDX-License-Identifier: Apache-2.0
//! What becomes due with time: handshakes, their repetition, keepalives, packets that waited for a session.

use std::net::SocketAddr;
use std::time::Instant;

use boringtun::noise::TunnResult;

use super::{Engine, TICK};
use crate::tunnel::TunnelEntry;

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
        for own in self.own.values() {
            own.gate.reset_count();
        }
        self.due = self.tunnels.keys().copied().collect();
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
            if let Some(tunnel) = self.tunnels.get_mut(id).filter(|tunnel| tunnel.ready)
                && let Some(endpoint) = tunnel.endpoint
                && let Some(length) = written(tunnel.tunn.decapsulate(None, &[], buffer))
            {
                return Some((endpoint, length));
            }
            self.flushable.pop_front();
        }
        None
    }

    fn poll_due(&mut self, buffer: &mut [u8], now: Instant) -> Option<(SocketAddr, usize)> {
        while let Some(id) = self.due.pop_front() {
            let sent = self.tunnels.get_mut(&id).and_then(|tunnel| run_timers(tunnel, buffer, now));
            if sent.is_some() {
                return sent;
            }
        }
        None
    }
}

fn run_timers(tunnel: &mut TunnelEntry, buffer: &mut [u8], now: Instant) -> Option<(SocketAddr, usize)> {
    let endpoint = tunnel.endpoint?;
    let mut sent = written(tunnel.tunn.update_timers(buffer));
    tunnel.refresh();
    if sent.is_none() && !tunnel.ready {
        // Without a session: ask for one, and again when an attempt of 90 s was given up.
        let begins = tunnel.tunn.is_expired();
        sent = written(tunnel.tunn.format_handshake_initiation(buffer, begins));
    }
    let silent = now.saturating_duration_since(tunnel.last_sent);
    if sent.is_none() && tunnel.ready && tunnel.keepalive.is_some_and(|every| silent >= every) {
        sent = written(tunnel.tunn.encapsulate(&[], buffer));
    }
    if sent.is_some() {
        tunnel.last_sent = now;
    }
    Some((endpoint, sent?))
}

fn written(result: TunnResult<'_>) -> Option<usize> {
    match result {
        TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
        _ => None,
    }
}
