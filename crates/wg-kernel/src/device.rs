// SPDX-License-Identifier: Apache-2.0
//! A device as generic netlink writes and reads it (linux/wireguard.h).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ipnet::IpNet;

use crate::netlink::{attributes, nest, put};

/// 32 bytes of Curve25519.
pub type Key = [u8; 32];

const IFNAME: u16 = 2;
const PRIVATE_KEY: u16 = 3;
const PUBLIC_KEY: u16 = 4;
const FLAGS: u16 = 5;
const LISTEN_PORT: u16 = 6;
const PEERS: u16 = 8;
/// WGDEVICE_F_REPLACE_PEERS.
const REPLACE_PEERS: u32 = 1;

const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_LAST_HANDSHAKE: u16 = 6;
const PEER_RX_BYTES: u16 = 7;
const PEER_TX_BYTES: u16 = 8;
const PEER_ALLOWED: u16 = 9;
/// WGPEER_F_REPLACE_ALLOWEDIPS.
const REPLACE_ALLOWED: u32 = 2;

const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_PREFIX: u16 = 3;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A device as it is. Its private key is not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its public key; none before it has a private one.
    pub public_key: Option<Key>,
    /// UDP port.
    pub listen_port: u16,
    /// Peers.
    pub peers: Vec<Peer>,
}

/// A peer of a device as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its key.
    pub public_key: Key,
    /// Where packets go now.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive_s: u16,
    /// Unix time of the last completed handshake.
    pub last_handshake: Option<Duration>,
    /// Bytes received, WireGuard's own headers included.
    pub received_bytes: u64,
    /// Bytes sent, WireGuard's own headers included.
    pub sent_bytes: u64,
    /// Inner addresses: sources that may come out, destinations that go in.
    pub allowed: BTreeSet<IpNet>,
}

/// What shall change on a device. What is not named stays as it is.
#[derive(Default, PartialEq, Eq)]
pub struct Change<'a> {
    /// A private key.
    pub private_key: Option<&'a Key>,
    /// UDP port.
    pub listen_port: Option<u16>,
    /// Peers that are not named here go.
    pub only_this_peer: bool,
    /// The peer.
    pub peer: Option<PeerChange>,
}

/// What shall change on a peer; one that is not there is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// Which.
    pub public_key: Key,
    /// Where packets go.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive_s: Option<u16>,
    /// Exactly these inner addresses.
    pub allowed: Option<BTreeSet<IpNet>>,
}

/// Attributes that name a device.
pub(crate) fn named(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, IFNAME, &terminated(name));
    out
}

pub(crate) fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

impl Change<'_> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Some(key) = self.private_key {
            put(out, PRIVATE_KEY, key);
        }
        if let Some(port) = self.listen_port {
            put(out, LISTEN_PORT, &port.to_ne_bytes());
        }
        if self.only_this_peer {
            put(out, FLAGS, &REPLACE_PEERS.to_ne_bytes());
        }
        if let Some(peer) = &self.peer {
            nest(out, PEERS, |out| nest(out, 0, |out| peer.encode(out)));
        }
    }
}

impl PeerChange {
    fn encode(&self, out: &mut Vec<u8>) {
        put(out, PEER_PUBLIC_KEY, &self.public_key);
        if let Some(endpoint) = self.endpoint {
            put(out, PEER_ENDPOINT, &socket_address(endpoint));
        }
        if let Some(seconds) = self.keepalive_s {
            put(out, PEER_KEEPALIVE, &seconds.to_ne_bytes());
        }
        if let Some(allowed) = &self.allowed {
            put(out, PEER_FLAGS, &REPLACE_ALLOWED.to_ne_bytes());
            nest(out, PEER_ALLOWED, |out| {
                for net in allowed {
                    nest(out, 0, |out| encode_allowed(out, net));
                }
            });
        }
    }
}

fn encode_allowed(out: &mut Vec<u8>, net: &IpNet) {
    match net.addr() {
        IpAddr::V4(address) => {
            put(out, ALLOWED_FAMILY, &AF_INET.to_ne_bytes());
            put(out, ALLOWED_ADDRESS, &address.octets());
        }
        IpAddr::V6(address) => {
            put(out, ALLOWED_FAMILY, &AF_INET6.to_ne_bytes());
            put(out, ALLOWED_ADDRESS, &address.octets());
        }
    }
    put(out, ALLOWED_PREFIX, &[net.prefix_len()]);
}

/// `sockaddr_in` or `sockaddr_in6`, as the kernel lays them out.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend(AF_INET.to_ne_bytes());
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend(AF_INET6.to_ne_bytes());
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend(0_u32.to_ne_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

fn read_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) {
        AF_INET => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(Ipv4Addr::from(octets).into(), port))
        }
        AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope).into())
        }
        _ => None,
    }
}

impl Device {
    /// Adds what one message of the dump says: a device with much to tell comes in several.
    pub(crate) fn read(&mut self, body: &[u8]) {
        for (kind, value) in attributes(body) {
            match kind {
                PUBLIC_KEY => self.public_key = value.try_into().ok().filter(|key| *key != [0; 32]),
                LISTEN_PORT => self.listen_port = number(value).unwrap_or(0),
                PEERS => attributes(value).filter_map(|(_, peer)| read_peer(peer)).for_each(|p| self.add(p)),
                _ => {}
            }
        }
    }

    fn add(&mut self, peer: Peer) {
        match self.peers.iter_mut().find(|known| known.public_key == peer.public_key) {
            Some(known) => known.allowed.extend(peer.allowed),
            None => self.peers.push(peer),
        }
    }
}

fn read_peer(body: &[u8]) -> Option<Peer> {
    let public_key = attributes(body).find(|(kind, _)| *kind == PEER_PUBLIC_KEY)?.1.try_into().ok()?;
    let mut peer = Peer {
        public_key,
        endpoint: None,
        keepalive_s: 0,
        last_handshake: None,
        received_bytes: 0,
        sent_bytes: 0,
        allowed: BTreeSet::new(),
    };
    for (kind, value) in attributes(body) {
        match kind {
            PEER_ENDPOINT => peer.endpoint = read_socket_address(value),
            PEER_KEEPALIVE => peer.keepalive_s = number(value).unwrap_or(0),
            PEER_LAST_HANDSHAKE => peer.last_handshake = read_time(value),
            PEER_RX_BYTES => peer.received_bytes = long(value).unwrap_or(0),
            PEER_TX_BYTES => peer.sent_bytes = long(value).unwrap_or(0),
            PEER_ALLOWED => {
                peer.allowed = attributes(value).filter_map(|(_, net)| read_allowed(net)).collect()
            }
            _ => {}
        }
    }
    Some(peer)
}

fn read_allowed(body: &[u8]) -> Option<IpNet> {
    let value = |wanted: u16| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let address = value(ALLOWED_ADDRESS)?;
    let address: IpAddr = match number(value(ALLOWED_FAMILY)?)? {
        AF_INET => <[u8; 4]>::try_from(address).ok()?.into(),
        AF_INET6 => <[u8; 16]>::try_from(address).ok()?.into(),
        _ => return None,
    };
    IpNet::new(address, *value(ALLOWED_PREFIX)?.first()?).ok()
}

/// `__kernel_timespec`; all zero before the first handshake.
fn read_time(value: &[u8]) -> Option<Duration> {
    let seconds = long(value.get(..8)?)?;
    let nanoseconds = long(value.get(8..16)?)?;
    (seconds > 0).then(|| Duration::new(seconds, u32::try_from(nanoseconds).unwrap_or(0)))
}

fn number(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_ne_bytes)
}

fn long(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_both_families_survive_the_way_through_the_kernels_form() {
        for text in ["192.0.2.1:51820", "[2001:db8::1]:51823", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(read_socket_address(&socket_address(address)), Some(address));
        }
        assert_eq!(read_socket_address(&[10, 0, 1]), None);
    }

    #[test]
    fn a_device_that_was_written_is_read_back_also_out_of_two_messages() {
        let allowed = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<BTreeSet<IpNet>>();
        let change = |nets: &[&str]| Change {
            private_key: Some(&[9; 32]),
            listen_port: Some(51822),
            only_this_peer: true,
            peer: Some(PeerChange {
                public_key: [7; 32],
                endpoint: Some("192.0.2.2:51820".parse().unwrap()),
                keepalive_s: Some(25),
                allowed: Some(allowed(nets)),
            }),
        };
        let mut device = Device::default();
        for part in [&["10.2.0.0/16"][..], &["fd02::/64", "0.0.0.0/0"]] {
            let mut body = named("iw-0123456789ab");
            change(part).encode(&mut body);
            device.read(&body);
        }
        let [peer] = &device.peers[..] else { panic!("one peer: {device:?}") };
        assert_eq!((device.listen_port, peer.keepalive_s, peer.last_handshake), (51822, 25, None));
        assert_eq!(peer.allowed, allowed(&["10.2.0.0/16", "fd02::/64", "0.0.0.0/0"]));
        assert_eq!(peer.endpoint, Some("192.0.2.2:51820".parse().unwrap()));
    }
}
