// SPDX-License-Identifier: Apache-2.0
//! Pods whose link and addresses another plugin made before ours was called: who they are, in a journal before it is answered.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use isthmus_compiler::{ChainedPod, PodFacts};
use isthmus_kernel::ForeignLink;
use isthmus_model::ids::LinkName;
use serde::{Deserialize, Serialize};

use crate::addresses::{AttachmentKey, Journal, JournalError, Recovery};

/// The journal is rewritten when it holds this many records more than there are pods.
const SLACK_RECORDS: usize = 1024;

/// A pod that another plugin joined to the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chained {
    /// Name of the network, which is the other plugin's.
    pub network: String,
    /// Namespace of the pod; empty outside Kubernetes.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Host end of the veth pair.
    pub link: LinkName,
    /// Its index.
    pub index: u32,
    /// The bridge that it is a port of.
    pub bridge: Option<LinkName>,
    /// Addresses, as the other plugin's result names them.
    pub addresses: Vec<IpAddr>,
}

impl Chained {
    /// Whether the link is as it was when the pod was added.
    pub(crate) fn is_at(&self, found: &ForeignLink) -> bool {
        (&self.link, self.index, &self.bridge) == (&found.host_link, found.host_index, &found.bridge)
    }

    /// The link that the node's routing sees.
    pub(crate) fn entrance(&self) -> &LinkName {
        self.bridge.as_ref().unwrap_or(&self.link)
    }

    fn facts(&self) -> ChainedPod {
        let pod = PodFacts {
            namespace: self.namespace.clone(),
            name: self.pod.clone(),
            addresses: self.addresses.clone(),
        };
        ChainedPod { link: self.entrance().clone(), alone: self.bridge.is_none(), pod }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Joined { key: AttachmentKey, pod: Chained },
    Left { key: AttachmentKey },
}

/// All chained pods of the node.
#[derive(Debug)]
pub struct Registry {
    pods: BTreeMap<AttachmentKey, Chained>,
    journal: Journal,
    /// Why the journal could not be written when that was tried last.
    unwritable: Option<String>,
}

impl Registry {
    /// Reads the journal; `links` are the node's links with their indices. A pod whose link is gone is gone.
    pub fn open(path: &Path, links: &BTreeMap<LinkName, u32>) -> Self {
        let (journal, recovery) = Journal::open::<Record>(path);
        if recovery.damaged > 0 || recovery.torn_bytes > 0 {
            tracing::warn!(
                damaged = recovery.damaged,
                torn_bytes = recovery.torn_bytes,
                "the journal of chained pods was repaired"
            );
        }
        let mut registry = Self { pods: replay(recovery), journal, unwritable: None };
        registry.pods.retain(|_, pod| is_there(pod, links));
        if let Err(error) = registry.compact() {
            tracing::warn!(%error, "the journal of chained pods could not be rewritten");
            registry.unwritable = Some(error.to_string());
        }
        registry
    }

    /// Records a pod, in place of what was known of it.
    pub fn join(&mut self, key: &AttachmentKey, pod: Chained) -> Result<(), JournalError> {
        if self.pods.get(key) != Some(&pod) {
            self.append(&Record::Joined { key: key.clone(), pod: pod.clone() })?;
            self.pods.insert(key.clone(), pod);
        }
        Ok(())
    }

    /// Forgets a pod; returns whether it was known. In memory this always works: one that the disk still knows is forgotten
    /// at the next start, when its link is gone.
    pub fn leave(&mut self, key: &AttachmentKey) -> bool {
        let known = self.pods.remove(key).is_some();
        let written = if known { self.append(&Record::Left { key: key.clone() }) } else { Ok(()) };
        let full = self.journal.records() > self.pods.len() + SLACK_RECORDS;
        if let Err(error) = written.and_then(|()| if full { self.compact() } else { Ok(()) }) {
            tracing::error!(%error, "that a chained pod left is not in the journal yet");
        }
        known
    }

    /// A pod.
    pub fn get(&self, key: &AttachmentKey) -> Option<&Chained> {
        self.pods.get(key)
    }

    /// All pods.
    pub fn pods(&self) -> &BTreeMap<AttachmentKey, Chained> {
        &self.pods
    }

    /// Forgets those who were there `before` and whose link is not among `links`, which were listed after that.
    pub fn forget_vanished(
        &mut self,
        before: &BTreeMap<AttachmentKey, Chained>,
        links: &BTreeMap<LinkName, u32>,
    ) -> Vec<AttachmentKey> {
        let vanished = |(key, pod): &(&AttachmentKey, &Chained)| {
            self.pods.get(*key) == Some(*pod) && !is_there(pod, links)
        };
        let keys: Vec<_> = before.iter().filter(vanished).map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.leave(key);
        }
        keys
    }

    /// The pods as the compiler wants them, in its order.
    pub fn facts(&self) -> Vec<ChainedPod> {
        let mut facts: Vec<_> = self.pods.values().map(Chained::facts).collect();
        facts.sort();
        facts
    }

    /// Whether a pod could be recorded now; why not, otherwise.
    pub fn readiness(&self) -> Result<(), String> {
        self.unwritable.clone().map_or(Ok(()), Err)
    }

    /// Tries whether the journal can be written, so that STATUS knows before an ADD fails.
    pub fn probe_journal(&mut self) {
        self.unwritable = self.journal.probe().err().map(|error| error.to_string());
    }

    fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let appended = self.journal.append(record);
        self.unwritable = appended.as_ref().err().map(ToString::to_string);
        appended
    }

    fn compact(&mut self) -> Result<(), JournalError> {
        let joined =
            |(key, pod): (&AttachmentKey, &Chained)| Record::Joined { key: key.clone(), pod: pod.clone() };
        let records: Vec<Record> = self.pods.iter().map(joined).collect();
        self.journal.rewrite(&records)
    }
}

fn is_there(pod: &Chained, links: &BTreeMap<LinkName, u32>) -> bool {
    links.get(&pod.link) == Some(&pod.index)
}

fn replay(recovery: Recovery<Record>) -> BTreeMap<AttachmentKey, Chained> {
    let mut pods = BTreeMap::new();
    for record in recovery.records {
        match record {
            Record::Joined { key, pod } => drop(pods.insert(key, pod)),
            Record::Left { key } => drop(pods.remove(&key)),
        }
    }
    pods
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container: &str) -> AttachmentKey {
        AttachmentKey { container: container.into(), ifname: "eth0".into() }
    }

    fn pod(link: &str, index: u32, bridge: Option<&str>) -> Chained {
        Chained {
            network: "pods".into(),
            namespace: "shop".into(),
            pod: "web".into(),
            link: link.parse().unwrap(),
            index,
            bridge: bridge.map(|name| name.parse().unwrap()),
            addresses: vec!["10.244.1.7".parse().unwrap()],
        }
    }

    fn links(all: &[(&str, u32)]) -> BTreeMap<LinkName, u32> {
        all.iter().map(|(name, index)| (name.parse().unwrap(), *index)).collect()
    }

    #[test]
    fn after_a_restart_pods_are_known_whose_link_is_still_the_same_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chained");
        let mut registry = Registry::open(&path, &links(&[]));
        for (container, link) in [("a", "v1"), ("b", "v2"), ("c", "v3"), ("d", "v4")] {
            registry.join(&key(container), pod(link, 7, None)).unwrap();
        }
        assert!(registry.leave(&key("d")) && !registry.leave(&key("d")));
        // The link of b is gone; that of c is another of its name.
        let registry = Registry::open(&path, &links(&[("v1", 7), ("v3", 8), ("v4", 7)]));
        assert_eq!(registry.pods().keys().collect::<Vec<_>>(), [&key("a")]);
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_known_before_a_pod_comes() {
        let directory = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(&directory.path().join("chained"), &links(&[]));
        registry.probe_journal();
        assert_eq!(registry.readiness(), Ok(()));
        drop(directory);
        registry.probe_journal();
        assert!(registry.readiness().unwrap_err().contains("neither full nor read-only"));
    }

    #[test]
    fn a_pod_that_joined_after_the_links_were_listed_is_not_taken_for_vanished() {
        let directory = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(&directory.path().join("chained"), &links(&[]));
        registry.join(&key("old"), pod("v1", 7, None)).unwrap();
        registry.join(&key("again"), pod("v2", 8, None)).unwrap();
        let before = registry.pods().clone();
        registry.join(&key("new"), pod("v3", 9, None)).unwrap();
        registry.join(&key("again"), pod("v2", 10, None)).unwrap();
        assert_eq!(registry.forget_vanished(&before, &links(&[])), [key("old")]);
        assert_eq!(registry.pods().len(), 2);
    }

    #[test]
    fn the_node_sees_pods_behind_a_bridge_by_the_bridge_and_none_alone() {
        let facts = [pod("v1", 7, None).facts(), pod("v2", 8, Some("cni0")).facts()];
        let seen: Vec<_> = facts.iter().map(|pod| (pod.link.as_str(), pod.alone)).collect();
        assert_eq!(seen, [("v1", true), ("cni0", false)]);
    }
}
