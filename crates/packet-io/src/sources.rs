// SPDX-License-Identifier: Apache-2.0
//! From which of our addresses a peer is answered: from the one that it asked at. Behind a NAT, or where routes have another
//! source, an answer from elsewhere reaches nobody.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Peers that are remembered. They are known by their keys, so there are more only if one of them moves without end.
const PEERS: usize = 1 << 14;

/// Our address for each peer's.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    by_peer: HashMap<SocketAddr, IpAddr>,
    /// What was remembered last: datagrams of one peer follow one another.
    last: Option<(SocketAddr, IpAddr)>,
}

impl Sources {
    /// The peer has asked at this address of ours.
    pub(crate) fn remember(&mut self, peer: SocketAddr, own: IpAddr) {
        if self.last == Some((peer, own)) {
            return;
        }
        // A multicast or unspecified address is nobody's to send from.
        if own.is_multicast() || own.is_unspecified() {
            return;
        }
        if self.by_peer.len() >= PEERS && !self.by_peer.contains_key(&peer) {
            self.by_peer.clear();
        }
        self.by_peer.insert(peer, own);
        self.last = Some((peer, own));
    }

    /// The peer is answered from wherever the kernel thinks, until it asks again.
    pub(crate) fn forget(&mut self, peer: &SocketAddr) {
        self.last = None;
        self.by_peer.remove(peer);
    }

    /// From where to answer the peer.
    pub(crate) fn of(&self, peer: &SocketAddr) -> Option<IpAddr> {
        match self.last {
            Some((last, own)) if last == *peer => Some(own),
            _ if self.by_peer.is_empty() => None,
            _ => self.by_peer.get(peer).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn each_peer_is_answered_from_where_it_asked_last_until_that_is_forgotten() {
        let (one, other) = ("192.0.2.9".parse().unwrap(), "192.0.2.10".parse().unwrap());
        let mut sources = Sources::default();
        assert_eq!(sources.of(&peer(1)), None);
        sources.remember(peer(1), one);
        sources.remember(peer(2), other);
        sources.remember(peer(1), other);
        sources.remember(peer(3), one);
        assert_eq!([1, 2, 3].map(|port| sources.of(&peer(port))), [Some(other), Some(other), Some(one)]);
        sources.forget(&peer(3));
        assert_eq!(sources.of(&peer(3)), None);
        sources.remember(peer(3), one);
        assert_eq!(sources.of(&peer(3)), Some(one), "also when it is what was remembered last");
        sources.remember(peer(4), "224.0.0.1".parse().unwrap());
        assert_eq!(sources.of(&peer(4)), None);
    }

    #[test]
    fn however_many_peers_there_are_it_stays_small() {
        let mut sources = Sources::default();
        for number in 0..=u16::MAX {
            sources.remember(peer(number), "192.0.2.9".parse().unwrap());
        }
        assert!(sources.by_peer.len() <= PEERS);
        assert!(sources.of(&peer(u16::MAX)).is_some());
    }
}
