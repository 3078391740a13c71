// SPDX-License-Identifier: Apache-2.0
//! Which keys and tunnels there are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use boringtun::noise::Tunn;
use isthmus_model::dataplane::{KeySlot, Tunnel};
use isthmus_model::ids::LinkName;

use super::{Engine, INDEX_MASK, TunnelId};
use crate::accept::{Refusal, accept};
use crate::key::{PrivateKey, PublicKey};
use crate::tunnel::{OwnKey, TunnelEntry};

impl Engine {
    /// Our keys from now on. Tunnels with a key that is not among them end.
    pub fn set_keys(&mut self, keys: BTreeMap<KeySlot, PrivateKey>) {
        let mut before = std::mem::take(&mut self.own);
        for (slot, key) in keys {
            let known = before.remove(&slot).filter(|own| own.public == key.public());
            if known.is_none() {
                self.retain(|tunnel| tunnel.key_slot != slot);
            }
            self.own.insert(slot, known.unwrap_or_else(|| OwnKey::new(key)));
        }
        self.retain(|tunnel| !before.contains_key(&tunnel.key_slot));
    }

    /// Runs exactly these tunnels from now on; those that stay keep their sessions and packets.
    /// Those that cannot run are named, the others run.
    pub fn configure(&mut self, wanted: &BTreeMap<LinkName, Tunnel>, now: Instant) -> Vec<Refusal> {
        let own = self.own.iter().map(|(slot, key)| (*slot, key.public)).collect();
        let (runnable, refusals) = accept(wanted, &own);
        self.retain(|tunnel| runnable.contains_key(&tunnel.name));
        for (name, (peer, tunnel)) in runnable {
            match self.id_of(&name) {
                Some(id) => self.adjust(id, peer, tunnel),
                None => self.add(name, peer, tunnel, now),
            }
        }
        refusals
    }

    fn retain(&mut self, mut stays: impl FnMut(&TunnelEntry) -> bool) {
        self.tunnels.retain(|_, tunnel| stays(tunnel));
        self.indices.retain(|_, id| self.tunnels.contains_key(id));
    }

    fn add(&mut self, name: LinkName, peer: PublicKey, tunnel: &Tunnel, now: Instant) {
        let id = TunnelId(self.next_id);
        let Some(tunn) = self.sessions(id, tunnel.key_slot, peer) else { return };
        self.next_id += 1;
        let entry = TunnelEntry {
            name,
            allowed: tunnel.allowed.iter().copied().collect(),
            keepalive: keepalive(tunnel),
            key_slot: tunnel.key_slot,
            peer,
            tunn,
            ready: false,
            announced: tunnel.endpoint,
            endpoint: tunnel.endpoint,
            last_sent: now,
            received_bytes: 0,
            sent_bytes: 0,
        };
        self.tunnels.insert(id, entry);
    }

    /// New sessions for a tunnel between these keys; one is asked for at once.
    fn sessions(&mut self, id: TunnelId, slot: KeySlot, peer: PublicKey) -> Option<Tunn> {
        while self.indices.contains_key(&self.next_index) {
            self.next_index = (self.next_index + 1) & INDEX_MASK;
        }
        let index = self.next_index;
        let tunn = self.own.get(&slot)?.sessions(peer, index);
        self.next_index = (self.next_index + 1) & INDEX_MASK;
        self.indices.retain(|_, of| *of != id);
        self.indices.insert(index, id);
        self.due.push_back(id);
        Some(tunn)
    }

    fn adjust(&mut self, id: TunnelId, peer: PublicKey, tunnel: &Tunnel) {
        let same = |entry: &TunnelEntry| entry.peer == peer && entry.key_slot == tunnel.key_slot;
        let ends_anew = !self.tunnels.get(&id).is_some_and(same);
        let sessions = if ends_anew { self.sessions(id, tunnel.key_slot, peer) } else { None };
        let Some(entry) = self.tunnels.get_mut(&id) else { return };
        entry.allowed = tunnel.allowed.iter().copied().collect();
        entry.keepalive = keepalive(tunnel);
        if let Some(tunn) = sessions {
            (entry.tunn, entry.ready) = (tunn, false);
            (entry.peer, entry.key_slot) = (peer, tunnel.key_slot);
        }
        if entry.announced != tunnel.endpoint {
            entry.announced = tunnel.endpoint;
            entry.endpoint = tunnel.endpoint.or(entry.endpoint);
        }
    }
}

fn keepalive(tunnel: &Tunnel) -> Option<Duration> {
    (tunnel.keepalive_s > 0).then(|| Duration::from_secs(tunnel.keepalive_s.into()))
}
