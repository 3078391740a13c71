// SPDX-License-Identifier: Apache-2.0
//! What shall change on a device of the kernel, decided without it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use isthmus_model::dataplane::{KeySlot, Tunnel};
use isthmus_model::ownership::{PROBE_PORT, WIREGUARD_PORTS};
use isthmus_wg::PublicKey;
use isthmus_wg_kernel::{Device, Peer, PeerChange};

/// A session is dead after this (WireGuard paper, 6.1: Reject-After-Time).
const SESSION: Duration = Duration::from_secs(180);

/// A tunnel as it is wanted, and the endpoint that was announced when the device was last told of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) peer: PublicKey,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) keepalive_s: u16,
    pub(super) allowed: BTreeSet<IpNet>,
    /// Which of our keys it has.
    pub(super) key_slot: KeySlot,
    /// Which lane it is of: that has keys of its own, and nothing else here.
    pub(super) lane: u8,
    /// None before this process has told the device of any.
    pub(super) told: Option<Option<SocketAddr>>,
}

impl Wanted {
    pub(super) fn new(peer: PublicKey, tunnel: &Tunnel) -> Self {
        Self {
            peer,
            endpoint: tunnel.endpoint,
            keepalive_s: tunnel.keepalive_s,
            // The kernel keeps networks without host bits; what is compared has to be alike.
            allowed: tunnel.allowed.iter().map(IpNet::trunc).collect(),
            key_slot: tunnel.key_slot,
            lane: tunnel.lane,
            told: None,
        }
    }
}

/// What shall change on the peers of a device, and whether others than the wanted one go.
pub(super) fn peer_change(wanted: &Wanted, seen: &Device, unix_now: Duration) -> Option<(PeerChange, bool)> {
    let key = *wanted.peer.as_bytes();
    let known = seen.peers.iter().find(|peer| peer.public_key == key);
    let others = seen.peers.iter().any(|peer| peer.public_key != key);
    let change = PeerChange {
        public_key: key,
        endpoint: wanted.endpoint.filter(|_| endpoint_is_due(wanted, known, unix_now)),
        keepalive_s: known
            .is_none_or(|peer| peer.keepalive_s != wanted.keepalive_s)
            .then_some(wanted.keepalive_s),
        allowed: known.is_none_or(|peer| peer.allowed != wanted.allowed).then(|| wanted.allowed.clone()),
    };
    let nothing = change.endpoint.is_none() && change.keepalive_s.is_none() && change.allowed.is_none();
    // Replacing the peers would end the session of one that stays: it goes only with the key.
    match known {
        Some(_) if nothing => None,
        Some(_) => Some((change, false)),
        None => Some((change, others)),
    }
}

/// A roamed endpoint stays until another one is announced. A process that has just started cannot know which one was
/// announced last: it leaves a living session alone.
fn endpoint_is_due(wanted: &Wanted, known: Option<&Peer>, unix_now: Duration) -> bool {
    let Some(known) = known.filter(|known| known.endpoint.is_some()) else { return true };
    if known.endpoint == wanted.endpoint {
        return false;
    }
    match wanted.told {
        Some(told) => told != wanted.endpoint,
        None => !is_alive(known, unix_now),
    }
}

/// Whether the peer has a session.
pub(super) fn is_alive(peer: &Peer, unix_now: Duration) -> bool {
    peer.last_handshake.is_some_and(|at| unix_now.saturating_sub(at) < SESSION)
}

/// Ports to try for a device, best first: the one that it has, then the smallest that no other device of ours has.
pub(super) fn ports(base: u16, has: Option<u16>, taken: &BTreeSet<u16>) -> Vec<u16> {
    let range = base..=base.saturating_add(WIREGUARD_PORTS - 1);
    let free = |port: &u16| *port != PROBE_PORT && !taken.contains(port);
    let kept = has.filter(|port| range.contains(port) && free(port));
    let others = range.filter(|port| free(port) && Some(*port) != kept);
    kept.into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn tunnel(key: u8) -> Tunnel {
        let key = isthmus_wg::PrivateKey::from_bytes([key; 32]).public();
        Tunnel {
            peer: "west".parse().unwrap(),
            peer_key: key.to_string(),
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            allowed: ["10.2.0.0/16".parse().unwrap()].into(),
            keepalive_s: 25,
            key_slot: KeySlot::First,
            lane: 0,
        }
    }

    fn wanted() -> Wanted {
        let tunnel = tunnel(2);
        Wanted::new(tunnel.peer_key.parse().unwrap(), &tunnel)
    }

    fn configured(endpoint: &str, handshake_s: u64) -> Device {
        let wanted = wanted();
        let peer = Peer {
            public_key: *wanted.peer.as_bytes(),
            endpoint: Some(endpoint.parse().unwrap()),
            keepalive_s: 25,
            last_handshake: Some(Duration::from_secs(handshake_s)),
            received_bytes: 0,
            sent_bytes: 0,
            allowed: wanted.allowed,
        };
        Device { public_key: None, listen_port: 51820, peers: vec![peer] }
    }

    #[test]
    fn a_device_that_is_as_wanted_is_left_alone_and_so_is_a_roamed_endpoint() {
        assert_eq!(peer_change(&wanted(), &configured("192.0.2.1:51820", 999_990), NOW), None);
        let told = Wanted { told: Some(wanted().endpoint), ..wanted() };
        assert_eq!(peer_change(&told, &configured("198.51.100.7:4000", 0), NOW), None);
    }

    #[test]
    fn another_announcement_moves_the_endpoint_and_touches_nothing_else() {
        let before = Some(Some("192.0.2.9:51820".parse().unwrap()));
        let moved = Wanted { told: before, ..wanted() };
        let (change, replaces) = peer_change(&moved, &configured("198.51.100.7:4000", 999_990), NOW).unwrap();
        assert_eq!(change.endpoint, wanted().endpoint);
        assert!(change.allowed.is_none() && change.keepalive_s.is_none() && !replaces);
    }

    #[test]
    fn after_a_restart_a_living_session_keeps_its_endpoint_and_a_dead_one_gets_the_announced() {
        assert_eq!(peer_change(&wanted(), &configured("198.51.100.7:4000", 999_990), NOW), None);
        let (change, _) = peer_change(&wanted(), &configured("198.51.100.7:4000", 5), NOW).unwrap();
        assert_eq!(change.endpoint, wanted().endpoint);
    }

    #[test]
    fn another_key_replaces_the_peer_whole() {
        let mut old = configured("192.0.2.1:51820", 999_990);
        old.peers[0].public_key = [9; 32];
        let (change, replaces) = peer_change(&wanted(), &old, NOW).unwrap();
        assert!(replaces && change.allowed.is_some() && change.endpoint.is_some());
    }

    #[test]
    fn a_device_keeps_its_port_and_a_new_one_gets_the_smallest_free_that_is_not_the_probes() {
        let taken = BTreeSet::from([51820]);
        assert_eq!(ports(51820, None, &taken)[..2], [51822, 51823]);
        assert_eq!(ports(51820, Some(51830), &taken)[..2], [51830, 51822]);
        assert_eq!(ports(51820, Some(40000), &BTreeSet::new())[0], 51820);
        assert_eq!(ports(51820, None, &BTreeSet::new()).len(), usize::from(WIREGUARD_PORTS) - 1);
    }
}
