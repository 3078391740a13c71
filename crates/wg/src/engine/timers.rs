// SPDX-License-Identifier: Apache-2.0
//! What becomes due with time: handshakes, their repetition, keepalives, packets that waited for a session.

use std::net::SocketAddr;
use std::time::Instant;

use boringtun::noise::TunnResult;

use super::{Engine, TICK};

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
        for own in &self.own {
            own.gate.reset_count();
        }
        self.due = self.pairings.keys().copied().collect();
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
        while let Some(index) = self.flushable.front().copied() {
            let pairing = self.pairings.get_mut(&index).filter(|pairing| pairing.ready_since.is_some());
            let endpoint =
                pairing.as_ref().and_then(|p| self.tunnels.get(&p.tunnel)).and_then(|t| t.endpoint);
            if let (Some(pairing), Some(endpoint)) = (pairing, endpoint)
                && let TunnResult::WriteToNetwork(datagram) = pairing.tunn.decapsulate(None, &[], buffer)
            {
                return Some((endpoint, datagram.len()));
            }
            self.flushable.pop_front();
        }
        None
    }

    fn poll_due(&mut self, buffer: &mut [u8], now: Instant) -> Option<(SocketAddr, usize)> {
        while let Some(index) = self.due.pop_front() {
            let sent = self.run_timers(index, buffer, now);
            if self.due.is_empty() {
                self.retire(now);
            }
            if sent.is_some() {
                return sent;
            }
        }
        None
    }

    fn run_timers(&mut self, index: u32, buffer: &mut [u8], now: Instant) -> Option<(SocketAddr, usize)> {
        let initiating = self.own.first().map(|own| own.public);
        let pairing = self.pairings.get_mut(&index)?;
        let entry = self.tunnels.get_mut(&pairing.tunnel)?;
        let endpoint = entry.endpoint?;
        let mut sent = written(pairing.tunn.update_timers(buffer));
        pairing.refresh(now);
        let may_begin = Some(pairing.own) == initiating && pairing.peer == entry.peer;
        if sent.is_none() && pairing.ready_since.is_none() && may_begin {
            // Without a session: ask for one, and again when an attempt of 90 s was given up.
            let begins = pairing.tunn.is_expired();
            sent = written(pairing.tunn.format_handshake_initiation(buffer, begins));
        }
        let keepalive_due =
            entry.keepalive.is_some_and(|every| now.saturating_duration_since(entry.last_sent) >= every);
        if sent.is_none() && keepalive_due && pairing.ready_since.is_some() && entry.sending == index {
            sent = written(pairing.tunn.encapsulate(&[], buffer));
        }
        if sent.is_some() {
            entry.last_sent = now;
        }
        let id = pairing.tunnel;
        self.choose_sending(id);
        Some((endpoint, sent?))
    }
}

fn written(result: TunnResult<'_>) -> Option<usize> {
    match result {
        TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
        _ => None,
    }
}
