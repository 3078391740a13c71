// SPDX-License-Identifier: Apache-2.0
//! What the parts of the agent share: the engine writes it, the CNI server reads it, both change the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_compiler::NodeIntent;
use isthmus_kernel::PodLinks;
use tokio::sync::{mpsc, oneshot};

use crate::addresses::Ledger;
use crate::chained::Registry;
use crate::metrics::Metrics;
use crate::objects::ObjectStore;

/// What could not be brought to what is wanted, and why.
pub type Failures = Arc<BTreeMap<String, String>>;

/// A request of the CNI server to the engine: bring the kernel to the ledger as it is now.
#[derive(Debug)]
pub struct Advance {
    /// What is remembered of the kernel's tables may be wrong: read them.
    pub(crate) read_first: bool,
    pub(crate) done: oneshot::Sender<Result<Failures, String>>,
}

/// Shared state of the agent.
pub struct Node {
    /// The API as seen.
    pub store: Arc<ObjectStore>,
    /// Makes and removes pod links.
    pub links: PodLinks,
    /// Counters.
    pub metrics: Arc<Metrics>,
    ledger: Mutex<Ledger>,
    chained: Mutex<Registry>,
    view: Mutex<View>,
    advance: mpsc::UnboundedSender<Advance>,
}

/// What the CNI server needs of what the engine knows.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Why pods cannot be added now; none once the engine has converged.
    pub blocked: Option<String>,
    /// Families (`v6` each) of which a pod gets an address.
    pub families: BTreeSet<bool>,
    /// Another plugin gives addresses out, too.
    pub chained: bool,
    /// MTU of pods' interfaces, bytes.
    pub pod_mtu: u32,
    /// Egress policies exist: a pod has to be known before its first packet.
    pub egress: bool,
}

impl Node {
    /// A node with what its journal and kernel know.
    pub fn new(
        store: Arc<ObjectStore>,
        links: PodLinks,
        ledger: Ledger,
        chained: Registry,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Advance>) {
        let (advance, requests) = mpsc::unbounded_channel();
        let view =
            View { blocked: Some("the agent is starting".to_owned()), pod_mtu: 1500, ..View::default() };
        let (ledger, chained, view) = (Mutex::new(ledger), Mutex::new(chained), Mutex::new(view));
        (Arc::new(Self { store, links, metrics, ledger, chained, view, advance }), requests)
    }

    /// The ledger. Held across a write to disk at most.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pods whose link another plugin made. Held across a write to disk at most.
    pub fn chained(&self) -> MutexGuard<'_, Registry> {
        self.chained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the engine published last.
    pub fn view(&self) -> View {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes what the CNI server needs.
    pub(crate) fn publish(&self, intent: &NodeIntent, pod_mtu: u32) {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        view.families = intent.pod_families();
        view.chained = intent.is_chained();
        view.egress = !intent.egress.is_empty();
        view.pod_mtu = pod_mtu;
    }

    /// Says why pods cannot be added, or that they can.
    pub(crate) fn set_blocked(&self, blocked: Option<String>) {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).blocked = blocked;
    }

    /// Whether a pod could be added now; why not, otherwise.
    pub fn readiness(&self) -> Result<(), String> {
        let view = self.view();
        view.blocked.map_or(Ok(()), Err)?;
        if view.chained {
            self.chained().readiness()?;
        }
        if view.chained && view.families.is_empty() {
            // Whether the other plugin has an address left is its to say.
            return Ok(());
        }
        self.ledger().readiness(&view.families)
    }

    /// Brings the kernel to the ledger as it is now, from what is remembered of the kernel.
    pub async fn advance(&self) -> Result<Failures, String> {
        self.ask(false).await
    }

    /// The same after reading the kernel's tables: somebody else changed them.
    pub async fn converge(&self) -> Result<Failures, String> {
        self.ask(true).await
    }

    async fn ask(&self, read_first: bool) -> Result<Failures, String> {
        let (done, outcome) = oneshot::channel();
        let gone = || "the agent is stopping".to_owned();
        self.advance.send(Advance { read_first, done }).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}
