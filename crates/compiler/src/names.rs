// SPDX-License-Identifier: Apache-2.0
//! Names and addresses that follow from what they stand for, so that every run of the agent finds its own again.

use isthmus_model::dataplane::KeySlot;
use isthmus_model::ids::{LinkName, NodeName, PeerName};
use isthmus_model::kernel::MacAddress;
use isthmus_model::ownership::{POD_LINK_PREFIX, TUNNEL_LINK_PREFIX};
use sha2::{Digest, Sha256};

/// The device of the tunnel from a key of ours to one gateway of a peer, between these lanes: ours, and that of the gateway. A device never
/// changes lanes, so no thread ever has to wait for another one to let go of it.
pub fn tunnel_device(peer: &PeerName, gateway: &str, slot: KeySlot, lanes: (u8, u8)) -> LinkName {
    let slot = if slot == KeySlot::First { "" } else { "/second" };
    let lanes = match lanes {
        (0, 0) => String::new(),
        (ours, theirs) => format!("/lane {ours} to {theirs}"),
    };
    link(TUNNEL_LINK_PREFIX, &format!("{peer}/{gateway}{slot}{lanes}"))
}

/// The host end of a pod's interface.
pub fn pod_link(container_id: &str, ifname: &str) -> LinkName {
    link(POD_LINK_PREFIX, &format!("{container_id}/{ifname}"))
}

/// The Ethernet address of a node's VXLAN device: locally administered, unicast.
pub fn vxlan_mac(node: &NodeName) -> MacAddress {
    let hash = Sha256::digest(node.as_str());
    [0x02, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

/// Name of the probe through a tunnel device.
pub fn tunnel_probe(device: &LinkName) -> String {
    format!("tunnel/{device}")
}

/// Name of the probe to a gateway node of this cluster.
pub fn gateway_probe(node: &NodeName) -> String {
    format!("gateway/{node}")
}

/// A short stable tag for names of sets.
pub(crate) fn tag(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..4])
}

/// A slot out of `count` that a name prefers.
pub(crate) fn preferred_slot(text: &str, count: u32) -> u32 {
    let hash = Sha256::digest(text);
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) % count
}

fn link(prefix: &str, of: &str) -> LinkName {
    let name = format!("{prefix}{}", hex::encode(&Sha256::digest(of)[..6]));
    name.parse().expect("a prefix of three letters and twelve hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_fit_the_kernel_and_differ_by_what_they_stand_for() {
        let west: PeerName = "west".parse().unwrap();
        assert_eq!(tunnel_device(&west, "g1", KeySlot::First, (0, 0)).as_str().len(), 15);
        let gateways = ["g1", "g2"].into_iter();
        let ends = gateways.flat_map(|gateway| [(gateway, KeySlot::First), (gateway, KeySlot::Second)]);
        let lanes = [(0, 0), (1, 1), (0, 1), (1, 0)];
        let names = ends.flat_map(|(to, slot)| lanes.map(|lanes| tunnel_device(&west, to, slot, lanes)));
        assert_eq!(names.collect::<std::collections::BTreeSet<_>>().len(), 16);
        assert_ne!(pod_link("c", "eth0"), pod_link("c", "eth1"));
    }

    #[test]
    fn a_vxlan_address_is_unicast_and_locally_administered() {
        assert_eq!(vxlan_mac(&"node-1".parse().unwrap())[0] & 0x03, 0x02);
    }
}
