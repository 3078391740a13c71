// SPDX-License-Identifier: Apache-2.0
//! What all kernel tables have in common: read what is ours, put and take away entries, remember what is there.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;

use isthmus_delta::{Delta, Outcome};
use isthmus_model::ids::LinkName;

use crate::converge::InSync;
use crate::wire::{Request, Wire};

/// Names of links by index, as of one moment.
pub(crate) type LinkNames = BTreeMap<u32, LinkName>;

/// One table of the kernel, each entry a netlink request of its own.
pub(crate) trait Table {
    /// What identifies an entry.
    type Key: Ord + Clone + Debug;
    /// What may differ between two entries of one key.
    type Value: Eq + Clone + Debug;
    /// Says the key in an outcome: "route 10.0.0.0/8 table 254 metric 0".
    fn name(key: &Self::Key) -> String;
    /// Reads only the entries that are ours (`isthmus_model::ownership`).
    fn observe(wire: &mut Wire, links: &LinkNames) -> io::Result<BTreeMap<Self::Key, Self::Value>>;
    /// The request that makes the entry, or changes it where one of ours `exists`.
    fn put(key: &Self::Key, value: &Self::Value, exists: bool) -> Result<Put<Self::Value>, String>;
    /// The request that takes the entry away.
    fn remove(key: &Self::Key, value: &Self::Value) -> Result<Request, String>;
}

/// A request that makes an entry.
pub(crate) struct Put<V> {
    pub(crate) request: Request,
    /// What will be there, if that is less than what was wanted, and why.
    pub(crate) shortfall: Option<(V, String)>,
}

impl<V> From<Request> for Put<V> {
    fn from(request: Request) -> Self {
        Self { request, shortfall: None }
    }
}

/// A table and what we know to be in it.
pub(crate) struct Tracked<T: Table> {
    actual: BTreeMap<T::Key, T::Value>,
}

impl<T: Table> Default for Tracked<T> {
    fn default() -> Self {
        Self { actual: BTreeMap::new() }
    }
}

impl<T: Table> Tracked<T> {
    /// Forgets what was remembered and reads the table.
    pub(crate) fn observe(&mut self, wire: &mut Wire, links: &LinkNames) -> io::Result<()> {
        self.actual = T::observe(wire, links)?;
        Ok(())
    }

    /// The steps from what is there to what is wanted; without proof that all is known, those that take away are left out.
    pub(crate) fn diff(
        &self,
        wanted: &BTreeMap<T::Key, T::Value>,
        sync: Option<InSync>,
    ) -> Delta<T::Key, T::Value> {
        let mut delta = Delta::between(&self.actual, wanted);
        if sync.is_none() {
            delta.remove.clear();
        }
        delta
    }

    /// Takes away what the delta removes. What is absent already counts as done.
    pub(crate) fn apply_removals(
        &mut self,
        wire: &mut Wire,
        delta: &Delta<T::Key, T::Value>,
    ) -> io::Result<Outcome<T::Key>> {
        let mut outcome = Outcome::default();
        let (mut keys, mut requests) = (Vec::new(), Vec::new());
        for (key, value) in &delta.remove {
            match T::remove(key, value) {
                Ok(request) => {
                    keys.push(key.clone());
                    requests.push(request);
                }
                // Without its link the entry is gone as well.
                Err(_) => drop(self.actual.remove(key)),
            }
        }
        for (key, result) in keys.into_iter().zip(wire.execute(&requests)?) {
            let result = result.or_else(|refusal| if refusal.is_absent() { Ok(()) } else { Err(refusal) });
            if result.is_ok() {
                self.actual.remove(&key);
            }
            outcome.record(key, result);
        }
        Ok(outcome)
    }

    /// Makes and changes what the delta puts.
    pub(crate) fn apply_puts(
        &mut self,
        wire: &mut Wire,
        delta: &Delta<T::Key, T::Value>,
    ) -> io::Result<Outcome<T::Key>> {
        let mut outcome = Outcome::default();
        let (mut entries, mut requests) = (Vec::new(), Vec::new());
        for (key, value) in &delta.put {
            match T::put(key, value, self.actual.contains_key(key)) {
                Ok(Put { request, shortfall }) => {
                    entries.push((key.clone(), value.clone(), shortfall));
                    requests.push(request);
                }
                Err(error) => outcome.record(key.clone(), Err(error)),
            }
        }
        for ((key, value, shortfall), result) in entries.into_iter().zip(wire.execute(&requests)?) {
            let result = result.map_err(|refusal| refusal.to_string());
            let (made, result) = match (result, shortfall) {
                (Ok(()), None) => (Some(value), Ok(())),
                (Ok(()), Some((made, why))) => (Some(made), Err(why)),
                (Err(error), _) => (None, Err(error)),
            };
            made.map(|value| self.actual.insert(key.clone(), value));
            outcome.record(key, result);
        }
        Ok(outcome)
    }
}

/// The index of a link that must exist.
pub(crate) fn link_index(link: &LinkName) -> Result<u32, String> {
    nix::net::if_::if_nametoindex(link.as_str()).map_err(|_| format!("the link {link} does not exist"))
}
