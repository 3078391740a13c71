// SPDX-License-Identifier: Apache-2.0
//! Who has which address: in the journal before it is programmed, released after it is gone.

mod leases;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ipnet::IpNet;
use isthmus_compiler::{PodFacts, PodId, PoolsByFamily, Share, pod_link};
use isthmus_kernel::{POD_ALIAS_MAX, PodLink};
use isthmus_model::ids::{LinkName, PoolName};
use isthmus_model::kernel::MacAddress;
use serde::{Deserialize, Serialize};

use leases::is_held;

pub use leases::Lease;

use super::ipam::{Ipam, Shortage, Use};
use super::journal::{Journal, JournalError, Recovery};

/// The journal is rewritten when it holds this many records more than there are attachments.
const SLACK_RECORDS: usize = 1024;

/// An interface of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// What an interface of a container was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Namespace of the pod; empty outside Kubernetes.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Host end of the veth pair.
    pub link: LinkName,
    /// Addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Ethernet address of the interface, where the pod asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Set where another plugin put the addresses on a link of its own: then `link` does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
}

impl Attachment {
    /// What the pod (namespace and name) gets, on a link of ours.
    fn new(key: &AttachmentKey, (namespace, pod): (&str, &str), addresses: Vec<IpAddr>) -> Self {
        let link = pod_link(&key.container, &key.ifname);
        Self { namespace: namespace.to_owned(), pod: pod.to_owned(), link, addresses, mac: None, lease: None }
    }

    /// Its link, as it is made and restored.
    pub(crate) fn pod_link(
        &self,
        key: &AttachmentKey,
        ifname: LinkName,
        netns_path: PathBuf,
        mtu: u32,
    ) -> PodLink {
        PodLink {
            netns_path,
            ifname,
            host_link: self.link.clone(),
            alias: alias(key, self),
            addresses: self.addresses.clone(),
            mtu,
            mac: self.mac,
        }
    }
}

/// Tells one making of a link from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linking(u64);

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Given { key: AttachmentKey, to: Attachment },
    Released { key: AttachmentKey },
}

/// Why an attachment was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// No address.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// Somebody has it already.
    #[error("{0}; DEL it first")]
    Taken(String),
    /// What the pod asked for is still another container's of this node.
    #[error(
        "{what} is still in use by container {container} of this node, of the pod {pod}; it is free after that one's DEL"
    )]
    InUse {
        /// The address.
        what: String,
        /// `CNI_CONTAINERID` of who has it.
        container: String,
        /// Its pod.
        pod: String,
    },
    /// The node's blocks serve another network already.
    #[error(
        "this node's addresses serve {0}; a node's blocks are the subnet of one network, and its pods find each other on its links only"
    )]
    Mixed(String),
    /// No disk.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// All attachments of the node.
#[derive(Debug)]
pub struct Ledger {
    ipam: Ipam,
    attachments: BTreeMap<AttachmentKey, Attachment>,
    /// Attachments whose link exists, and when it was made: these are let through.
    linked: BTreeMap<AttachmentKey, Linking>,
    linkings: u64,
    journal: Journal,
    /// Why the journal could not be written when that was tried last.
    unwritable: Option<String>,
}

impl Ledger {
    /// Reads the journal; `links` are the pod links that the kernel has, by the alias that [`alias`] made.
    ///
    /// An attachment without a link was never answered for, or its container is gone: it is released. One whose link was
    /// only begun, and has no alias yet, is kept: so the GC of a runtime that forgot the container finds the link. A link
    /// that the journal does not know (it was lost) is adopted from its alias.
    pub fn open(path: &Path, links: &BTreeMap<LinkName, String>) -> Self {
        let (journal, recovery) = Journal::open::<Record>(path);
        if recovery.damaged > 0 || recovery.torn_bytes > 0 {
            tracing::warn!(
                damaged = recovery.damaged,
                torn_bytes = recovery.torn_bytes,
                "the journal was repaired"
            );
        }
        let mut ledger = Self {
            ipam: Ipam::default(),
            attachments: replay(recovery),
            linked: BTreeMap::new(),
            linkings: 0,
            journal,
            unwritable: None,
        };
        for (link, text) in links {
            if let Some((key, attachment)) = adopt(link, text) {
                ledger.attachments.entry(key).or_insert(attachment);
            }
        }
        ledger.attachments.retain(|_, attachment| is_held(attachment, links));
        let with_link = ledger.attachments.iter().filter(|(_, to)| to.lease.is_none());
        ledger.linked = with_link.map(|(key, _)| (key.clone(), Linking(0))).collect();
        for address in ledger.attachments.values().flat_map(|attachment| &attachment.addresses) {
            ledger.ipam.occupy(*address);
        }
        // A full disk must not keep DEL and running pods from being served; ADD will say so.
        if let Err(error) = ledger.compact() {
            tracing::warn!(%error, "the journal could not be rewritten");
            ledger.unwritable = Some(error.to_string());
        }
        tracing::info!(attachments = ledger.attachments.len(), "addresses are known");
        ledger
    }

    /// Replaces the node's blocks.
    pub fn set_blocks(&mut self, blocks: BTreeMap<IpNet, PoolName>, reserved: Vec<IpNet>) {
        self.ipam.set_blocks(blocks, reserved);
    }

    /// Replaces the addresses that are single pods', each with the pod that it may be given to now.
    pub fn set_own(&mut self, own: BTreeMap<IpAddr, Option<PodId>>) {
        self.ipam.set_own(own);
    }

    /// Gives an interface of ours its pod's share, or what it has already.
    ///
    /// # Errors
    /// `Mixed` where the node's addresses serve another network; no address is free, or the pod's own is in use; the journal
    /// cannot be written.
    pub fn give(
        &mut self,
        key: &AttachmentKey,
        pod: (&str, &str),
        share: &Share,
        now: Instant,
    ) -> Result<Attachment, LedgerError> {
        self.serves(None)?;
        self.give_as(key, pod, share, Use::Alone, now)
    }

    fn give_as(
        &mut self,
        key: &AttachmentKey,
        pod: (&str, &str),
        share: &Share,
        usage: Use,
        now: Instant,
    ) -> Result<Attachment, LedgerError> {
        if let Some(attachment) = self.attachments.get(key) {
            return Ok(attachment.clone());
        }
        self.nobody_has(share)?;
        let mut addresses = Vec::new();
        let own = share.own.iter().map(|(address, pod)| (*address, pod));
        let taken = self.take_all(own, &share.pools, usage, now, &mut addresses);
        if let Err(shortage) = taken {
            self.take_back(&addresses, now);
            return Err(shortage.into());
        }
        addresses.sort();
        let to = Attachment { mac: share.mac, ..Attachment::new(key, pod, addresses) };
        if let Err(error) = self.append(&Record::Given { key: key.clone(), to: to.clone() }) {
            self.take_back(&to.addresses, now);
            return Err(error.into());
        }
        self.attachments.insert(key.clone(), to.clone());
        Ok(to)
    }

    fn take_all<'a>(
        &mut self,
        own: impl Iterator<Item = (IpAddr, &'a PodId)>,
        pools: &PoolsByFamily,
        usage: Use,
        now: Instant,
        addresses: &mut Vec<IpAddr>,
    ) -> Result<(), Shortage> {
        for (address, pod) in own {
            self.ipam.take_own(address, pod)?;
            addresses.push(address);
        }
        for (v6, pools) in pools {
            addresses.push(self.ipam.allocate((*v6, pools), usage, now)?);
        }
        Ok(())
    }

    /// Whether what the pod asks for is free on this node.
    fn nobody_has(&self, share: &Share) -> Result<(), LedgerError> {
        let in_use = |key: &AttachmentKey, to: &Attachment, what: String| {
            let pod = format!("{}/{}", to.namespace, to.pod);
            Err(LedgerError::InUse { what, container: key.container.clone(), pod })
        };
        for (key, to) in &self.attachments {
            if let Some((address, _)) = share.own.iter().find(|(address, _)| to.addresses.contains(address)) {
                return in_use(key, to, address.to_string());
            }
            if let Some(mac) = share.mac.filter(|mac| to.mac == Some(*mac)) {
                return in_use(key, to, mac_text(mac));
            }
        }
        Ok(())
    }

    /// The link exists: its packets may pass.
    pub fn link_made(&mut self, key: &AttachmentKey) {
        self.linkings += 1;
        self.linked.insert(key.clone(), Linking(self.linkings));
    }

    /// The link is about to go: nothing may pass any more. The addresses stay taken.
    pub fn link_going(&mut self, key: &AttachmentKey) {
        self.linked.remove(key);
    }

    /// Gives an interface's addresses back. In memory this always works; an error says that the disk does not know it yet, and
    /// then the next start finds no link and releases again.
    pub fn release(&mut self, key: &AttachmentKey, now: Instant) -> Result<(), JournalError> {
        self.linked.remove(key);
        let Some(attachment) = self.attachments.remove(key) else { return Ok(()) };
        self.take_back(&attachment.addresses, now);
        self.append(&Record::Released { key: key.clone() })?;
        if self.journal.records() > self.attachments.len() + SLACK_RECORDS { self.compact() } else { Ok(()) }
    }

    /// An attachment.
    pub fn get(&self, key: &AttachmentKey) -> Option<&Attachment> {
        self.attachments.get(key)
    }

    /// All attachments.
    pub fn attachments(&self) -> &BTreeMap<AttachmentKey, Attachment> {
        &self.attachments
    }

    /// Attachments with a link, for [`Ledger::release_unlinked`].
    pub fn linked(&self) -> BTreeMap<AttachmentKey, Linking> {
        self.linked.clone()
    }

    /// The same with what they were given.
    pub fn linked_attachments(&self) -> Vec<(AttachmentKey, Attachment)> {
        let given = |key: &AttachmentKey| self.attachments.get(key).map(|to| (key.clone(), to.clone()));
        self.linked.keys().filter_map(given).collect()
    }

    /// Pods with a link, as the compiler wants them.
    pub fn pod_facts(&self) -> BTreeMap<LinkName, PodFacts> {
        let linked = self.attachments.iter().filter(|(key, _)| self.linked.contains_key(*key));
        let facts = |attachment: &Attachment| PodFacts {
            namespace: attachment.namespace.clone(),
            name: attachment.pod.clone(),
            addresses: attachment.addresses.clone(),
        };
        linked.map(|(_, attachment)| (attachment.link.clone(), facts(attachment))).collect()
    }

    /// Addresses in use of each block.
    pub fn usage(&self) -> BTreeMap<IpNet, usize> {
        self.ipam.usage()
    }

    /// Whether a pod could be given addresses out of these pools now; why not, otherwise.
    pub fn readiness(&self, pools: &PoolsByFamily) -> Result<(), String> {
        if pools.is_empty() {
            return Err("no enabled IPPool applies to this node; create one".to_owned());
        }
        let leases = self.attachments.values().any(|to| to.lease.is_some());
        let usage = if leases { Use::Subnet } else { Use::Alone };
        for (v6, pools) in pools {
            if !self.ipam.can_allocate((*v6, pools), usage) {
                let family = if *v6 { "IPv6" } else { "IPv4" };
                return Err(format!(
                    "no free {family} address on this node; see `kubectl get ippools,ipblocks`"
                ));
            }
        }
        self.unwritable.clone().map_or(Ok(()), Err)
    }

    /// Tries whether the journal can be written, so that STATUS knows before an ADD fails.
    pub fn probe_journal(&mut self) {
        self.unwritable = self.journal.probe().err().map(|error| error.to_string());
    }

    /// Gives back what attachments hold whose link was made `before` and is not among `links`, which were listed after that:
    /// their containers are gone and nobody said so. Returns what was given back.
    pub fn release_unlinked(
        &mut self,
        before: &BTreeMap<AttachmentKey, Linking>,
        links: &BTreeSet<LinkName>,
        now: Instant,
    ) -> Vec<AttachmentKey> {
        let gone =
            |key: &AttachmentKey| self.attachments.get(key).is_some_and(|to| !links.contains(&to.link));
        let orphaned = |(key, linking): &(&AttachmentKey, &Linking)| {
            self.linked.get(*key) == Some(*linking) && gone(key)
        };
        let orphans: Vec<AttachmentKey> =
            before.iter().filter(orphaned).map(|(key, _)| key.clone()).collect();
        for key in &orphans {
            if let Err(error) = self.release(key, now) {
                tracing::warn!(%error, "a release is not in the journal yet");
            }
        }
        orphans
    }

    fn take_back(&mut self, addresses: &[IpAddr], now: Instant) {
        addresses.iter().for_each(|address| self.ipam.release(*address, now));
    }

    fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let appended = self.journal.append(record);
        self.unwritable = appended.as_ref().err().map(ToString::to_string);
        appended
    }

    fn compact(&mut self) -> Result<(), JournalError> {
        let given =
            |(key, to): (&AttachmentKey, &Attachment)| Record::Given { key: key.clone(), to: to.clone() };
        let records: Vec<Record> = self.attachments.iter().map(given).collect();
        self.journal.rewrite(&records)
    }
}

/// What the journal holds, read beside the agent that writes it.
///
/// # Errors
/// The journal is there and cannot be read.
pub fn recorded(journal: &Path) -> std::io::Result<BTreeMap<AttachmentKey, Attachment>> {
    Journal::read::<Record>(journal).map(replay)
}

/// What is written on a pod's link, so that a lost journal can be rebuilt from the kernel.
fn alias(key: &AttachmentKey, attachment: &Attachment) -> String {
    let addresses: Vec<String> = attachment.addresses.iter().map(ToString::to_string).collect();
    let without_pod = format!("{} {} {}", key.container, key.ifname, addresses.join(","));
    let mut whole = format!("{without_pod} {}/{}", attachment.namespace, attachment.pod);
    if let Some(mac) = attachment.mac {
        whole += &format!(" {}", mac_text(mac));
    }
    // The few pods with names longer than the kernel takes would be under no EgressPolicy after the journal was lost.
    if whole.len() <= POD_ALIAS_MAX { whole } else { without_pod }
}

fn adopt(link: &LinkName, text: &str) -> Option<(AttachmentKey, Attachment)> {
    let mut words = text.split(' ');
    let key = AttachmentKey { container: words.next()?.to_owned(), ifname: words.next()?.to_owned() };
    let addresses: Vec<IpAddr> = words.next()?.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
    let (namespace, pod) = words.next().and_then(|pod| pod.split_once('/')).unwrap_or_default();
    let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
    let mac = words.next().and_then(mac_of);
    (pod_link(&key.container, &key.ifname) == *link)
        .then(|| (key, Attachment { namespace, pod, link: link.clone(), addresses, mac, lease: None }))
}

fn mac_text(mac: MacAddress) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn mac_of(text: &str) -> Option<MacAddress> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

fn replay(recovery: Recovery<Record>) -> BTreeMap<AttachmentKey, Attachment> {
    let mut attachments = BTreeMap::new();
    for record in recovery.records {
        match record {
            Record::Given { key, to } => {
                attachments.insert(key, to);
            }
            Record::Released { key } => {
                attachments.remove(&key);
            }
        }
    }
    attachments
}

#[cfg(test)]
mod tests;
