// SPDX-License-Identifier: Apache-2.0
//! What the parts of the agent share: the engine writes it, the CNI server reads it, both change the ledger.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_compiler::NodeIntent;
use isthmus_kernel::PodLinks;
use tokio::sync::{mpsc, oneshot, watch};

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
    view: watch::Sender<View>,
    advance: mpsc::UnboundedSender<Advance>,
}

/// What the CNI server needs of what the engine knows.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Why pods cannot be added now; none once the engine has converged.
    pub blocked: Option<String>,
    /// What the cluster decided.
    pub intent: Arc<NodeIntent>,
    /// MTU of pods' interfaces, bytes.
    pub pod_mtu: u32,
}

impl View {
    /// Another plugin gives addresses out, too.
    pub fn chained(&self) -> bool {
        self.intent.is_chained()
    }

    /// Egress policies exist: a pod has to be known before its first packet.
    pub fn egress(&self) -> bool {
        !self.intent.egress.is_empty()
    }
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
        let (ledger, chained, view) = (Mutex::new(ledger), Mutex::new(chained), watch::Sender::new(view));
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
        self.view.borrow().clone()
    }

    /// The same, to be woken by what changes.
    pub(crate) fn views(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Publishes what the CNI server needs.
    pub(crate) fn publish(&self, intent: &Arc<NodeIntent>, pod_mtu: u32) {
        self.view.send_if_modified(|view| {
            let changed = !Arc::ptr_eq(&view.intent, intent) || view.pod_mtu != pod_mtu;
            (view.intent, view.pod_mtu) = (intent.clone(), pod_mtu);
            changed
        });
    }

    /// Says why pods cannot be added, or that they can.
    pub(crate) fn set_blocked(&self, blocked: Option<String>) {
        self.view.send_if_modified(|view| {
            let changed = view.blocked != blocked;
            view.blocked = blocked;
            changed
        });
    }

    /// Whether a pod could be added now; why not, otherwise.
    pub fn readiness(&self) -> Result<(), String> {
        let view = self.view();
        view.blocked.clone().map_or(Ok(()), Err)?;
        if view.chained() {
            self.chained().readiness()?;
        }
        let pools = view.intent.common_pools();
        if view.chained() && pools.is_empty() {
            // Whether the other plugin has an address left is its to say.
            return Ok(());
        }
        self.ledger().readiness(&pools)
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
