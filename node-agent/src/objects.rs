// SPDX-License-Identifier: Apache-2.0
//! What the agent sees of the API: a copy that the watches keep, and that outlives a silent API server.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use isthmus_intake::node::NodeObjects;
use isthmus_kernel::InSync;
use tokio::sync::watch;

/// The watches; each has to list once before anything may be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    /// IPBlock.
    Blocks,
    /// EgressPolicy.
    Egress,
    /// Namespace.
    Namespaces,
    /// NodeNetwork.
    Networks,
    /// Node.
    Nodes,
    /// ClusterPeering.
    Peerings,
    /// Pod of this node.
    Pods,
    /// IPPool.
    Pools,
}

impl Watch {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Blocks,
        Self::Egress,
        Self::Namespaces,
        Self::Networks,
        Self::Nodes,
        Self::Peerings,
        Self::Pods,
        Self::Pools,
    ];
}

/// The objects, who is complete, and a number that grows with each change.
#[derive(Debug)]
pub struct ObjectStore {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    objects: NodeObjects,
    listed: BTreeSet<Watch>,
}

impl Default for ObjectStore {
    fn default() -> Self {
        Self { state: Mutex::default(), version: watch::Sender::new(0) }
    }
}

impl ObjectStore {
    /// Changes the objects; whoever watches the version is woken.
    pub fn change(&self, change: impl FnOnce(&mut NodeObjects)) {
        change(&mut self.lock().objects);
        self.version.send_modify(|version| *version += 1);
    }

    /// A watch has listed.
    pub fn listed(&self, watch: Watch) {
        if self.lock().listed.insert(watch) {
            tracing::info!(?watch, "listed");
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Proof that all watches have listed once, or those that have not.
    pub fn in_sync(&self) -> Result<InSync, Vec<Watch>> {
        let state = self.lock();
        let missing: Vec<Watch> =
            Watch::ALL.into_iter().filter(|watch| !state.listed.contains(watch)).collect();
        if missing.is_empty() { Ok(InSync::all_listed()) } else { Err(missing) }
    }

    /// Reads the objects.
    pub fn read<T>(&self, read: impl FnOnce(&NodeObjects) -> T) -> T {
        read(&self.lock().objects)
    }

    /// The version, to be woken by.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another task leaves whole objects behind; there is nothing half-done to protect.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
