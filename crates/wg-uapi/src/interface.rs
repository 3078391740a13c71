// SPDX-License-Identifier: Apache-2.0
//! What an interface is set to, and what a request changes of it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    AllowedIp, Endpoint, MAX_PEERS, Operation, PresharedKey, PrivateKey, PublicKey, Reason, Refusal, SetPeer,
    SetRequest,
};

/// What an interface is set to. Changed by [`apply`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    private_key: Option<PrivateKey>,
    public_key: Option<PublicKey>,
    listen_port: u16,
    fwmark: u32,
    peers: BTreeMap<PublicKey, Peer>,
    /// The peer of each network: the same as the peers' allowed IPs, the other way round.
    owners: BTreeMap<IpNet, PublicKey>,
}

/// What a peer is set to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The pre-shared key.
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer was said to be.
    pub endpoint: Option<Endpoint>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive_s: u16,
    /// Its networks. No other peer has one of them.
    pub allowed_ips: BTreeSet<IpNet>,
}

impl Interface {
    /// The private key.
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.private_key.as_ref()
    }

    /// The public half of the private key.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.public_key
    }

    /// The UDP port; 0 for any.
    pub fn listen_port(&self) -> u16 {
        self.listen_port
    }

    /// The mark of outgoing datagrams; 0 for none.
    pub fn fwmark(&self) -> u32 {
        self.fwmark
    }

    /// The peers.
    pub fn peers(&self) -> &BTreeMap<PublicKey, Peer> {
        &self.peers
    }

    /// The peer with the longest prefix that contains the address.
    pub fn owner(&self, address: IpAddr) -> Option<PublicKey> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest).rev().find_map(|length| {
            let network = IpNet::new(address, length).ok()?.trunc();
            self.owners.get(&network).copied()
        })
    }

    /// Notes the port that was bound, where any was asked for.
    pub fn bound(&mut self, port: u16) {
        self.listen_port = port;
    }
}

/// What a request has changed, for whoever carries it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Another private key, or none any more: sessions under the old one end.
    pub private_key: bool,
    /// Another port.
    pub listen_port: bool,
    /// Another mark.
    pub fwmark: bool,
    /// The peers of which something changed.
    pub peers: BTreeMap<PublicKey, PeerChange>,
}

/// What has changed of a peer. One that is new and has keepalives sends the first at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It went and came within the request: its session ends, and what it is set to is new.
    Replaced,
    /// It stays, set to something else.
    Updated(PeerFields),
}

/// What a peer is newly set to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerFields {
    /// Another pre-shared key, or none any more.
    pub preshared_key: bool,
    /// An endpoint was told. It can be the one that was told before, of a peer that has roamed since.
    pub endpoint: bool,
    /// Another interval of keepalives.
    pub keepalive: bool,
    /// There were no keepalives, and there are now: the first is sent at once.
    pub keepalive_started: bool,
    /// Other networks, or fewer because another peer got them.
    pub allowed_ips: bool,
}

impl Changes {
    fn added(&mut self, peer: PublicKey) {
        let change = match self.peers.get(&peer) {
            Some(PeerChange::Removed) => PeerChange::Replaced,
            _ => PeerChange::Added,
        };
        self.peers.insert(peer, change);
    }

    fn removed(&mut self, peer: PublicKey) {
        if self.peers.insert(peer, PeerChange::Removed) == Some(PeerChange::Added) {
            self.peers.remove(&peer);
        }
    }

    fn updated(&mut self, peer: PublicKey, fields: PeerFields) {
        if fields == PeerFields::default() {
            return;
        }
        let change = self.peers.entry(peer).or_insert_with(|| PeerChange::Updated(PeerFields::default()));
        if let PeerChange::Updated(known) = change {
            known.preshared_key |= fields.preshared_key;
            known.endpoint |= fields.endpoint;
            known.keepalive |= fields.keepalive;
            known.keepalive_started |= fields.keepalive_started;
            known.allowed_ips |= fields.allowed_ips;
        }
    }
}

/// Changes the interface as the request says, or not at all. `public_of` is the curve: it gives the public half of a key.
///
/// A section about the interface's own public key says nothing, and a private key that makes a peer's key the interface's own
/// takes the peer away. Who cannot carry the changes out (the port is in use) keeps a clone of what was before.
///
/// # Errors
/// [`Reason::TooManyPeers`].
pub fn apply(
    interface: &mut Interface,
    request: &SetRequest,
    public_of: impl Fn(&PrivateKey) -> PublicKey,
) -> Result<Changes, Refusal> {
    if !has_room(interface, request) {
        return Err(Refusal { operation: Some(Operation::Set), reason: Reason::TooManyPeers });
    }
    let mut changes = Changes::default();
    if let Some(key) = &request.private_key
        && *key != interface.private_key
    {
        interface.private_key.clone_from(key);
        interface.public_key = key.as_ref().map(public_of);
        changes.private_key = true;
        if let Some(own) = interface.public_key {
            interface.remove(own, &mut changes);
        }
    }
    if let Some(port) = request.listen_port {
        changes.listen_port = port != interface.listen_port;
        interface.listen_port = port;
    }
    if let Some(mark) = request.fwmark {
        changes.fwmark = mark != interface.fwmark;
        interface.fwmark = mark;
    }
    if request.replace_peers {
        for peer in std::mem::take(&mut interface.peers).into_keys() {
            changes.removed(peer);
        }
        interface.owners.clear();
    }
    for section in &request.peers {
        interface.set_peer(section, &mut changes);
    }
    Ok(changes)
}

/// The peers stay within the bound at every step.
fn has_room(interface: &Interface, request: &SetRequest) -> bool {
    let before = if request.replace_peers { 0 } else { interface.peers.len() };
    if before + request.peers.len() <= MAX_PEERS {
        return true;
    }
    let mut known: BTreeSet<PublicKey> =
        if request.replace_peers { BTreeSet::new() } else { interface.peers.keys().copied().collect() };
    request.peers.iter().all(|section| {
        if section.remove {
            known.remove(&section.public_key);
        } else if !section.update_only {
            known.insert(section.public_key);
        }
        known.len() <= MAX_PEERS
    })
}

impl Interface {
    fn set_peer(&mut self, section: &SetPeer, changes: &mut Changes) {
        let key = section.public_key;
        if self.public_key == Some(key) {
            return;
        }
        if section.remove {
            return self.remove(key, changes);
        }
        match self.peers.entry(key) {
            Entry::Occupied(_) => {}
            Entry::Vacant(_) if section.update_only => return,
            Entry::Vacant(place) => {
                place.insert(Peer::default());
                changes.added(key);
            }
        }
        let allowed_ips = self.set_allowed_ips(section, changes);
        let peer = self.peers.entry(key).or_default();
        let mut fields = PeerFields { allowed_ips, ..PeerFields::default() };
        if let Some(preshared_key) = &section.preshared_key {
            fields.preshared_key = *preshared_key != peer.preshared_key;
            peer.preshared_key.clone_from(preshared_key);
        }
        if let Some(endpoint) = &section.endpoint {
            fields.endpoint = true;
            peer.endpoint = Some(endpoint.clone());
        }
        if let Some(seconds) = section.keepalive_s {
            fields.keepalive = seconds != peer.keepalive_s;
            fields.keepalive_started = seconds != 0 && peer.keepalive_s == 0;
            peer.keepalive_s = seconds;
        }
        changes.updated(key, fields);
    }

    fn remove(&mut self, key: PublicKey, changes: &mut Changes) {
        let Some(peer) = self.peers.remove(&key) else { return };
        for network in peer.allowed_ips {
            self.owners.remove(&network);
        }
        changes.removed(key);
    }

    /// Whether the peer's networks are others than before.
    fn set_allowed_ips(&mut self, section: &SetPeer, changes: &mut Changes) -> bool {
        if !section.replace_allowed_ips && section.allowed_ips.is_empty() {
            return false;
        }
        let key = section.public_key;
        let before = self.peers.get(&key).map(|peer| peer.allowed_ips.clone()).unwrap_or_default();
        let mut own = before.clone();
        if section.replace_allowed_ips {
            for network in std::mem::take(&mut own) {
                self.owners.remove(&network);
            }
        }
        for line in &section.allowed_ips {
            match line {
                AllowedIp::Add(network) => {
                    own.insert(*network);
                    if let Some(other) = self.owners.insert(*network, key).filter(|other| *other != key) {
                        if let Some(peer) = self.peers.get_mut(&other) {
                            peer.allowed_ips.remove(network);
                        }
                        changes.updated(other, PeerFields { allowed_ips: true, ..PeerFields::default() });
                    }
                }
                AllowedIp::Remove(network) => {
                    if own.remove(network) {
                        self.owners.remove(network);
                    }
                }
            }
        }
        let changed = own != before;
        self.peers.entry(key).or_default().allowed_ips = own;
        changed
    }
}
