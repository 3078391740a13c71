// SPDX-License-Identifier: Apache-2.0
//! The daemon's leases: each is in one hand at a time, and is prolonged when it is due.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::calls::Key;
use super::client::Client;
use super::record::Place;

/// Leases that are prolonged at the same time; others wait.
const HANDS: usize = 16;

/// A client and where it works.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) client: Client,
    pub(crate) place: Place,
}

#[derive(Debug)]
enum Slot {
    Idle(Box<Tenant>),
    /// In somebody's hand: how to call that off, and whether there was a lease.
    Busy(Arc<AtomicBool>, bool),
}

/// All tenants.
#[derive(Debug, Default)]
pub(crate) struct Tenancy {
    slots: Mutex<BTreeMap<Key, Slot>>,
    changed: Condvar,
}

/// What the holder of a key has in hand. It goes back when this is dropped.
pub(crate) struct Hand<'a> {
    of: &'a Tenancy,
    pub(crate) key: Key,
    /// None frees the key.
    pub(crate) tenant: Option<Tenant>,
    /// Somebody else waits to take the tenant away.
    pub(crate) off: Arc<AtomicBool>,
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        let mut slots = self.of.lock();
        match self.tenant.take() {
            Some(tenant) => drop(slots.insert(self.key.clone(), Slot::Idle(Box::new(tenant)))),
            None => drop(slots.remove(&self.key)),
        }
        self.of.changed.notify_all();
    }
}

impl Tenancy {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Slot>> {
        // A slot is whole whoever panicked.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the key, with its tenant if it has one. Waits for whoever has it, and with `call_off` hurries them.
    pub(crate) fn take(&self, key: &Key, call_off: bool) -> Hand<'_> {
        let mut slots = self.lock();
        loop {
            match slots.get_mut(key) {
                Some(Slot::Busy(off, _)) => {
                    off.fetch_or(call_off, Ordering::Relaxed);
                    slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
                }
                Some(slot) => return self.hand(key, slot),
                None => {
                    let off = Arc::new(AtomicBool::new(false));
                    slots.insert(key.clone(), Slot::Busy(Arc::clone(&off), false));
                    return Hand { of: self, key: key.clone(), tenant: None, off };
                }
            }
        }
    }

    fn hand<'a>(&'a self, key: &Key, slot: &mut Slot) -> Hand<'a> {
        let off = Arc::new(AtomicBool::new(false));
        let leased = matches!(slot, Slot::Idle(tenant) if tenant.client.lease().is_some());
        let tenant = match std::mem::replace(slot, Slot::Busy(Arc::clone(&off), leased)) {
            Slot::Idle(tenant) => Some(*tenant),
            Slot::Busy(..) => None,
        };
        Hand { of: self, key: key.clone(), tenant, off }
    }

    /// The tenant, without waiting for whoever prolongs its lease just now: then none, and true.
    pub(crate) fn look(&self, key: &Key) -> (Option<Tenant>, bool) {
        match self.lock().get(key) {
            Some(Slot::Idle(tenant)) => (Some(Tenant::clone(tenant)), false),
            Some(Slot::Busy(_, leased)) => (None, *leased),
            None => (None, false),
        }
    }

    /// Puts a tenant there, of a key that nobody has.
    pub(crate) fn settle(&self, key: Key, tenant: Tenant) {
        self.lock().insert(key, Slot::Idle(Box::new(tenant)));
        self.changed.notify_all();
    }

    /// Keys that a predicate holds of.
    pub(crate) fn keys(&self, wanted: impl Fn(&Key) -> bool) -> Vec<Key> {
        self.lock().keys().filter(|key| wanted(key)).cloned().collect()
    }

    /// Waits until something is due, and takes it.
    pub(crate) fn next_due(&self) -> Hand<'_> {
        let mut slots = self.lock();
        loop {
            let busy = slots.values().filter(|slot| matches!(slot, Slot::Busy(_, true))).count();
            let due = |(key, slot): (&Key, &Slot)| match slot {
                Slot::Idle(tenant) => Some((tenant.client.next()?, key.clone())),
                Slot::Busy(..) => None,
            };
            let first = slots.iter().filter_map(due).min().filter(|_| busy < HANDS);
            let now = Instant::now();
            slots = match first {
                Some((at, key)) if at <= now => {
                    if let Some(slot) = slots.get_mut(&key) {
                        return self.hand(&key, slot);
                    }
                    slots
                }
                Some((at, _)) => {
                    let waited = self.changed.wait_timeout(slots, at - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}
