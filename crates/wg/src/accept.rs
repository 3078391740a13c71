// SPDX-License-Identifier: Apache-2.0
//! Which tunnels of a configuration can run.

use std::collections::BTreeMap;

use isthmus_model::dataplane::{KeySlot, Tunnel};
use isthmus_model::ids::LinkName;

use crate::key::{InvalidKey, PublicKey};

/// Why a tunnel of a configuration does not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The peer's key cannot be read.
    #[error("tunnel {0}: {1}")]
    Key(LinkName, InvalidKey),
    /// The peer's key is our own.
    #[error(
        "tunnel {0} leads to this node itself: its peer key is our own; remove it or announce another key"
    )]
    Itself(LinkName),
    /// Two tunnels between the same two keys: what comes in could belong to either.
    #[error("tunnels {0} and {1} have the same peer key; announce a key of its own for each gateway")]
    Twice(LinkName, LinkName),
    /// We have no key in the tunnel's slot.
    #[error("tunnel {0}: this node has no key in the slot {1:?} any more, or not yet")]
    NoKey(LinkName, KeySlot),
}

/// Tunnels of one lane that can run with its keys, each with the peer's key; the others are named.
pub fn accept<'a>(
    tunnels: &'a BTreeMap<LinkName, Tunnel>,
    own: &BTreeMap<KeySlot, PublicKey>,
) -> (BTreeMap<LinkName, (PublicKey, &'a Tunnel)>, Vec<Refusal>) {
    let (mut accepted, mut refusals) = (BTreeMap::new(), Vec::new());
    let mut ends: BTreeMap<(KeySlot, PublicKey), &LinkName> = BTreeMap::new();
    for (name, tunnel) in tunnels {
        let refused = match tunnel.peer_key.parse::<PublicKey>() {
            Err(error) => Refusal::Key(name.clone(), error),
            Ok(peer) if own.values().any(|own| *own == peer) => Refusal::Itself(name.clone()),
            Ok(_) if !own.contains_key(&tunnel.key_slot) => Refusal::NoKey(name.clone(), tunnel.key_slot),
            Ok(peer) => match ends.get(&(tunnel.key_slot, peer)) {
                Some(other) => Refusal::Twice((*other).clone(), name.clone()),
                None => {
                    ends.insert((tunnel.key_slot, peer), name);
                    accepted.insert(name.clone(), (peer, tunnel));
                    continue;
                }
            },
        };
        refusals.push(refused);
    }
    (accepted, refusals)
}
