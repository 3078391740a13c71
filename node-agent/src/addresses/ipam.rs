// SPDX-License-Identifier: Apache-2.0
//! Which addresses of the node's blocks are free. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use isthmus_compiler::PodId;
use isthmus_model::ids::PoolName;
use isthmus_model::ownership::mesh_address;

/// A released address is given out again after this, if others are free: connections to the old pod end first.
pub const COOL_DOWN: Duration = Duration::from_secs(30);

/// No address can be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// The node has no block of the family (yet).
    #[error(
        "this node holds no {family} block of IPPool {pools}; the operator gives it one, see `kubectl get ipblocks`"
    )]
    NoBlock {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Pools that could give one.
        pools: String,
    },
    /// All addresses of the node's blocks are in use.
    #[error(
        "all {family} addresses of this node's blocks of IPPool {pools} are in use; a further block is on its way unless the pool is exhausted, see `kubectl get ippools`"
    )]
    Exhausted {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Pools of the blocks.
        pools: String,
    },
    /// The address was the pod's a moment ago.
    #[error("{address} is not this pod's any more; the runtime tries again")]
    NotOwn {
        /// The address.
        address: IpAddr,
    },
}

/// How an address is put on its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// As /32 or /128.
    Alone,
    /// With its block's length: the IPv4 block's last address is then the broadcast address (RFC 919, section 7).
    Subnet,
}

/// A family (`v6`), and the pools that an address of it may come from.
pub(super) type Wanted<'a> = (bool, &'a BTreeSet<PoolName>);

/// Addresses of this node's blocks.
#[derive(Debug, Default)]
pub struct Ipam {
    /// Blocks that addresses may come from, and their pools.
    blocks: BTreeMap<IpNet, PoolName>,
    /// Ranges that no pod receives unasked.
    reserved: Vec<IpNet>,
    /// Addresses that are single pods', and the pod that one may be given to now.
    own: BTreeMap<IpAddr, Option<PodId>>,
    used: BTreeSet<IpAddr>,
    /// Released addresses and when that was.
    cooling: BTreeMap<IpAddr, Instant>,
    /// The last address given out of each block: the search goes on behind it.
    cursors: BTreeMap<IpNet, IpAddr>,
}

impl Ipam {
    /// Replaces the blocks, and the ranges of them that no pod receives. Addresses in use stay in use, also outside of the blocks
    /// and inside of the ranges.
    pub fn set_blocks(&mut self, blocks: BTreeMap<IpNet, PoolName>, reserved: Vec<IpNet>) {
        self.cursors.retain(|block, _| blocks.contains_key(block));
        self.blocks = blocks;
        self.reserved = reserved;
    }

    /// Replaces the addresses that are single pods'. Those in use stay in use.
    pub fn set_own(&mut self, own: BTreeMap<IpAddr, Option<PodId>>) {
        self.own = own;
    }

    /// Takes an address that is the pod's. Whether it is in use is the caller's to know.
    pub fn take_own(&mut self, address: IpAddr, pod: &PodId) -> Result<(), Shortage> {
        if self.own.get(&address) != Some(&Some(pod.clone())) {
            return Err(Shortage::NotOwn { address });
        }
        self.occupy(address);
        Ok(())
    }

    /// Takes an address of a family out of the blocks of some pools.
    pub fn allocate(&mut self, of: Wanted<'_>, usage: Use, now: Instant) -> Result<IpAddr, Shortage> {
        self.cooling.retain(|_, since| now.saturating_duration_since(*since) < COOL_DOWN);
        let address = self.candidate(of, usage).ok_or_else(|| self.shortage(of))?;
        self.cooling.remove(&address);
        self.used.insert(address);
        Ok(address)
    }

    /// Marks an address as in use (recovery).
    pub fn occupy(&mut self, address: IpAddr) {
        self.cooling.remove(&address);
        self.used.insert(address);
    }

    /// Gives an address back.
    pub fn release(&mut self, address: IpAddr, now: Instant) {
        if self.used.remove(&address) {
            self.cooling.insert(address, now);
        }
    }

    /// Addresses in use of each block.
    pub fn usage(&self) -> BTreeMap<IpNet, usize> {
        let count = |block: &IpNet| self.used.iter().filter(|address| block.contains(*address)).count();
        let own =
            self.own.keys().map(|address| (IpNet::from(*address), usize::from(self.used.contains(address))));
        self.blocks.keys().map(|block| (*block, count(block))).chain(own).collect()
    }

    /// Whether an address of the family can be given out of these pools.
    pub fn can_allocate(&self, of: Wanted<'_>, usage: Use) -> bool {
        self.candidate(of, usage).is_some()
    }

    fn candidate(&self, of: Wanted<'_>, usage: Use) -> Option<IpAddr> {
        self.next_free(of, usage).or_else(|| self.longest_cooling(of, usage))
    }

    fn blocks_of<'a>(&'a self, (v6, pools): Wanted<'a>) -> impl Iterator<Item = &'a IpNet> {
        let wanted = move |(block, pool): &(&IpNet, &PoolName)| {
            matches!(block, IpNet::V6(_)) == v6 && pools.contains(*pool)
        };
        self.blocks.iter().filter(wanted).map(|(block, _)| block)
    }

    fn next_free(&self, of: Wanted<'_>, usage: Use) -> Option<IpAddr> {
        self.blocks_of(of).find_map(|block| {
            let start = self.cursors.get(block).copied().unwrap_or_else(|| mesh_address(block));
            // Each step meets a taken address or the block's ends, leaps a reserved range or ends: the search is no longer than what is taken, whatever
            // the block's size.
            let steps = self.used.len() + self.cooling.len() + self.reserved.len() + 3;
            let mut candidate = start;
            for _ in 0..=steps {
                candidate = successor(block, candidate);
                if self.is_free(block, candidate, usage) && !self.cooling.contains_key(&candidate) {
                    return Some(candidate);
                }
                if candidate == start {
                    break;
                }
                if let Some(range) = self.reserved.iter().find(|range| range.contains(&candidate)) {
                    if range.contains(block) {
                        break;
                    }
                    candidate = range.broadcast();
                }
            }
            None
        })
    }

    fn longest_cooling(&self, of: Wanted<'_>, usage: Use) -> Option<IpAddr> {
        let inside = |address: &IpAddr| self.blocks_of(of).any(|block| self.is_free(block, *address, usage));
        self.cooling
            .iter()
            .filter(|(address, _)| inside(address))
            .min_by_key(|(_, since)| **since)
            .map(|(a, _)| *a)
    }

    fn is_free(&self, block: &IpNet, address: IpAddr, usage: Use) -> bool {
        block.contains(&address)
            && address != mesh_address(block)
            && !(usage == Use::Subnet && is_broadcast(block, address))
            && !self.used.contains(&address)
            && !self.reserved.iter().any(|range| range.contains(&address))
    }

    fn shortage(&self, (v6, wanted): Wanted<'_>) -> Shortage {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let pools = wanted.iter().map(PoolName::as_str).collect::<Vec<_>>().join(", ");
        if self.blocks_of((v6, wanted)).any(|_| true) {
            Shortage::Exhausted { family, pools }
        } else {
            Shortage::NoBlock { family, pools }
        }
    }
}

/// A /31 has none (RFC 3021).
fn is_broadcast(block: &IpNet, address: IpAddr) -> bool {
    address.is_ipv4() && block.prefix_len() < 31 && address == block.broadcast()
}

/// The address behind `address` in the block, the first one behind the last.
fn successor(block: &IpNet, address: IpAddr) -> IpAddr {
    let next = match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|next| IpAddr::V6(next.into())),
    };
    next.filter(|next| block.contains(next)).unwrap_or_else(|| block.network())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pods() -> BTreeSet<PoolName> {
        ["pods".parse().unwrap()].into()
    }

    fn ipam(blocks: &[&str]) -> Ipam {
        let mut ipam = Ipam::default();
        ipam.set_blocks(
            blocks.iter().map(|block| (block.parse().unwrap(), "pods".parse().unwrap())).collect(),
            Vec::new(),
        );
        ipam
    }

    #[test]
    fn the_first_address_of_a_block_is_the_nodes_and_no_pods() {
        let mut ipam = ipam(&["10.1.0.0/30"]);
        let now = Instant::now();
        let given: Vec<String> =
            (0..3).map(|_| ipam.allocate((false, &pods()), Use::Alone, now).unwrap().to_string()).collect();
        assert_eq!(given, ["10.1.0.1", "10.1.0.2", "10.1.0.3"]);
        let error = ipam.allocate((false, &pods()), Use::Alone, now).unwrap_err();
        assert_eq!(error, Shortage::Exhausted { family: "IPv4", pools: "pods".into() });
        assert!(error.to_string().contains("IPPool pods"), "{error}");
    }

    #[test]
    fn a_released_address_cools_down_while_others_are_free_and_is_used_when_none_is() {
        let mut ipam = ipam(&["10.1.0.0/30"]);
        let now = Instant::now();
        let first = ipam.allocate((false, &pods()), Use::Alone, now).unwrap();
        ipam.release(first, now);
        assert_ne!(ipam.allocate((false, &pods()), Use::Alone, now).unwrap(), first);
        assert_ne!(ipam.allocate((false, &pods()), Use::Alone, now).unwrap(), first);
        assert_eq!(
            ipam.allocate((false, &pods()), Use::Alone, now).unwrap(),
            first,
            "better early than not at all"
        );
    }

    #[test]
    fn a_further_block_serves_when_the_first_is_full() {
        let mut ipam = ipam(&["10.1.0.0/31", "10.1.0.64/31"]);
        let now = Instant::now();
        let given: Vec<String> =
            (0..2).map(|_| ipam.allocate((false, &pods()), Use::Alone, now).unwrap().to_string()).collect();
        assert_eq!(given, ["10.1.0.1", "10.1.0.65"]);
    }

    #[test]
    fn addresses_come_out_of_the_wanted_pools_only() {
        let mut ipam = Ipam::default();
        let block = |cidr: &str, pool: &str| (cidr.parse().unwrap(), pool.parse().unwrap());
        ipam.set_blocks([block("10.1.0.0/31", "pods"), block("10.7.0.0/31", "team")].into(), Vec::new());
        let team = ["team".parse().unwrap()].into();
        let (now, later) = (Instant::now(), Instant::now() + COOL_DOWN / 2);
        let first = ipam.allocate((false, &team), Use::Alone, now).unwrap();
        assert_eq!(first.to_string(), "10.7.0.1");
        let error = ipam.allocate((false, &team), Use::Alone, now).unwrap_err();
        assert_eq!(error, Shortage::Exhausted { family: "IPv4", pools: "team".into() });
        ipam.release(first, now);
        let other = ipam.allocate((false, &pods()), Use::Alone, later).unwrap();
        assert_eq!(other.to_string(), "10.1.0.1");
        assert!(ipam.allocate((false, &pods()), Use::Alone, later).is_err(), "what cools is the team's");
        assert_eq!(ipam.allocate((false, &team), Use::Alone, later), Ok(first));
        let none = ["gone".parse().unwrap()].into();
        let error = ipam.allocate((false, &none), Use::Alone, now).unwrap_err();
        assert!(error.to_string().contains("no IPv4 block of IPPool gone"), "{error}");
    }

    #[test]
    fn reserved_ranges_are_leapt_over_wherever_they_lie() {
        let given = |block: &str, reserved: &[&str], v6: bool| {
            let mut ipam = Ipam::default();
            let reserved = reserved.iter().map(|range| range.parse().unwrap()).collect();
            ipam.set_blocks([(block.parse().unwrap(), "pods".parse().unwrap())].into(), reserved);
            let now = Instant::now();
            std::iter::from_fn(|| ipam.allocate((v6, &pods()), Use::Alone, now).ok())
                .take(4)
                .map(|a| a.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            given("10.1.0.0/29", &["10.1.0.0/30"], false),
            ["10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.7"]
        );
        assert_eq!(given("10.1.0.0/29", &["10.1.0.4/30", "10.1.0.2/32"], false), ["10.1.0.1", "10.1.0.3"]);
        assert_eq!(
            given("fd00::/64", &["fd00::/65", "fd00:0:0:0:8000::/120"], true)[0],
            "fd00::8000:0:0:100"
        );
        for whole in ["10.1.0.0/29", "10.1.0.0/24"] {
            assert_eq!(given("10.1.0.0/29", &[whole], false), [""; 0]);
        }
    }

    #[test]
    fn what_is_reserved_later_stays_with_who_has_it() {
        let mut ipam = ipam(&["10.1.0.0/29"]);
        let now = Instant::now();
        let first = ipam.allocate((false, &pods()), Use::Alone, now).unwrap();
        ipam.set_blocks(ipam.blocks.clone(), vec!["10.1.0.0/30".parse().unwrap()]);
        assert_eq!(ipam.usage().values().sum::<usize>(), 1);
        assert_eq!(ipam.allocate((false, &pods()), Use::Alone, now).unwrap().to_string(), "10.1.0.4");
        ipam.release(first, now);
        let left = std::iter::from_fn(|| ipam.allocate((false, &pods()), Use::Alone, now).ok()).count();
        assert_eq!(left, 3, "what was given back is not given again");
    }

    #[test]
    fn a_huge_block_is_searched_in_as_many_steps_as_addresses_are_taken() {
        let mut ipam = ipam(&["fd00::/64"]);
        let now = Instant::now();
        assert_eq!(ipam.allocate((true, &pods()), Use::Alone, now).unwrap().to_string(), "fd00::1");
        assert!(matches!(
            ipam.allocate((false, &pods()), Use::Alone, now),
            Err(Shortage::NoBlock { family: "IPv4", .. })
        ));
    }

    proptest! {
        #[test]
        fn no_address_is_ever_given_twice_and_none_is_lost(takes in proptest::collection::vec(any::<bool>(), 1..200)) {
            let mut ipam = ipam(&["10.1.0.0/28", "10.1.0.32/29"]);
            let (mut held, mut now) = (Vec::new(), Instant::now());
            for take in takes {
                now += Duration::from_secs(1);
                if take || held.is_empty() {
                    match ipam.allocate((false, &pods()), Use::Alone, now) {
                        Ok(address) => {
                            prop_assert!(!held.contains(&address), "{address} given twice");
                            held.push(address);
                        }
                        Err(_) => prop_assert_eq!(held.len(), 15 + 7),
                    }
                } else {
                    ipam.release(held.remove(0), now);
                }
            }
            prop_assert_eq!(ipam.usage().values().sum::<usize>(), held.len());
        }
    }
}
