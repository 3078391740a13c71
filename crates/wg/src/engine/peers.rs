// SPDX-License-Identifier: Apache-2.0
//! Which keys, devices and peers there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use ipnet::IpNet;
use isthmus_model::dataplane::KeySlot;

use super::{Device, DeviceId, Engine, PeerFacts};
use crate::allowed::AllowedIps;
use crate::key::{PrivateKey, PublicKey};
use crate::peer::{OwnKey, Peer, PeerConfig, PeerId};

impl Engine {
    /// Our keys from now on. Peers that know another one are gone.
    pub fn set_keys(&mut self, keys: BTreeMap<KeySlot, PrivateKey>) {
        let mut before = std::mem::take(&mut self.own);
        let mut kept = BTreeSet::new();
        for (slot, key) in keys {
            let own = match before.remove(&slot).filter(|own| own.public == key.public()) {
                Some(own) => {
                    kept.insert(slot);
                    own
                }
                None => OwnKey::new(key),
            };
            self.own.insert(slot, own);
        }
        self.forget_if(|peer| !kept.contains(&peer.slot));
    }

    /// A device whose peers know our key in this slot. Peers of an eager one are asked for a session at once and whenever there is
    /// none; those of another when there is something to send.
    pub fn add_device(&mut self, slot: KeySlot, eager: bool) -> DeviceId {
        let id = DeviceId(self.next_device);
        self.next_device += 1;
        self.devices.insert(id, Device { slot, eager, allowed: AllowedIps::default() });
        id
    }

    /// Takes the device away with its peers.
    pub fn remove_device(&mut self, device: DeviceId) {
        self.forget_if(|peer| peer.device == device);
        self.devices.remove(&device);
    }

    /// Sets a peer of the device, which is made where it is not there. One that stays keeps its sessions. False if the device is
    /// gone, or has no key, or another device with the same key has the peer.
    pub fn set_peer(&mut self, device: DeviceId, key: PublicKey, config: PeerConfig, now: Instant) -> bool {
        let Some(of) = self.devices.get(&device) else { return false };
        let (slot, eager) = (of.slot, of.eager);
        let id = match self.by_key.get(&(slot, key)) {
            Some(id) if self.peers[id.0].device != device => return false,
            Some(id) => *id,
            None => {
                let index = self.free_index();
                if !self.own.contains_key(&slot) {
                    return false;
                }
                let bare = PeerConfig { allowed: BTreeSet::new(), ..config.clone() };
                let peer = Peer::new((device, eager), slot, (key, bare), index, now);
                let id = PeerId(self.peers.insert(peer));
                self.by_key.insert((slot, key), id);
                self.indices.insert(index, id);
                self.due.push_back(id);
                id
            }
        };
        self.reshare(id, &config, now);
        self.allow(id, config.allowed);
        self.peers[id.0].config.keepalive = config.keepalive;
        true
    }

    /// Takes a peer away.
    pub fn remove_peer(&mut self, device: DeviceId, key: PublicKey) {
        if let Some(id) = self.peer_id(device, key) {
            self.forget(id);
        }
    }

    /// Sends to the peer there from now on, until it is heard from elsewhere.
    pub fn set_endpoint(&mut self, device: DeviceId, key: PublicKey, endpoint: SocketAddr) {
        if let Some(id) = self.peer_id(device, key) {
            self.peers[id.0].endpoint = Some(endpoint);
            self.due.push_back(id);
        }
    }

    /// Has the peer hear from us now, by a keepalive or by a handshake.
    pub fn greet(&mut self, device: DeviceId, key: PublicKey) {
        if let Some(id) = self.peer_id(device, key) {
            self.peers[id.0].greet = true;
            self.due.push_back(id);
        }
    }

    /// What is known of a peer.
    pub fn peer_facts(&self, device: DeviceId, key: PublicKey) -> Option<PeerFacts> {
        let peer = self.peers.get(self.peer_id(device, key)?.0)?;
        Some(PeerFacts {
            endpoint: peer.endpoint,
            since_handshake: peer.sessions.since_handshake(),
            handshake: peer.handshake,
            received_bytes: peer.received_bytes,
            sent_bytes: peer.sent_bytes,
        })
    }

    #[cfg(test)]
    pub(crate) fn devices(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.devices.keys().copied()
    }

    /// How much is kept of peers, and of what they are owed.
    #[cfg(test)]
    pub(crate) fn held(&self) -> [usize; 5] {
        let owed = [self.flushable.len(), self.due.len()];
        [self.peers.len(), self.by_key.len(), self.indices.len(), owed[0], owed[1]]
    }

    /// How many peers have had a message.
    #[cfg(test)]
    pub(crate) fn begun(&mut self) -> usize {
        self.peers.iter_mut().filter_map(|(_, peer)| peer.sessions.begun()).count()
    }

    /// Nothing is left of any peer.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.by_key.is_empty() && self.indices.is_empty()
    }

    fn peer_id(&self, device: DeviceId, key: PublicKey) -> Option<PeerId> {
        let slot = self.devices.get(&device)?.slot;
        let id = *self.by_key.get(&(slot, key))?;
        (self.peers[id.0].device == device).then_some(id)
    }

    /// Another pre-shared key gets sessions of its own.
    fn reshare(&mut self, id: PeerId, config: &PeerConfig, now: Instant) {
        let peer = &self.peers[id.0];
        if peer.config.preshared == config.preshared {
            return;
        }
        let index = self.free_index();
        self.unindex(id);
        let peer = &mut self.peers[id.0];
        peer.reshare(config.preshared.clone(), index, now);
        self.indices.extend(peer.indices().map(|index| (index, id)));
        self.due.push_back(id);
    }

    fn unindex(&mut self, id: PeerId) {
        self.last_index = None;
        for index in self.peers[id.0].indices() {
            self.indices.remove(&index);
        }
    }

    /// The networks of a peer from now on, whoever had them.
    fn allow(&mut self, id: PeerId, networks: BTreeSet<IpNet>) {
        let peer = &mut self.peers[id.0];
        let Some(device) = self.devices.get_mut(&peer.device) else { return };
        for network in peer.config.allowed.difference(&networks) {
            device.allowed.remove(network, id);
        }
        for network in &networks {
            device.allowed.insert(*network, id);
        }
        peer.config.allowed = networks;
    }

    fn forget_if(&mut self, which: impl Fn(&Peer) -> bool) {
        let gone: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| which(peer)).map(|(id, _)| PeerId(id)).collect();
        gone.into_iter().for_each(|id| self.forget(id));
    }

    fn forget(&mut self, id: PeerId) {
        self.unindex(id);
        let peer = self.peers.remove(id.0);
        if let Some(device) = self.devices.get_mut(&peer.device) {
            peer.config.allowed.iter().for_each(|network| device.allowed.remove(network, id));
        }
        self.by_key.remove(&(peer.slot, peer.key));
    }

    fn free_index(&mut self) -> u32 {
        self.free.next(|index| self.indices.contains_key(&index))
    }
}
