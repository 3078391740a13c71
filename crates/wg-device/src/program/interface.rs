// SPDX-License-Identifier: Apache-2.0
//! Carries out what a request has changed: the port, the keys and the peers of the engine.

use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant, SystemTime};

use isthmus_model::dataplane::KeySlot;
use isthmus_packet_io::{Features, Tun, UdpPort};
use isthmus_wg::{DeviceId, PeerConfig, PresharedKey, PrivateKey, PublicKey};
use isthmus_wg_uapi::{self as uapi, Changes, Endpoint, Errno, Interface, PeerChange, PeerFacts, SetRequest};
use zeroize::Zeroizing;

use crate::Carrier;

/// One device and what it is set to.
pub(super) struct Served {
    interface: Interface,
    device: DeviceId,
    /// What of the kernel's features the port may use.
    features: Features,
}

impl Served {
    /// Without keys and peers.
    ///
    /// # Errors
    /// No memory left in the kernel.
    pub(super) fn new(carrier: &mut Carrier, tun: Tun, features: Features) -> io::Result<Self> {
        let device = carrier.engine.add_device(KeySlot::First, false);
        carrier.serve(device, tun)?;
        Ok(Self { interface: Interface::default(), device, features })
    }

    pub(super) fn answer_to_get(&self, carrier: &Carrier) -> Zeroizing<String> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        self.interface.answer_to_get(|key| {
            let facts = carrier.engine.peer_facts(self.device, engine_key(*key)).unwrap_or_default();
            let since_epoch = |at: Instant| {
                let at = wall.checked_sub(now.saturating_duration_since(at))?;
                at.duration_since(SystemTime::UNIX_EPOCH).ok()
            };
            PeerFacts {
                endpoint: facts.endpoint.map(Endpoint::from),
                last_handshake: facts.handshake.and_then(since_epoch).unwrap_or_default(),
                rx_bytes: facts.received_bytes,
                tx_bytes: facts.sent_bytes,
            }
        })
    }

    /// Changes the interface as the request says, or leaves it as it is.
    ///
    /// # Errors
    /// The request asks for too much, or for a port or mark that cannot be had.
    pub(super) fn set(&mut self, carrier: &mut Carrier, request: &SetRequest) -> Result<(), Errno> {
        let before = self.interface.clone();
        let public_of = |key: &uapi::PrivateKey| {
            uapi::PublicKey::from_bytes(*PrivateKey::from_bytes(*key.as_bytes()).public().as_bytes())
        };
        let changes =
            uapi::apply(&mut self.interface, request, public_of).map_err(|refusal| refusal.errno())?;
        if let Err(error) = self.listen(carrier, &changes) {
            self.interface = before;
            eprintln!("isthmus-wg: {error}");
            return Err(Errno::AddressInUse);
        }
        self.carry_out(carrier, &changes);
        Ok(())
    }

    /// The port is opened when it is asked for, or when there is a key to use it with.
    fn listen(&mut self, carrier: &mut Carrier, changes: &Changes) -> io::Result<()> {
        let needed = carrier.port().is_none() && self.interface.private_key().is_some();
        if changes.listen_port || needed {
            let port = UdpPort::open_with(self.interface.listen_port(), &self.features)?;
            if self.interface.fwmark() != 0 {
                port.set_mark(self.interface.fwmark())?;
            }
            self.interface.bound(port.port()?);
            return carrier.set_port(Some(port));
        }
        match carrier.port() {
            Some(port) if changes.fwmark => port.set_mark(self.interface.fwmark()),
            _ => Ok(()),
        }
    }

    fn carry_out(&self, carrier: &mut Carrier, changes: &Changes) {
        if changes.private_key {
            self.change_key(carrier);
        }
        for (key, change) in &changes.peers {
            let engine = &mut carrier.engine;
            let known = engine_key(*key);
            match change {
                PeerChange::Removed => engine.remove_peer(self.device, known),
                PeerChange::Replaced => {
                    engine.remove_peer(self.device, known);
                    self.set_peer(carrier, *key, true, true);
                }
                PeerChange::Added => self.set_peer(carrier, *key, true, true),
                PeerChange::Updated(fields) => {
                    self.set_peer(carrier, *key, fields.endpoint, fields.keepalive_started);
                }
            }
        }
    }

    /// Sessions under the key before end. The peers stay where they were heard from.
    fn change_key(&self, carrier: &mut Carrier) {
        let engine = &mut carrier.engine;
        let peers = self.interface.peers().keys();
        let roamed: Vec<(uapi::PublicKey, Option<SocketAddr>)> = peers
            .map(|key| {
                (*key, engine.peer_facts(self.device, engine_key(*key)).and_then(|facts| facts.endpoint))
            })
            .collect();
        let own = self.interface.private_key().map(|key| PrivateKey::from_bytes(*key.as_bytes()));
        engine.set_keys(own.into_iter().map(|key| (KeySlot::First, key)).collect());
        for (key, endpoint) in roamed {
            self.set_peer(carrier, key, true, false);
            if let Some(endpoint) = endpoint {
                carrier.engine.set_endpoint(self.device, engine_key(key), endpoint);
            }
        }
    }

    fn set_peer(&self, carrier: &mut Carrier, key: uapi::PublicKey, moves: bool, begins: bool) {
        let Some(peer) = self.interface.peers().get(&key) else { return };
        let config = PeerConfig {
            preshared: peer.preshared_key.as_ref().map(|key| PresharedKey::from_bytes(*key.as_bytes())),
            allowed: peer.allowed_ips.clone(),
            keepalive: (peer.keepalive_s > 0).then(|| Duration::from_secs(peer.keepalive_s.into())),
        };
        let (engine, known) = (&mut carrier.engine, engine_key(key));
        engine.set_peer(self.device, known, config, Instant::now());
        if moves && let Some(endpoint) = &peer.endpoint {
            match scoped(endpoint) {
                Some(address) => engine.set_endpoint(self.device, known, address),
                None => eprintln!("isthmus-wg: endpoint {endpoint}: there is no such link"),
            }
        }
        if begins && peer.keepalive_s > 0 {
            engine.greet(self.device, known);
        }
    }
}

fn engine_key(key: uapi::PublicKey) -> PublicKey {
    PublicKey::from_bytes(*key.as_bytes())
}

/// The address with the number of its zone's link. None if there is no such link.
fn scoped(endpoint: &Endpoint) -> Option<SocketAddr> {
    let (address, zone) = (endpoint.address(), endpoint.zone());
    let (SocketAddr::V6(v6), Some(zone)) = (address, zone) else { return Some(address) };
    let number = match zone.parse() {
        Ok(number) => number,
        Err(_) => nix::net::if_::if_nametoindex(zone).ok()?,
    };
    Some(SocketAddrV6::new(*v6.ip(), v6.port(), 0, number).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_becomes_the_number_of_its_link() {
        let scoped = |text: &str| scoped(&text.parse().unwrap());
        assert_eq!(scoped("192.0.2.1:5"), "192.0.2.1:5".parse().ok());
        assert_eq!(scoped("[fe80::1%lo]:5"), "[fe80::1%1]:5".parse().ok());
        assert_eq!(scoped("[fe80::1%7]:5"), "[fe80::1%7]:5".parse().ok());
        assert_eq!(scoped("[fe80::1%no-such-link]:5"), None);
    }
}
