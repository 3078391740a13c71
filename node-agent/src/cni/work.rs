// SPDX-License-Identifier: Apache-2.0
//! What calls do. ADD: record, make the link, let it through, answer. DEL: shut, remove, give back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Instant;

use ipnet::IpNet;
use isthmus_cni_kit::config::net_conf::NetConf;
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::result::{AddResult, Interface, Ip, Route};
use isthmus_compiler::{Share, pod_link};
use isthmus_kernel::{PodLink, PodLinkError, PodLinkMade};
use isthmus_model::ids::LinkName;
use isthmus_model::ownership::{POD_GATEWAY_V4, POD_GATEWAY_V6};
use serde_json::Map;

use super::call::Target;
use super::workshop::Workshop;
use crate::addresses::{Attachment, AttachmentKey, LedgerError};
use crate::chained::Chained;
use crate::conflist::NETWORK;
use crate::engine::concerns_pod;

impl Workshop {
    pub(super) async fn add(&self, target: &Target) -> Result<AddResult, Error> {
        let view = self.node.view();
        if let Some(why) = view.blocked {
            return Err(Error::new(code::TRY_AGAIN, why));
        }
        let share = self.share_of(target).await?;
        if view.egress() {
            self.wait_for_pod(target).await?;
        }
        self.node.ledger().serves(None).map_err(given_error)?;
        let again = self.node.ledger().get(&target.key).cloned();
        if let Some(attachment) = again {
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).contains(&target.key) {
                let what = format!("container {} has an interface {}", target.key.container, target.ifname);
                return Err(given_error(LedgerError::Taken(what)));
            }
            // Nobody may have the answer to the call before: its link may be half made.
            self.node.ledger().link_going(&target.key);
            let _ = self.node.advance().await;
            self.remove_link(&attachment).await?;
        }
        let (attachment, made) = self.record_and_link(target, share, view.pod_mtu).await?;
        let made = match made {
            Ok(made) => self.admit(target, &attachment, made).await,
            Err(error) => Err(link_error(error)),
        };
        match made {
            Ok(made) => Ok(result(target, &attachment, &made, view.pod_mtu)),
            Err(error) => {
                self.undo(&target.key, &attachment).await;
                Err(error)
            }
        }
    }

    /// Addresses, in the journal before anything is programmed; then the link. Both block, so they take one turn.
    async fn record_and_link(
        &self,
        target: &Target,
        share: Share,
        mtu: u32,
    ) -> Result<(Attachment, Result<PodLinkMade, PodLinkError>), Error> {
        let (node, target) = (self.node.clone(), target.clone());
        let both = move || {
            let (namespace, name) = target.pod_name();
            let given = node.ledger().give(&target.key, (&namespace, &name), &share, Instant::now());
            let attachment = given.map_err(given_error)?;
            let made = node.links.add(&wanted(&target, &attachment, mtu));
            Ok((attachment, made))
        };
        blocking(both).await?
    }

    /// The link, then the rules and routes that let it through.
    pub(super) async fn make(
        &self,
        target: &Target,
        attachment: &Attachment,
        mtu: u32,
    ) -> Result<PodLinkMade, Error> {
        let (node, wanted) = (self.node.clone(), wanted(target, attachment, mtu));
        let made = blocking(move || node.links.add(&wanted)).await?.map_err(link_error)?;
        self.admit(target, attachment, made).await
    }

    async fn admit(
        &self,
        target: &Target,
        attachment: &Attachment,
        made: PodLinkMade,
    ) -> Result<PodLinkMade, Error> {
        self.node.ledger().link_made(&target.key);
        let advanced = if made.replaced { self.node.converge().await } else { self.node.advance().await };
        let failures = advanced.map_err(|why| Error::new(code::TRY_AGAIN, why))?;
        match concerns_pod(&failures, &attachment.link, &attachment.addresses) {
            None => Ok(made),
            Some(failure) => {
                let msg = format!("the kernel refused what lets the pod through: {failure}");
                Err(Error::new(code::FIRST_OWN, msg)
                    .with_details("see the log of isthmus-agent on this node"))
            }
        }
    }

    pub(super) async fn undo(&self, key: &AttachmentKey, attachment: &Attachment) {
        self.node.ledger().link_going(key);
        if self.remove_link(attachment).await.is_ok() {
            self.give_back(key).await;
        }
    }

    pub(super) async fn del(&self, key: &AttachmentKey) -> Result<(), Error> {
        let joined = self.leave(key).await;
        let known = self.node.ledger().get(key).cloned();
        if known.as_ref().map_or(joined, |to| to.lease.is_some()) {
            // The other plugin made the link, and has its address given back.
            return Ok(());
        }
        let link = known.as_ref().map_or_else(|| pod_link(&key.container, &key.ifname), |to| to.link.clone());
        if known.is_some() {
            self.node.ledger().link_going(key);
            // Shut before taking away. While the engine cannot, removing the link shuts as well.
            let _ = self.node.advance().await;
        }
        let node = self.node.clone();
        blocking(move || node.links.del(&link)).await?.map_err(link_error)?;
        self.give_back(key).await;
        Ok(())
    }

    async fn remove_link(&self, attachment: &Attachment) -> Result<(), Error> {
        let (node, link) = (self.node.clone(), attachment.link.clone());
        blocking(move || node.links.del(&link)).await?.map(drop).map_err(link_error)
    }

    /// Addresses back into the pool. A disk that does not take it is no reason to fail: the next start finds no link.
    pub(super) async fn give_back(&self, key: &AttachmentKey) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        let (node, key) = (self.node.clone(), key.clone());
        match blocking(move || node.ledger().release(&key, Instant::now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "a release is not in the journal yet"),
            Err(error) => tracing::error!(%error, "a release was interrupted"),
        }
    }

    pub(super) async fn check(&self, target: Target, config: &NetConf) -> Result<(), Error> {
        let joined = self.node.chained().get(&target.key).cloned();
        if let Some(pod) = joined {
            return self.check_joined(&target, config, &pod).await;
        }
        let known = self.node.ledger().get(&target.key).filter(|to| to.lease.is_none()).cloned();
        let Some(attachment) = known else {
            let msg = format!("container {} has no attachment {}", target.key.container, target.key.ifname);
            return Err(Error::new(code::UNKNOWN_CONTAINER, msg));
        };
        names_all(config, &attachment.addresses)?;
        let (node, mtu) = (self.node.clone(), self.node.view().pod_mtu);
        let wanted = wanted(&target, &attachment, mtu);
        blocking(move || node.links.check(&wanted)).await?.map_err(link_error)?;
        let failures = self.node.advance().await.map_err(|why| Error::new(code::TRY_AGAIN, why))?;
        let failure = concerns_pod(&failures, &attachment.link, &attachment.addresses);
        failure.map_or(Ok(()), |failure| Err(Error::new(code::FIRST_OWN, failure)))
    }

    pub(super) async fn gc(&self, config: &NetConf) -> Result<(), Error> {
        let stays = stays(config)?;
        let _alone = self.all.write().await;
        let mut gone: Vec<AttachmentKey> = Vec::new();
        if config.name() == NETWORK {
            let ledger = self.node.ledger();
            let with_link = ledger.attachments().iter().filter(|(_, to)| to.lease.is_none());
            gone.extend(with_link.map(|(key, _)| key).filter(|key| !stays(key)).cloned());
        }
        // Of pods that another plugin made, those of the network that is spoken of.
        let of_network =
            |(key, pod): &(&AttachmentKey, &Chained)| pod.network == config.name() && !stays(key);
        gone.extend(self.node.chained().pods().iter().filter(of_network).map(|(key, _)| key.clone()));
        let mut failed = Vec::new();
        for key in gone {
            if let Err(error) = self.del(&key).await {
                failed.push(format!("{}/{}: {error}", key.container, key.ifname));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(Error::new(code::FIRST_OWN, failed.join("; "))) }
    }
}

fn wanted(target: &Target, attachment: &Attachment, mtu: u32) -> PodLink {
    let netns = seen_from_here(&target.netns);
    attachment.pod_link(&target.key, target.ifname.clone(), netns, mtu)
}

/// Runtimes hand out `/var/run/netns/…`; in our container the host's directory may be mounted as `/run/netns` only.
pub(super) fn seen_from_here(netns: &Path) -> PathBuf {
    match netns.strip_prefix("/var") {
        Ok(rest) if !netns.exists() => Path::new("/").join(rest),
        _ => netns.to_owned(),
    }
}

/// CHECK: the result that the runtime kept names the addresses that we gave.
pub(super) fn names_all(config: &NetConf, addresses: &[IpAddr]) -> Result<(), Error> {
    let previous = config.prev_result()?;
    let previous = previous.ok_or_else(|| Error::new(code::INVALID_CONFIG, "CHECK without prevResult"))?;
    let kept = |address: &IpAddr| previous.ips.iter().any(|ip| ip.address.addr() == *address);
    match addresses.iter().find(|address| !kept(address)) {
        None => Ok(()),
        Some(address) => Err(Error::new(code::INVALID_CONFIG, format!("{address} is missing in prevResult"))),
    }
}

/// GC: whether an attachment stays. Code 7 if the runtime did not say which do.
pub(super) fn stays(config: &NetConf) -> Result<impl Fn(&AttachmentKey) -> bool, Error> {
    let kept = config.valid_attachments()?;
    Ok(move |key: &AttachmentKey| {
        kept.iter().any(|valid| valid.container_id == key.container && valid.ifname == key.ifname)
    })
}

pub(super) fn given_error(error: LedgerError) -> Error {
    let code = match error {
        LedgerError::InUse { .. } | LedgerError::Shortage(_) => code::TRY_AGAIN,
        LedgerError::Taken(_) => code::INVALID_ENVIRONMENT,
        LedgerError::Mixed(_) => code::INVALID_CONFIG,
        LedgerError::Journal(_) => code::IO,
    };
    Error::new(code, error.to_string())
}

pub(super) fn result(target: &Target, attachment: &Attachment, made: &PodLinkMade, mtu: u32) -> AddResult {
    let end = |name: &LinkName, mac: [u8; 6], sandbox: String| Interface {
        name: name.to_string(),
        mac: mac.map(|byte| format!("{byte:02x}")).join(":"),
        mtu: Some(mtu),
        sandbox,
        ..Interface::default()
    };
    let host = end(&attachment.link, made.host_mac, String::new());
    let pod = end(&target.ifname, made.pod_mac, target.netns.display().to_string());
    let gateway = |v6: bool| if v6 { IpAddr::V6(POD_GATEWAY_V6) } else { IpAddr::V4(POD_GATEWAY_V4) };
    let ips = attachment.addresses.iter().map(|address| Ip {
        interface: Some(1),
        address: (*address).into(),
        gateway: Some(gateway(address.is_ipv6())),
        extra: Map::new(),
    });
    let routes = attachment
        .addresses
        .iter()
        .map(|address| Route { gw: Some(gateway(address.is_ipv6())), ..default_route(address.is_ipv6()) });
    AddResult {
        interfaces: vec![host, pod],
        ips: ips.collect(),
        routes: routes.collect(),
        ..AddResult::default()
    }
}

/// A route to everything of a family, by the family's gateway.
pub(super) fn default_route(v6: bool) -> Route {
    let everything = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let dst = IpNet::new(everything, 0).expect("0 is a prefix length of both families");
    let none = None;
    Route {
        dst,
        gw: None,
        mtu: none,
        advmss: none,
        priority: none,
        table: none,
        scope: none,
        extra: Map::new(),
    }
}

/// As the plugin prints it, in the configuration's version.
pub(super) fn printed_as(result: &AddResult, config: &NetConf) -> Result<Vec<u8>, Error> {
    Ok(result.to_json(config.version())?.to_string().into_bytes())
}

pub(super) fn link_error(error: PodLinkError) -> Error {
    let code = match &error {
        PodLinkError::Namespace { .. } => code::INVALID_NETNS,
        PodLinkError::Exists { .. } => code::INVALID_ENVIRONMENT,
        PodLinkError::Foreign { .. } => code::INVALID_CONFIG,
        PodLinkError::Broken(_) | PodLinkError::Refused { .. } | PodLinkError::Socket(_) => code::FIRST_OWN,
    };
    Error::new(code, error.to_string())
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let interrupted = |error| Error::new(code::IO, format!("the agent failed inside: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(interrupted)
}
