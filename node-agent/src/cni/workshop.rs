// SPDX-License-Identifier: Apache-2.0
//! Which call is whose work, and what waits for what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use isthmus_cni_kit::config::net_conf::NetConf;
use isthmus_cni_kit::error::{Error, code};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, RwLock};

use super::call::{Call, Role, Target};
use super::chained::previous;
use super::delegated::{OtherIpam, Runner};
use super::work::printed_as;
use crate::addresses::AttachmentKey;
use crate::conflist::NETWORK;
use crate::node::Node;

/// Serialises calls of one container; GC of what is ours runs alone.
pub(crate) struct Workshop {
    pub(super) node: Arc<Node>,
    containers: Mutex<BTreeMap<String, Weak<AsyncMutex<()>>>>,
    /// GC writes, what it must not run beside reads.
    pub(super) all: RwLock<()>,
    /// Attachments whose ADD the runtime has the result of, as far as this agent was told.
    pub(super) told: Mutex<BTreeSet<AttachmentKey>>,
}

/// A call's outcome, and the lock of its container: the next call of it waits until the runtime has the outcome.
pub(crate) struct Served {
    pub(crate) outcome: Result<Vec<u8>, Error>,
    pub(crate) added: Option<Added>,
}

/// An ADD that went well.
pub(crate) struct Added {
    key: AttachmentKey,
    _alone: OwnedMutexGuard<()>,
}

impl Workshop {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, containers: Mutex::default(), all: RwLock::new(()), told: Mutex::default() }
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// The node, for work that waits elsewhere.
    pub(super) fn shared_node(&self) -> Arc<Node> {
        self.node.clone()
    }

    /// Does what is asked; gives what the plugin prints. Calls of one container come one after the other.
    pub(crate) async fn call(&self, role: Role, call: Call, config: &NetConf, runner: &Runner) -> Served {
        let unheld = |outcome| Served { outcome, added: None };
        match &call {
            // GC takes its lock itself: it must not be held while another plugin's GC runs.
            Call::Gc | Call::Status => unheld(self.work(role, call, config, runner).await),
            Call::Add(Target { key, .. }) | Call::Check(Target { key, .. }) | Call::Del(key) => {
                let container = self.container(&key.container);
                let added = matches!(call, Call::Add(_)).then(|| key.clone());
                let alone = container.lock_owned().await;
                let _shared = self.all.read().await;
                let outcome = self.work(role, call, config, runner).await;
                let added = added.filter(|_| outcome.is_ok()).map(|key| Added { key, _alone: alone });
                Served { outcome, added }
            }
        }
    }

    /// The runtime has the result.
    pub(crate) fn told(&self, added: Added) {
        let ledger = self.node.ledger();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|key| ledger.get(key).is_some());
        told.insert(added.key);
    }

    async fn work(
        &self,
        role: Role,
        call: Call,
        config: &NetConf,
        runner: &Runner,
    ) -> Result<Vec<u8>, Error> {
        if role == Role::Ipam {
            return self.ipam(call, config).await;
        }
        // DEL has to be lenient: a container that goes does not wait for a configuration that somebody mends.
        let chained = match &call {
            Call::Del(_) => true,
            Call::Add(_) => previous(config).is_some(),
            Call::Check(_) | Call::Gc | Call::Status => self.node.view().chained(),
        };
        if !chained {
            is_ours(config)?;
        }
        if let (Call::Add(target), Some(previous)) = (&call, previous(config)) {
            return self.join(target, config, previous).await;
        }
        if let Some(ipam) = OtherIpam::of(config, runner)? {
            return self.with_other_ipam(call, config, &ipam).await;
        }
        match call {
            Call::Add(target) => return printed_as(&self.add(&target).await?, config),
            Call::Check(target) => self.check(target, config).await?,
            Call::Del(key) => self.del(&key).await?,
            Call::Gc => self.gc(config).await?,
            Call::Status => {
                self.node.readiness().map_err(|why| Error::new(code::UNAVAILABLE, why))?;
            }
        }
        Ok(Vec::new())
    }

    fn container(&self, id: &str) -> Arc<AsyncMutex<()>> {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.retain(|_, lock| lock.strong_count() > 0);
        let lock = containers.get(id).and_then(Weak::upgrade).unwrap_or_default();
        containers.insert(id.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// A call for another network would treat this one's pods as its own: its GC would delete them all.
fn is_ours(config: &NetConf) -> Result<(), Error> {
    if config.name() == NETWORK {
        return Ok(());
    }
    let msg =
        format!("this call is for the network {:?}, and the agent serves {NETWORK:?} only", config.name());
    let details = format!("name the network {NETWORK:?} where its type is isthmus-cni");
    Err(Error::new(code::INVALID_CONFIG, msg).with_details(details))
}
