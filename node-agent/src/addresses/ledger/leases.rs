// SPDX-License-Identifier: Apache-2.0
//! Addresses and links that do not go together: addresses of ours on another plugin's link, and another plugin's on ours.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use isthmus_compiler::{PoolsByFamily, Share};
use isthmus_model::ids::LinkName;
use serde::{Deserialize, Serialize};

use super::{Attachment, AttachmentKey, Ledger, LedgerError, Record, Use};

/// Addresses that another plugin asked for and put on a link of its own. That link is not known here: what tells that a
/// container is gone is DEL, GC, or the next boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Name of the network, which is the other plugin's.
    pub network: String,
    /// The boot of the node that it was given in.
    boot: String,
}

impl Ledger {
    /// Gives an address of each family, out of the pools for it, to another plugin's interface, each with its block.
    ///
    /// # Errors
    /// `Taken` for an interface that has some; `Mixed` where the node's addresses serve another network, or ours; as [`Ledger::give`] otherwise.
    pub fn lease(
        &mut self,
        key: &AttachmentKey,
        pod: (&str, &str),
        pools: &PoolsByFamily,
        network: &str,
        now: Instant,
    ) -> Result<Vec<(IpAddr, IpNet)>, LedgerError> {
        self.is_free(key)?;
        self.serves(Some(network))?;
        // On disk it is first an attachment without link, which no start keeps: nobody was told of it.
        let given =
            self.give_as(key, pod, &Share { pools: pools.clone(), ..Share::default() }, Use::Subnet, now)?;
        let lease = Some(Lease { network: network.to_owned(), boot: boot() });
        let to = Attachment { lease, ..given };
        if let Err(error) = self.append(&Record::Given { key: key.clone(), to: to.clone() }) {
            let _ = self.release(key, now);
            return Err(error.into());
        }
        self.attachments.insert(key.clone(), to.clone());
        let blocks = self.usage();
        let block = |address: &IpAddr| blocks.keys().find(|block| block.contains(address)).copied();
        let with_block =
            |address: &IpAddr| (*address, block(address).unwrap_or_else(|| IpNet::from(*address)));
        Ok(to.addresses.iter().map(with_block).collect())
    }

    /// Records the addresses that another plugin gave to an interface of ours.
    ///
    /// # Errors
    /// `Taken` for an interface that has some, and for addresses that another one has.
    pub fn take(
        &mut self,
        key: &AttachmentKey,
        pod: (&str, &str),
        addresses: Vec<IpAddr>,
    ) -> Result<Attachment, LedgerError> {
        self.is_free(key)?;
        for (other, to) in &self.attachments {
            if let Some(address) = to.addresses.iter().find(|address| addresses.contains(address)) {
                return Err(LedgerError::Taken(format!(
                    "container {} has the address {address}",
                    other.container
                )));
            }
        }
        let to = Attachment::new(key, pod, addresses);
        self.append(&Record::Given { key: key.clone(), to: to.clone() })?;
        to.addresses.iter().for_each(|address| self.ipam.occupy(*address));
        self.attachments.insert(key.clone(), to.clone());
        Ok(to)
    }

    /// Whether the node's addresses serve this network, or pods of ours (none), and nobody else.
    pub(crate) fn serves(&self, network: Option<&str>) -> Result<(), LedgerError> {
        let of = |to: &Attachment| to.lease.as_ref().map(|lease| lease.network.clone());
        match self.attachments.values().map(of).find(|other| other.as_deref() != network) {
            None => Ok(()),
            Some(None) => Err(LedgerError::Mixed("pods of isthmus-cni".to_owned())),
            Some(Some(other)) => Err(LedgerError::Mixed(format!("the network {other} by isthmus-ipam"))),
        }
    }

    fn is_free(&self, key: &AttachmentKey) -> Result<(), LedgerError> {
        let taken =
            || format!("interface {} of container {} has addresses already", key.ifname, key.container);
        if self.attachments.contains_key(key) { Err(LedgerError::Taken(taken())) } else { Ok(()) }
    }
}

/// Whether what was given may still be in use: its link is there, or it is a lease of this boot.
pub(super) fn is_held(to: &Attachment, links: &BTreeMap<LinkName, String>) -> bool {
    match &to.lease {
        Some(lease) => lease.boot == boot(),
        None => links.contains_key(&to.link),
    }
}

/// Another after each boot of the node (random(4)).
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Journal;
    use super::*;

    fn key(container: &str) -> AttachmentKey {
        AttachmentKey { container: container.into(), ifname: "eth0".into() }
    }

    /// IPv4 addresses of the pool `four`.
    fn four() -> Share {
        Share { pools: [(false, ["four".parse().unwrap()].into())].into(), ..Share::default() }
    }

    fn ledger(path: &std::path::Path) -> Ledger {
        let mut ledger = Ledger::open(path, &BTreeMap::new());
        ledger.set_blocks([("10.1.0.0/26".parse().unwrap(), "four".parse().unwrap())].into(), Vec::new());
        ledger
    }

    #[test]
    fn a_lease_outlives_the_agent_and_not_the_boot() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let four = four();
        let given = ledger(&path).lease(&key("a"), ("", ""), &four.pools, "n", Instant::now()).unwrap();
        assert_eq!(given, [("10.1.0.1".parse().unwrap(), "10.1.0.0/26".parse().unwrap())]);
        let mut next = ledger(&path);
        assert_eq!(next.get(&key("a")).unwrap().addresses, [given[0].0]);
        assert!(next.pod_facts().is_empty() && next.linked().is_empty(), "its link is not ours");
        let again = next.lease(&key("a"), ("", ""), &four.pools, "n", Instant::now()).unwrap_err();
        assert!(matches!(again, LedgerError::Taken(_)), "{again}");

        for (network, free) in [(Some("n"), true), (Some("m"), false), (None, false)] {
            assert_eq!(next.serves(network).is_ok(), free, "{network:?}");
        }

        let mut other = next.get(&key("a")).unwrap().clone();
        other.lease.as_mut().unwrap().boot = "before".to_owned();
        let (mut journal, _) = Journal::open::<Record>(&path);
        journal.append(&Record::Given { key: key("a"), to: other }).unwrap();
        assert!(ledger(&path).attachments().is_empty());
    }

    #[test]
    fn a_pod_of_ours_that_asks_after_a_lease_was_given_gets_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = ledger(&directory.path().join("journal"));
        let (four, now) = (four(), Instant::now());
        ledger.lease(&key("a"), ("", ""), &four.pools, "n", now).unwrap();
        for container in ["a", "b"] {
            let mixed = ledger.give(&key(container), ("", ""), &four, now);
            assert!(matches!(mixed, Err(LedgerError::Mixed(_))), "{container}: {mixed:?}");
        }
    }

    #[test]
    fn no_lease_is_the_broadcast_address_of_its_block() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = ledger(&directory.path().join("journal"));
        ledger.set_blocks([("10.1.0.0/30".parse().unwrap(), "four".parse().unwrap())].into(), Vec::new());
        let (four, now) = (four(), Instant::now());
        let mut lease = |container: &str| ledger.lease(&key(container), ("", ""), &four.pools, "n", now);
        let given = ["a", "b"].map(|container| lease(container).unwrap()[0].0.to_string());
        assert_eq!(given, ["10.1.0.1", "10.1.0.2"]);
        assert!(matches!(lease("c"), Err(LedgerError::Shortage(_))));
        assert!(ledger.readiness(&four.pools).is_err(), "STATUS says what ADD would");
    }

    #[test]
    fn addresses_from_elsewhere_are_not_recorded_twice_and_go_with_their_container() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = ledger(&directory.path().join("journal"));
        let addresses: Vec<IpAddr> = vec!["10.1.0.1".parse().unwrap(), "192.0.2.7".parse().unwrap()];
        ledger.take(&key("a"), ("", ""), addresses.clone()).unwrap();
        assert!(matches!(
            ledger.take(&key("b"), ("", ""), addresses[1..].to_vec()),
            Err(LedgerError::Taken(_))
        ));
        let mixed = ledger.lease(&key("c"), ("", ""), &four().pools, "n", Instant::now());
        assert!(matches!(mixed, Err(LedgerError::Mixed(_))), "{mixed:?}");
        let given = ledger.give(&key("c"), ("", ""), &four(), Instant::now()).unwrap();
        assert_eq!(
            given.addresses[0].to_string(),
            "10.1.0.2",
            "what another plugin gave is in use here, too"
        );
        ledger.release(&key("a"), Instant::now()).unwrap();
        ledger.take(&key("b"), ("", ""), addresses).unwrap();
    }
}
