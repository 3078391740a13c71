// SPDX-License-Identifier: Apache-2.0
//! What became of a delta.

use std::collections::BTreeMap;

/// The result of applying a delta: every key that is not in `failed` is as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<K> {
    /// Entries made, changed or taken away.
    pub changed: usize,
    /// What could not be done, and why.
    pub failed: BTreeMap<K, String>,
}

impl<K: Ord> Outcome<K> {
    /// Counts one entry's result.
    pub fn record<E: ToString>(&mut self, key: K, result: Result<(), E>) {
        match result {
            Ok(()) => self.changed += 1,
            Err(error) => drop(self.failed.insert(key, error.to_string())),
        }
    }

    /// Everything is as wanted.
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty()
    }

    /// Adds what became of another delta, its keys said in this outcome's words.
    pub fn absorb<L>(&mut self, other: Outcome<L>, name: impl Fn(&L) -> K) {
        self.changed += other.changed;
        self.failed.extend(other.failed.into_iter().map(|(key, error)| (name(&key), error)));
    }
}

impl<K> Default for Outcome<K> {
    fn default() -> Self {
        Self { changed: 0, failed: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_does_not_hide_the_successes_beside_it() {
        let mut outcome = Outcome::default();
        outcome.record("a", Ok::<_, String>(()));
        outcome.record("b", Err("no such device"));
        assert_eq!(outcome.changed, 1);
        assert_eq!(outcome.failed["b"], "no such device");
        assert!(!outcome.is_clean());
    }

    #[test]
    fn absorbed_failures_say_which_table_they_came_from() {
        let mut routes = Outcome::default();
        routes.record(7, Err("unreachable"));
        let mut all = Outcome::default();
        all.absorb(routes, |key| format!("route {key}"));
        assert_eq!(all.failed["route 7"], "unreachable");
    }
}
