// SPDX-License-Identifier: Apache-2.0
//! Pairings of our keys with those of the peers: made when a key appears, chosen for sending, retired when their successor carries.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Engine, TunnelId};
use crate::key::{PrivateKey, PublicKey};
use crate::tunnel::{GRACE, OwnKey, PEER_KEY_LIMIT, Pairing};

impl Engine {
    /// Brings in the next key of ours. The present one serves each peer until that peer has used the new one.
    /// False while an earlier rotation is not over.
    pub fn rotate(&mut self, key: PrivateKey, now: Instant) -> bool {
        if self.own.len() > 1 {
            return false;
        }
        self.own.push(OwnKey::new(key));
        for id in self.tunnels.keys().copied().collect::<Vec<_>>() {
            self.pair(id);
        }
        self.retire(now);
        true
    }

    /// Makes the pairings that a tunnel lacks: each key of ours with the peer's key of today.
    pub(super) fn pair(&mut self, id: TunnelId) {
        let Some(entry) = self.tunnels.get_mut(&id) else { return };
        for own in &self.own {
            let has = entry.pairings.iter().filter_map(|index| self.pairings.get(index));
            if has.into_iter().any(|pairing| pairing.own == own.public && pairing.peer == entry.peer) {
                continue;
            }
            while self.pairings.contains_key(&self.next_index) {
                self.next_index = (self.next_index + 1) & 0x00ff_ffff;
            }
            let index = self.next_index;
            self.next_index = (self.next_index + 1) & 0x00ff_ffff;
            self.pairings.insert(index, Pairing::new(id, own, entry.peer, index));
            entry.pairings.push(index);
            // The peer does not know a new key of ours yet: it begins. A new key of the peer: we begin.
            self.due.push_back(index);
        }
        self.choose_sending(id);
    }

    /// Packets go out with the newest pairing that has a session; without any, the oldest key of ours asks for one.
    pub(super) fn choose_sending(&mut self, id: TunnelId) {
        let Some(entry) = self.tunnels.get_mut(&id) else { return };
        let ready = |index: &&u32| self.pairings.get(*index).is_some_and(|p| p.ready_since.is_some());
        let newest = entry.pairings.iter().rev().find(ready).copied();
        let initiating = self.own.first().map(|own| own.public);
        let asking = |index: &&u32| {
            self.pairings.get(*index).is_some_and(|p| Some(p.own) == initiating && p.peer == entry.peer)
        };
        entry.sending = newest.or(entry.pairings.iter().find(asking).copied()).unwrap_or(u32::MAX);
    }

    /// Forgets pairings whose successor carries traffic, then keys of ours that no pairing uses.
    pub(super) fn retire(&mut self, now: Instant) {
        let newest = self.own.last().map(|own| own.public);
        let mut gone = BTreeSet::new();
        for entry in self.tunnels.values() {
            let of = |index: &u32| self.pairings.get(index).map(|pairing| (*index, pairing));
            let pairings: Vec<(u32, &Pairing)> = entry.pairings.iter().filter_map(of).collect();
            let carries = |own: Option<PublicKey>| {
                pairings.iter().any(|(_, p)| {
                    p.peer == entry.peer && own.is_none_or(|own| p.own == own) && p.ready_for(now) >= GRACE
                })
            };
            let peer_moved =
                carries(None) || now.saturating_duration_since(entry.peer_since) >= PEER_KEY_LIMIT;
            let own_moved = carries(newest);
            gone.extend(pairings.iter().filter_map(|(index, pairing)| {
                let old_peer = pairing.peer != entry.peer && peer_moved;
                let old_own = Some(pairing.own) != newest && own_moved;
                (old_peer || old_own).then_some(*index)
            }));
        }
        if !gone.is_empty() {
            self.pairings.retain(|index, _| !gone.contains(index));
            for entry in self.tunnels.values_mut() {
                entry.pairings.retain(|index| !gone.contains(index));
            }
        }
        if self.configured {
            let used: BTreeSet<PublicKey> = self.pairings.values().map(|pairing| pairing.own).collect();
            self.own.retain(|own| Some(own.public) == newest || used.contains(&own.public));
        }
        for id in self.tunnels.keys().copied().collect::<Vec<_>>() {
            self.choose_sending(id);
        }
    }
}
