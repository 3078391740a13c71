// SPDX-License-Identifier: Apache-2.0
//! Which tunnels run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use isthmus_model::dataplane::Tunnel;
use isthmus_model::ids::LinkName;

use super::{Engine, Refusal, TunnelId};
use crate::key::PublicKey;
use crate::tunnel::TunnelEntry;

impl Engine {
    /// Runs exactly these tunnels from now on; those that stay keep their sessions and packets.
    /// Those that cannot run are named, the others run.
    pub fn configure(&mut self, wanted: &BTreeMap<LinkName, Tunnel>, now: Instant) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let mut keys: BTreeMap<PublicKey, &LinkName> = BTreeMap::new();
        let mut runnable = BTreeMap::new();
        for (name, tunnel) in wanted {
            match tunnel.peer_key.parse::<PublicKey>() {
                Err(error) => refusals.push(Refusal::Key(name.clone(), error)),
                Ok(key) if self.own.iter().any(|own| own.public == key) => {
                    refusals.push(Refusal::Itself(name.clone()));
                }
                Ok(key) => match keys.insert(key, name) {
                    Some(other) => {
                        keys.insert(key, other);
                        refusals.push(Refusal::Twice(other.clone(), name.clone()));
                    }
                    None => {
                        runnable.insert(name.clone(), (key, tunnel));
                    }
                },
            }
        }
        let gone: BTreeSet<TunnelId> =
            self.tunnels.iter().filter(|(_, t)| !runnable.contains_key(&t.name)).map(|(id, _)| *id).collect();
        self.tunnels.retain(|id, _| !gone.contains(id));
        self.pairings.retain(|_, pairing| !gone.contains(&pairing.tunnel));
        for (name, (key, tunnel)) in runnable {
            match self.id_of(&name) {
                Some(id) => self.adjust(id, key, tunnel, now),
                None => self.add(name, key, tunnel, now),
            }
        }
        self.configured = true;
        self.retire(now);
        refusals
    }

    fn add(&mut self, name: LinkName, peer: PublicKey, tunnel: &Tunnel, now: Instant) {
        let id = TunnelId(self.next_id);
        self.next_id += 1;
        let entry = TunnelEntry {
            name,
            allowed: tunnel.allowed.iter().copied().collect(),
            keepalive: keepalive(tunnel),
            peer,
            peer_since: now,
            announced: tunnel.endpoint,
            endpoint: tunnel.endpoint,
            pairings: Vec::new(),
            sending: u32::MAX,
            last_sent: now,
            received_bytes: 0,
            sent_bytes: 0,
        };
        self.tunnels.insert(id, entry);
        self.pair(id);
    }

    fn adjust(&mut self, id: TunnelId, peer: PublicKey, tunnel: &Tunnel, now: Instant) {
        let Some(entry) = self.tunnels.get_mut(&id) else { return };
        entry.allowed = tunnel.allowed.iter().copied().collect();
        entry.keepalive = keepalive(tunnel);
        if entry.announced != tunnel.endpoint {
            entry.announced = tunnel.endpoint;
            entry.endpoint = tunnel.endpoint.or(entry.endpoint);
        }
        if entry.peer != peer {
            entry.peer = peer;
            entry.peer_since = now;
            self.pair(id);
        }
    }
}

fn keepalive(tunnel: &Tunnel) -> Option<Duration> {
    (tunnel.keepalive_s > 0).then(|| Duration::from_secs(tunnel.keepalive_s.into()))
}
