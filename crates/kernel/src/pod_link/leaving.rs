// SPDX-License-Identifier: Apache-2.0
//! Links that go, several at once: the kernel waits for a grace period with each request that deletes, however many links it names.
//!
//! Who comes first deletes; who comes while it does waits, and then the first of those deletes for all of them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};

use isthmus_model::ids::LinkName;

use super::{PodLinkError, messages};
use crate::wire::Wire;

/// Group of links that are about to be deleted; nobody else uses the number ("isth").
const GROUP: u32 = 0x6973_7468;
const STEP: &str = "remove the link";

/// Whether there was a link, or why it stays.
type Outcome = Result<bool, String>;

/// Links to be deleted, and those that delete them.
pub(super) struct Leaving {
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    /// Taken by the one that deletes.
    wire: Option<Wire>,
    waiting: BTreeMap<u64, LinkName>,
    done: BTreeMap<u64, Outcome>,
    next: u64,
}

impl Leaving {
    pub(super) fn new(wire: Wire) -> Self {
        let queue = Queue { wire: Some(wire), waiting: BTreeMap::new(), done: BTreeMap::new(), next: 0 };
        Self { queue: Mutex::new(queue), changed: Condvar::new() }
    }

    /// Deletes the link, with all others that wait. Returns whether there was one.
    pub(super) fn delete(&self, link: &LinkName) -> Result<bool, PodLinkError> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = queue.next;
        queue.next += 1;
        queue.waiting.insert(ticket, link.clone());
        loop {
            if let Some(outcome) = queue.done.remove(&ticket) {
                return outcome.map_err(|reason| PodLinkError::Refused { step: STEP, reason });
            }
            let Some(mut wire) = queue.wire.take() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let batch = std::mem::take(&mut queue.waiting);
            drop(queue);
            let links: Vec<&LinkName> = batch.values().collect();
            let outcomes = delete_all(&mut wire, &links)
                .unwrap_or_else(|error| links.iter().map(|_| Err(error.to_string())).collect());
            queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.wire = Some(wire);
            queue.done.extend(batch.into_keys().zip(outcomes));
            self.changed.notify_all();
        }
    }
}

fn delete_all(wire: &mut Wire, links: &[&LinkName]) -> io::Result<Vec<Outcome>> {
    if let [only] = links {
        return Ok(vec![delete_one(wire, only)?]);
    }
    let marks: Vec<_> = links.iter().map(|link| messages::mark(link, GROUP)).collect();
    let marked = wire.execute(&marks)?;
    let together = wire.execute_one(messages::delete_group(GROUP))?;
    let mut outcomes = Vec::with_capacity(links.len());
    for (link, marked) in links.iter().zip(marked) {
        outcomes.push(match (marked, &together) {
            (Ok(()), Ok(())) => Ok(true),
            (Err(refusal), _) if refusal.is_absent() => Ok(false),
            // What the group did not take along goes by itself.
            _ => delete_one(wire, link)?,
        });
    }
    Ok(outcomes)
}

fn delete_one(wire: &mut Wire, link: &LinkName) -> io::Result<Outcome> {
    Ok(match wire.execute_one(messages::delete(link))? {
        Ok(()) => Ok(true),
        Err(refusal) if refusal.is_absent() => Ok(false),
        Err(refusal) => Err(refusal.to_string()),
    })
}
