// SPDX-License-Identifier: Apache-2.0
//! Marks on what belongs to an attachment: names and aliases of links, comments of rules.

use std::collections::BTreeSet;
use std::fmt::Write;

use isthmus_cni_kit::config::net_conf::Attachment;
use isthmus_cni_kit::plugin::Request;
use sha2::{Digest, Sha256};

/// Hexadecimal digits of the hash of the parts; no part can run into the next.
fn hash(parts: &[&str], digits: usize) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let mut text = String::new();
    for byte in hasher.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.truncate(digits);
    text
}

/// The mark of an attachment.
pub(crate) fn key_of(network: &str, container: &str, ifname: &str) -> String {
    format!("{}-{}", hash(&[network], 8), hash(&[network, container, ifname], 24))
}

/// The mark of the request's attachment: 33 letters, the first 8 of which are the network's.
pub(crate) fn key(request: &Request) -> String {
    key_of(request.config.name(), &request.container_id, &request.ifname)
}

/// A link's name for the attachment: the prefix and as many digits as fit into 15 bytes.
pub(crate) fn link_name(prefix: &str, request: &Request) -> String {
    let parts = [request.config.name(), &request.container_id, &request.ifname];
    format!("{prefix}{}", hash(&parts, 15 - prefix.len()))
}

/// A name, of the same kind, for a link that belongs to another one and not to an attachment.
pub(crate) fn port_name(prefix: &str, of: &str) -> String {
    format!("{prefix}{}", hash(&[of], 15 - prefix.len()))
}

/// Says of marks whether they are of the request's network and of no attachment that GC has to keep.
pub(crate) struct Stale {
    network: String,
    valid: BTreeSet<String>,
}

impl Stale {
    pub(crate) fn of(request: &Request) -> Self {
        let network = request.config.name();
        let key = |one: &Attachment| key_of(network, &one.container_id, &one.ifname);
        Self { network: hash(&[network], 8), valid: request.valid_attachments.iter().map(key).collect() }
    }

    pub(crate) fn contains(&self, mark: &str) -> bool {
        mark.split('-').next() == Some(&self.network) && !self.valid.contains(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p12_a_mark_is_stale_only_in_its_own_network_and_only_without_a_valid_attachment() {
        let valid = BTreeSet::from([key_of("net", "a", "eth0")]);
        let stale = Stale { network: hash(&["net"], 8), valid };
        assert!(!stale.contains(&key_of("net", "a", "eth0")));
        assert!(stale.contains(&key_of("net", "a", "eth1")));
        assert!(!stale.contains(&key_of("other", "b", "eth0")));
        assert!(!stale.contains("somebody's comment"));
    }

    #[test]
    fn names_that_run_into_each_other_have_different_marks() {
        assert_ne!(key_of("net", "ab", "c"), key_of("net", "a", "bc"));
    }
}
