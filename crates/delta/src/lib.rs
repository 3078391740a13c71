// SPDX-License-Identifier: Apache-2.0
//! The difference between what is wanted and what is there, and what became of it.
//!
//! Pure: no clock, no I/O, no words of the domain.

mod backoff;
mod outcome;

use std::collections::BTreeMap;

pub use backoff::Backoff;
pub use outcome::Outcome;

/// The steps from one map to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<K, V> {
    /// Entries to make or to change.
    pub put: BTreeMap<K, V>,
    /// Entries to take away, with the value that they have: some tables delete by content, not by key.
    pub remove: BTreeMap<K, V>,
}

impl<K: Ord + Clone, V: Eq + Clone> Delta<K, V> {
    /// The fewest steps that turn `actual` into `wanted`.
    pub fn between(actual: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> Self {
        let put = wanted.iter().filter(|(key, value)| actual.get(*key) != Some(*value));
        let remove = actual.iter().filter(|(key, _)| !wanted.contains_key(*key));
        Self { put: owned(put), remove: owned(remove) }
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }
}

impl<K, V> Default for Delta<K, V> {
    fn default() -> Self {
        Self { put: BTreeMap::new(), remove: BTreeMap::new() }
    }
}

fn owned<'a, K, V>(entries: impl Iterator<Item = (&'a K, &'a V)>) -> BTreeMap<K, V>
where
    K: Ord + Clone + 'a,
    V: Clone + 'a,
{
    entries.map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_is_already_right_is_left_alone() {
        let routes = BTreeMap::from([("10.0.0.0/8", "dev a")]);
        assert_eq!(Delta::between(&routes, &routes), Delta::default());
    }

    #[test]
    fn a_changed_value_is_put_and_never_removed() {
        let delta = Delta::between(&BTreeMap::from([(1, "old")]), &BTreeMap::from([(1, "new")]));
        assert_eq!(delta.put, BTreeMap::from([(1, "new")]));
        assert!(delta.remove.is_empty());
    }

    #[test]
    fn what_is_removed_carries_the_value_that_is_there() {
        let delta =
            Delta::between(&BTreeMap::from([(1, "there"), (2, "stays")]), &BTreeMap::from([(2, "stays")]));
        assert_eq!(delta.remove, BTreeMap::from([(1, "there")]));
        assert!(delta.put.is_empty());
    }

    #[test]
    fn applying_the_steps_gives_the_wanted_map_for_all_maps_over_three_keys() {
        let maps: Vec<BTreeMap<u8, u8>> = (0..27u32).map(map_of_digits).collect();
        for actual in &maps {
            for wanted in &maps {
                let delta = Delta::between(actual, wanted);
                let mut result = actual.clone();
                result.retain(|key, _| !delta.remove.contains_key(key));
                result.extend(delta.put);
                assert_eq!(&result, wanted);
            }
        }
    }

    /// Each ternary digit says of one key: absent, value 1, value 2.
    fn map_of_digits(mut number: u32) -> BTreeMap<u8, u8> {
        let mut map = BTreeMap::new();
        for key in 0..3 {
            if !number.is_multiple_of(3) {
                map.insert(key, (number % 3) as u8);
            }
            number /= 3;
        }
        map
    }
}
