// SPDX-License-Identifier: Apache-2.0
//! Tunnels: devices with a name and one peer each, as the data plane of a gateway has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use isthmus_model::dataplane::{KeySlot, Tunnel};
use isthmus_model::ids::LinkName;

use super::{DeviceId, Engine};
use crate::accept::{Refusal, accept};
use crate::key::PublicKey;
use crate::peer::PeerConfig;

/// What is known of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelFacts {
    /// Its name.
    pub name: LinkName,
    /// Where packets go now.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last completed handshake, while a session is there.
    pub since_handshake: Option<Duration>,
    /// Bytes of inner packets received.
    pub received_bytes: u64,
    /// Bytes of inner packets sent.
    pub sent_bytes: u64,
}

pub(super) type Tunnels = BTreeMap<LinkName, TunnelDevice>;

/// What a tunnel was last set to.
#[derive(Clone, Copy)]
pub(super) struct TunnelDevice {
    device: DeviceId,
    peer: PublicKey,
    slot: KeySlot,
    /// Where it was announced to listen.
    announced: Option<SocketAddr>,
}

impl Engine {
    /// The tunnel of this name.
    pub fn id_of(&self, name: &LinkName) -> Option<DeviceId> {
        self.tunnels.get(name).map(|tunnel| tunnel.device)
    }

    /// The tunnel's peer was heard from there, as whoever ran the tunnel before us says.
    pub fn move_tunnel(&mut self, name: &LinkName, endpoint: SocketAddr) {
        if let Some(TunnelDevice { device, peer, .. }) = self.tunnels.get(name).copied() {
            self.set_endpoint(device, peer, endpoint);
        }
    }

    /// What is known of each tunnel, by its device.
    pub fn facts(&self) -> BTreeMap<DeviceId, TunnelFacts> {
        let facts = self.tunnels.iter().filter_map(|(name, tunnel)| {
            let peer = self.peer_facts(tunnel.device, tunnel.peer)?;
            let facts = TunnelFacts {
                name: name.clone(),
                endpoint: peer.endpoint,
                since_handshake: peer.since_handshake,
                received_bytes: peer.received_bytes,
                sent_bytes: peer.sent_bytes,
            };
            Some((tunnel.device, facts))
        });
        facts.collect()
    }

    /// Runs exactly these tunnels, all of one lane, from now on; those that stay keep their sessions and packets.
    /// Those that cannot run are named, the others run.
    pub fn configure(&mut self, wanted: &BTreeMap<LinkName, Tunnel>, now: Instant) -> Vec<Refusal> {
        let own = self.own.iter().map(|(slot, key)| (*slot, key.public)).collect();
        let (runnable, refusals) = accept(wanted, &own);
        let gone: Vec<LinkName> =
            self.tunnels.keys().filter(|name| !runnable.contains_key(*name)).cloned().collect();
        for name in gone {
            if let Some(tunnel) = self.tunnels.remove(&name) {
                self.remove_device(tunnel.device);
            }
        }
        // A peer that moves from one tunnel to another leaves the one before it enters the other.
        for (name, (peer, tunnel)) in &runnable {
            if let Some(known) = self.tunnels.get(name).copied()
                && (known.peer, known.slot) != (*peer, tunnel.key_slot)
            {
                self.remove_peer(known.device, known.peer);
            }
        }
        for (name, (peer, tunnel)) in runnable {
            self.run(name, peer, tunnel, now);
        }
        refusals
    }

    fn run(&mut self, name: LinkName, peer: PublicKey, tunnel: &Tunnel, now: Instant) {
        let known = self.tunnels.get(&name).copied();
        let device = match known {
            Some(known) => known.device,
            None => self.add_device(tunnel.key_slot, true),
        };
        if let Some(of) = self.devices.get_mut(&device) {
            of.slot = tunnel.key_slot;
        }
        let roamed = self.peer_facts(device, peer).and_then(|facts| facts.endpoint);
        let keepalive = (tunnel.keepalive_s > 0).then(|| Duration::from_secs(tunnel.keepalive_s.into()));
        let config = PeerConfig { preshared: None, allowed: tunnel.allowed.clone(), keepalive };
        self.set_peer(device, peer, config, now);
        let announced = known.and_then(|known| known.announced);
        let told = if announced == tunnel.endpoint { roamed.or(tunnel.endpoint) } else { tunnel.endpoint };
        if let Some(endpoint) = told.filter(|endpoint| roamed != Some(*endpoint)) {
            self.set_endpoint(device, peer, endpoint);
        }
        let slot = tunnel.key_slot;
        self.tunnels.insert(name, TunnelDevice { device, peer, slot, announced: tunnel.endpoint });
    }
}
