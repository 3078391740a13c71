// SPDX-License-Identifier: Apache-2.0
//! Links that go.
//!
//! The kernel takes a link out of its namespace, with its routes, addresses and other end, in less than a millisecond. The request that asked for
//! it returns when nobody in the kernel can hold the link any more: some grace periods later, 15 to 25 ms. Whoever deletes needs the former only. So
//! threads delete, each as many links at once as wait by then, and the callers look whether theirs is there. From then on nothing can stop it,
//! not even the end of this process.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use isthmus_model::ids::LinkName;

use super::{PodLinkError, messages};
use crate::netns;
use crate::wire::{Refusal, Wire};

/// Group of links that are about to be deleted; nobody else uses the number ("isth").
const GROUP: u32 = 0x6973_7468;
const STEP: &str = "remove the link";
/// Threads that delete at once; each waits in the kernel most of its time.
const DELETERS_MAX: usize = 16;
/// Until a caller looks (again).
const LOOK_PAUSE: Duration = Duration::from_micros(200);

/// Links to be deleted, and those that delete them.
pub(super) struct Leaving {
    deleters: Arc<Deleters>,
    looking: Mutex<Wire>,
}

struct Deleters {
    host_ns: File,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Going>,
    deleters: usize,
    /// Of threads that ended.
    wires: Vec<Wire>,
}

/// A link, by its index: one that is made under the same name meanwhile is not meant.
struct Going {
    index: u32,
    tell: Sender<Outcome>,
}

/// What the kernel said at last.
type Outcome = Result<(), String>;

impl Leaving {
    /// `looking` is a socket of the namespace.
    pub(super) fn new(host_ns: File, looking: Wire) -> Self {
        let deleters = Arc::new(Deleters { host_ns, queue: Mutex::default() });
        Self { deleters, looking: Mutex::new(looking) }
    }

    /// Deletes the link: when this returns, neither end is in its namespace. Returns whether there was one.
    pub(super) fn delete(&self, link: &LinkName) -> Result<bool, PodLinkError> {
        let Some(index) = self.look(link)? else { return Ok(false) };
        let outcome = self.deleters.ask(index)?;
        let refused = |reason| PodLinkError::Refused { step: STEP, reason };
        loop {
            match outcome.recv_timeout(LOOK_PAUSE) {
                Ok(outcome) => return outcome.map(|()| true).map_err(refused),
                Err(RecvTimeoutError::Timeout) if self.look(link)? != Some(index) => return Ok(true),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(refused("the thread that asked the kernel ended".into()));
                }
            }
        }
    }

    /// The link's index, if it is there. While the kernel takes links away, this waits for its lock.
    fn look(&self, link: &LinkName) -> io::Result<Option<u32>> {
        messages::index(&mut self.looking.lock().unwrap_or_else(PoisonError::into_inner), link)
    }
}

impl Deleters {
    fn ask(self: &Arc<Self>, index: u32) -> io::Result<Receiver<Outcome>> {
        let (tell, outcome) = channel();
        let mut queue = self.queue();
        if queue.deleters < DELETERS_MAX {
            let deleters = self.clone();
            thread::Builder::new()
                .name("links-go".into())
                .spawn(move || deleters.work())
                .map(|_| queue.deleters += 1)?;
        }
        queue.waiting.push(Going { index, tell });
        Ok(outcome)
    }

    /// Deletes whatever waits, until nothing does.
    fn work(&self) {
        let mut own = None;
        loop {
            let mut queue = self.queue();
            if queue.waiting.is_empty() {
                queue.deleters -= 1;
                queue.wires.extend(own);
                return;
            }
            let batch = std::mem::take(&mut queue.waiting);
            own = own.or_else(|| queue.wires.pop());
            drop(queue);
            let deleted = self.wire(&mut own).and_then(|wire| delete(wire, &batch));
            if let Err(error) = deleted {
                own = None;
                // Who has seen that its link is gone does not listen any more.
                batch.iter().for_each(|going| drop(going.tell.send(Err(error.to_string()))));
            }
        }
    }

    fn wire<'a>(&self, own: &'a mut Option<Wire>) -> io::Result<&'a mut Wire> {
        if own.is_none() {
            netns::enter(self.host_ns.as_fd())?;
            *own = Some(Wire::open_route()?);
        }
        own.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn delete(wire: &mut Wire, batch: &[Going]) -> io::Result<()> {
    if let [_, _, ..] = batch {
        let marks: Vec<_> = batch.iter().map(|going| messages::mark(going.index, GROUP)).collect();
        let marked = wire.execute(&marks)?;
        let together = wire.execute_one(messages::delete_group(GROUP))?;
        if together.is_ok() && marked.iter().all(Result::is_ok) {
            batch.iter().for_each(|going| drop(going.tell.send(Ok(()))));
            return Ok(());
        }
    }
    // What the group did not take along goes by itself.
    for going in batch {
        let outcome = match wire.execute_one(messages::delete(going.index))? {
            Err(refusal) if !refusal.is_absent() => Err(Refusal::to_string(&refusal)),
            _ => Ok(()),
        };
        let _ = going.tell.send(outcome);
    }
    Ok(())
}
