// SPDX-License-Identifier: Apache-2.0
//! `isthmus-agent ipam`: a look at journal and kernel beside the agent that runs, and a word to that agent.

use std::path::Path;

use anyhow::{Context, bail};
use isthmus_cni::NEWEST_VERSION;
use isthmus_cni::plugin;
use isthmus_cni::wire::Request;
use isthmus_kernel::PodLinks;
use isthmus_model::addresses::{Held, NodeAddresses};
use serde_json::json;

use super::{Attachment, AttachmentKey, recorded};
use crate::conflist::NETWORK;

/// What the journal holds, then what the kernel has. Writes nothing.
///
/// # Errors
/// The journal cannot be read, or the kernel does not answer.
pub fn dump(journal: &Path, links: &PodLinks) -> anyhow::Result<NodeAddresses> {
    let held = read(journal)?.into_iter().map(held).collect();
    Ok(NodeAddresses {
        held,
        links: links.list().context("list pods' links")?.into_keys().collect(),
        routes: links.routes().context("list routes to pods")?,
    })
}

/// Has the agent behind `socket` give back what `key` holds, by the DEL that its runtime did not call.
///
/// # Errors
/// Its link is still in the kernel, or is another plugin's and not seen: then somebody may use the addresses. Or the agent refuses or is
/// not there.
pub fn release(journal: &Path, links: &PodLinks, key: &AttachmentKey, socket: &Path) -> anyhow::Result<()> {
    let Some(attachment) = read(journal)?.remove(key) else {
        bail!("container {} holds nothing by {}: it was given back already", key.container, key.ifname);
    };
    if let Some(lease) = &attachment.lease {
        bail!(
            "another plugin made its link, and the container may be alive: DEL or GC of the network {} gives it back",
            lease.network
        );
    }
    if links.list().context("list pods' links")?.contains_key(&attachment.link) {
        bail!("its link {} is in the kernel: the container may be alive", attachment.link);
    }
    let env = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", &key.container), ("CNI_IFNAME", &key.ifname)];
    let request = Request {
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        stdin: json!({ "cniVersion": NEWEST_VERSION, "name": NETWORK }).to_string().into_bytes(),
    };
    let outcome = plugin::run(&request, socket);
    if outcome.exit_code != 0 {
        bail!("the agent refused: {}", String::from_utf8_lossy(&outcome.stdout).trim());
    }
    Ok(())
}

fn read(journal: &Path) -> anyhow::Result<std::collections::BTreeMap<AttachmentKey, Attachment>> {
    recorded(journal).with_context(|| format!("read the journal {}", journal.display()))
}

fn held((key, to): (AttachmentKey, Attachment)) -> Held {
    Held {
        container: key.container,
        ifname: key.ifname,
        namespace: to.namespace,
        pod: to.pod,
        link: to.link,
        addresses: to.addresses,
    }
}
