// SPDX-License-Identifier: Apache-2.0
//! Sets: their key types, and their contents as elements.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_model::ids::LinkName;
use isthmus_model::nft::Set;

use super::attributes::Attributes;

/// Interface names fill 16 bytes (IFNAMSIZ).
const LINK_LEN: usize = 16;
/// Type numbers of the `nft` program, so that it can print our sets.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_LINK: u32 = 41;
const TYPE_BITS: u32 = 6;

/// What the kernel must know to make a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) key_type: u32,
    pub(crate) key_len: u32,
    pub(crate) interval: bool,
}

/// The shape of a set's keys.
pub(crate) fn shape(set: &Set) -> Shape {
    let (key_type, key_len, interval) = match set {
        Set::Links(_) => (TYPE_LINK, 16, false),
        Set::PrefixesV4(_) => (TYPE_IPV4, 4, true),
        Set::PrefixesV6(_) => (TYPE_IPV6, 16, true),
        Set::LinkSourcesV4(_) => (TYPE_LINK << TYPE_BITS | TYPE_IPV4, 20, false),
        Set::LinkSourcesV6(_) => (TYPE_LINK << TYPE_BITS | TYPE_IPV6, 32, false),
    };
    Shape { key_type, key_len, interval }
}

/// An element as the kernel stores it: a key, or one end of an interval (the end is exclusive).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) interval_end: bool,
}

impl Element {
    /// NFTA_SET_ELEM_*.
    pub(crate) fn encode(&self) -> Attributes {
        const INTERVAL_END: u32 = 1;
        let key = Attributes::default().nest(1, Attributes::default().bytes(1, &self.key));
        if self.interval_end { key.u32(3, INTERVAL_END) } else { key }
    }
}

/// The elements of a set. Overlapping and adjacent prefixes become one interval.
pub(crate) fn elements(set: &Set) -> BTreeSet<Element> {
    let point = |key: Vec<u8>| Element { key, interval_end: false };
    match set {
        Set::Links(links) => links.iter().map(|link| point(link_bytes(link))).collect(),
        Set::PrefixesV4(prefixes) => intervals(prefixes, false),
        Set::PrefixesV6(prefixes) => intervals(prefixes, true),
        Set::LinkSourcesV4(pairs) => {
            pairs.iter().map(|(link, ip)| point([link_bytes(link), ip.octets().to_vec()].concat())).collect()
        }
        Set::LinkSourcesV6(pairs) => {
            pairs.iter().map(|(link, ip)| point([link_bytes(link), ip.octets().to_vec()].concat())).collect()
        }
    }
}

fn link_bytes(link: &LinkName) -> Vec<u8> {
    let mut bytes = link.as_str().as_bytes().to_vec();
    bytes.resize(LINK_LEN, 0);
    bytes
}

fn intervals(prefixes: &BTreeSet<IpNet>, v6: bool) -> BTreeSet<Element> {
    let of_family = prefixes.iter().filter(|net| matches!(net, IpNet::V6(_)) == v6).copied();
    let mut ranges: Vec<(u128, u128)> = Vec::new();
    let mut sorted: Vec<(u128, u128)> =
        of_family.map(|n| (number(n.network()), number(n.broadcast()))).collect();
    sorted.sort_unstable();
    for (first, last) in sorted {
        match ranges.last_mut() {
            Some(range) if first <= range.1.saturating_add(1) => range.1 = range.1.max(last),
            _ => ranges.push((first, last)),
        }
    }
    let limit = if v6 { u128::MAX } else { u128::from(u32::MAX) };
    let mut elements = BTreeSet::new();
    for (first, last) in ranges {
        elements.insert(Element { key: octets(first, v6), interval_end: false });
        // An interval up to the last address has no end element.
        if last < limit {
            elements.insert(Element { key: octets(last + 1, v6), interval_end: true });
        }
    }
    elements
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn octets(number: u128, v6: bool) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    if v6 { bytes.to_vec() } else { bytes[12..].to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn shown(texts: &[&str]) -> Vec<(String, bool)> {
        let text = |key: &[u8]| key.iter().map(u8::to_string).collect::<Vec<_>>().join(".");
        elements(&Set::PrefixesV4(prefixes(texts))).iter().map(|e| (text(&e.key), e.interval_end)).collect()
    }

    #[test]
    fn a_prefix_is_an_interval_with_an_exclusive_end() {
        assert_eq!(shown(&["10.1.0.0/16"]), [("10.1.0.0".into(), false), ("10.2.0.0".into(), true)]);
    }

    #[test]
    fn overlapping_and_adjacent_prefixes_become_one_interval() {
        let one = [("10.0.0.0".into(), false), ("10.2.0.0".into(), true)];
        assert_eq!(shown(&["10.0.0.0/16", "10.1.0.0/16", "10.0.5.0/24"]), one);
    }

    #[test]
    fn the_interval_of_everything_has_no_end() {
        assert_eq!(shown(&["0.0.0.0/0", "10.0.0.0/8"]), [("0.0.0.0".into(), false)]);
        let all = elements(&Set::PrefixesV6(prefixes(&["::/0"])));
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn prefixes_of_the_other_family_are_left_out() {
        assert!(shown(&["fd00::/64"]).is_empty());
    }

    #[test]
    fn a_link_and_its_source_are_one_key_of_fixed_length() {
        let pairs = BTreeSet::from([("ist1".parse().unwrap(), "10.0.0.9".parse().unwrap())]);
        let set = Set::LinkSourcesV4(pairs);
        let element = elements(&set).pop_first().unwrap();
        assert_eq!(element.key.len(), shape(&set).key_len as usize);
        assert_eq!(&element.key[..5], b"ist1\0");
        assert_eq!(&element.key[16..], [10, 0, 0, 9]);
    }
}
