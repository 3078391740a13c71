// SPDX-License-Identifier: Apache-2.0
//! When to try again what failed.

use std::collections::BTreeMap;
use std::time::Duration;

/// Exponential delays by key: `first`, then twice as long after each further failure, never longer than `limit`.
/// Time is an argument: a duration since any fixed instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff<K> {
    first: Duration,
    limit: Duration,
    waiting: BTreeMap<K, Attempt>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Attempt {
    delay: Duration,
    due: Duration,
}

impl<K: Ord + Clone> Backoff<K> {
    /// No key waits yet.
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, waiting: BTreeMap::new() }
    }

    /// The key failed: returns when it is due again.
    pub fn failed(&mut self, key: K, now: Duration) -> Duration {
        let delay = match self.waiting.get(&key) {
            Some(attempt) => (attempt.delay * 2).min(self.limit),
            None => self.first.min(self.limit),
        };
        let due = now + delay;
        self.waiting.insert(key, Attempt { delay, due });
        due
    }

    /// The key succeeded or is no longer wanted: its next failure begins with the first delay.
    pub fn forget(&mut self, key: &K) {
        self.waiting.remove(key);
    }

    /// Whether the key may be tried now. A key that never failed always may.
    pub fn is_due(&self, key: &K, now: Duration) -> bool {
        self.waiting.get(key).is_none_or(|attempt| attempt.due <= now)
    }

    /// When the next key is due, if any waits.
    pub fn next_due(&self) -> Option<Duration> {
        self.waiting.values().map(|attempt| attempt.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delays_double_up_to_the_limit() {
        let mut backoff = Backoff::new(SECOND, SECOND * 5);
        let dues: Vec<u64> = (0..4).map(|_| backoff.failed("a", Duration::ZERO).as_secs()).collect();
        assert_eq!(dues, [1, 2, 4, 5]);
    }

    #[test]
    fn success_begins_anew() {
        let mut backoff = Backoff::new(SECOND, SECOND * 60);
        backoff.failed("a", Duration::ZERO);
        backoff.failed("a", Duration::ZERO);
        backoff.forget(&"a");
        assert!(backoff.is_due(&"a", Duration::ZERO));
        assert_eq!(backoff.failed("a", Duration::ZERO), SECOND);
    }

    #[test]
    fn one_keys_failures_do_not_delay_another() {
        let mut backoff = Backoff::new(SECOND, SECOND * 60);
        backoff.failed("a", Duration::ZERO);
        assert!(!backoff.is_due(&"a", Duration::ZERO));
        assert!(backoff.is_due(&"a", SECOND));
        assert!(backoff.is_due(&"b", Duration::ZERO));
        assert_eq!(backoff.next_due(), Some(SECOND));
    }
}
