// SPDX-License-Identifier: Apache-2.0
//! Allowed IPs: which peer of a device an inner address belongs to (WireGuard paper, 2: cryptokey routing).

use std::net::IpAddr;

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use crate::peer::PeerId;

/// The networks of a device's peers. Each network has one peer; the longest prefix wins.
#[derive(Default)]
pub(crate) struct AllowedIps {
    networks: JointPrefixMap<IpNet, PeerId>,
    /// What was asked last: packets of one flow follow one another.
    last: Option<(IpAddr, PeerId)>,
}

impl AllowedIps {
    /// The peer with the longest prefix that contains the address.
    pub(crate) fn peer_of(&mut self, address: IpAddr) -> Option<PeerId> {
        if let Some((known, peer)) = self.last
            && known == address
        {
            return Some(peer);
        }
        let peer = *self.networks.get_lpm(&IpNet::from(address))?.1;
        self.last = Some((address, peer));
        Some(peer)
    }

    /// Gives the network to the peer, whoever had it.
    pub(crate) fn insert(&mut self, network: IpNet, peer: PeerId) {
        self.last = None;
        self.networks.insert(network, peer);
    }

    /// Takes the network from the peer. Another's stays.
    pub(crate) fn remove(&mut self, network: &IpNet, peer: PeerId) {
        self.last = None;
        if self.networks.get(network) == Some(&peer) {
            self.networks.remove(network);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<[u8; 4]>(), 0u8..=32).prop_map(|(octets, length)| (IpAddr::from(octets), length));
        let v6 = (any::<u8>(), 0u8..=128).prop_map(|(last, length)| {
            (IpAddr::from([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]), length)
        });
        prop_oneof![v4, v6].prop_map(|(address, length)| IpNet::new(address, length).unwrap().trunc())
    }

    proptest! {
        /// Against the definition: of all networks that contain the address, the one with the longest prefix.
        #[test]
        fn the_longest_prefix_wins_whatever_came_and_went(
            steps in proptest::collection::vec((network(), 0usize..4, any::<bool>()), 0..40),
            asked in proptest::collection::vec(network(), 1..10),
        ) {
            let (mut allowed, mut plain) = (AllowedIps::default(), std::collections::BTreeMap::new());
            for (network, peer, goes) in &steps {
                let peer = PeerId(*peer);
                if *goes {
                    allowed.remove(network, peer);
                    if plain.get(network) == Some(&peer) {
                        plain.remove(network);
                    }
                } else {
                    allowed.insert(*network, peer);
                    plain.insert(*network, peer);
                }
                for address in steps.iter().map(|step| step.0).chain(asked.iter().copied()).map(|net| net.addr()) {
                    let longest = plain.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
                    prop_assert_eq!(allowed.peer_of(address), longest.map(|(_, peer)| *peer), "{}", address);
                }
            }
        }
    }
}
