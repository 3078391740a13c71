// SPDX-License-Identifier: Apache-2.0
use std::fmt;
use std::sync::Arc;

use isthmus_model::ids::ClusterIdentity;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use crate::LinkError;
use isthmus_mesh::record::Announcement;
use isthmus_mesh::wire::Memory;

/// A peer as it is remembered from one connection to the next. Clones are the same peer.
///
/// There is one conversation with a peer at a time. A newer connection in the same direction takes over from an
/// older one, which may be dead without knowing it; one in the other direction has to wait.
#[derive(Clone)]
pub struct Peer {
    shared: Arc<Shared>,
}

struct Shared {
    identity: ClusterIdentity,
    local: watch::Receiver<Arc<Announcement>>,
    memory: Arc<Mutex<Memory>>,
    floor: watch::Sender<Floor>,
}

/// Who may speak.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    closed: bool,
    /// Counts up with every connection that takes over.
    turn: u64,
    speaking: Option<Direction>,
}

/// Who made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// We.
    Dialled,
    /// The peer.
    Served,
}

impl Peer {
    /// A peer with this identity that is told what `local` holds. `epoch` must differ from those of earlier
    /// processes; take the time of this one's start. Keep the peer as long as the peering exists.
    pub fn new(identity: ClusterIdentity, epoch: u64, local: watch::Receiver<Arc<Announcement>>) -> Self {
        let memory = Arc::new(Mutex::new(Memory::new(epoch)));
        Self { shared: Arc::new(Shared { identity, local, memory, floor: watch::Sender::default() }) }
    }

    /// The peer's identity.
    pub fn identity(&self) -> &ClusterIdentity {
        &self.shared.identity
    }

    /// Ends the peer's connection and lets it have no other: the peering is gone.
    pub fn close(&self) {
        self.shared.floor.send_modify(|floor| floor.closed = true);
    }

    pub(super) fn local(&self) -> watch::Receiver<Arc<Announcement>> {
        self.shared.local.clone()
    }

    /// Takes the floor, from an older connection of the same direction if there is one.
    pub(super) async fn take_floor(&self, direction: Direction) -> Result<Turn, NoTurn> {
        let mut turn = None;
        self.shared.floor.send_if_modified(|floor| {
            let free = floor.speaking.is_none_or(|speaking| speaking == direction) && !floor.closed;
            if free {
                floor.turn += 1;
                floor.speaking = Some(direction);
                turn = Some(floor.turn);
            }
            free
        });
        // Made before waiting, so that a turn that is given up while it waits leaves the floor.
        let Some(turn) = turn else {
            let closed = self.shared.floor.borrow().closed;
            return Err(if closed { NoTurn::Closed } else { NoTurn::Occupied });
        };
        let leave = LeaveFloor { shared: Arc::clone(&self.shared), turn };
        let memory = Arc::clone(&self.shared.memory).lock_owned().await;
        Ok(Turn { memory, leave })
    }

    /// Waits until nobody speaks in the other direction. False: the peer is closed.
    pub(super) async fn floor_is_free(&self, direction: Direction) -> bool {
        let mut floor = self.shared.floor.subscribe();
        let free = floor
            .wait_for(|floor| floor.closed || floor.speaking.is_none_or(|speaking| speaking == direction));
        free.await.is_ok_and(|floor| !floor.closed)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("identity", &self.shared.identity).finish_non_exhaustive()
    }
}

/// Why a connection may not speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// The peering is gone.
    Closed,
    /// The two speak in the other direction.
    Occupied,
}

/// The right of one connection to speak with the peer. Dropping it frees the floor.
pub(super) struct Turn {
    pub(super) memory: OwnedMutexGuard<Memory>,
    leave: LeaveFloor,
}

impl Turn {
    /// Watches over the turn while the memory is in use.
    pub(super) fn end(&self) -> TurnEnd {
        TurnEnd { floor: self.leave.shared.floor.subscribe(), turn: self.leave.turn }
    }
}

/// Tells when a turn is over.
pub(super) struct TurnEnd {
    floor: watch::Receiver<Floor>,
    turn: u64,
}

impl TurnEnd {
    /// Waits until a newer connection took over, or the peer was closed.
    pub(super) async fn over(&mut self) -> LinkError {
        let turn = self.turn;
        match self.floor.wait_for(|floor| floor.closed || floor.turn != turn).await {
            Ok(floor) if !floor.closed => LinkError::Superseded,
            _ => LinkError::Closed,
        }
    }
}

struct LeaveFloor {
    shared: Arc<Shared>,
    turn: u64,
}

impl Drop for LeaveFloor {
    fn drop(&mut self) {
        self.shared.floor.send_if_modified(|floor| {
            let ours = floor.turn == self.turn;
            if ours {
                floor.speaking = None;
            }
            ours
        });
    }
}
