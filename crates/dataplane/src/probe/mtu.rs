// SPDX-License-Identifier: Apache-2.0
//! The search for the largest packet that passes a path, there and back. Pure: time and nonces are arguments.
//!
//! Most paths pass the largest size at once; else sizes between 1280 (what IPv6 demands) and the largest are halved in. What was
//! found is confirmed from time to time, and searched anew when it no longer passes.

use std::time::{Duration, Instant};

/// What every path of IPv6 passes (RFC 8200, 5).
const FLOOR_BYTES: u16 = 1280;
/// A search ends when the answer is known to this many bytes.
const PRECISION_BYTES: u16 = 4;
/// A size does not pass when so many in a row brought no answer.
const TRIES: u8 = 3;
/// Patience with each, on top of two round trips.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often the size that was found is confirmed.
const CONFIRM_EVERY: Duration = Duration::from_secs(15);
/// How often a path that passes less than the largest size is searched anew.
const SEARCH_EVERY: Duration = Duration::from_secs(300);

/// A size to be tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Try {
    /// Size of the inner packet, IP header included.
    pub(crate) size: u16,
    /// To be repeated by the answer.
    pub(crate) nonce: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing to do before then.
    Resting { until: Instant },
    /// Does the size that was found still pass?
    Confirming,
    /// `low` passes (or is the floor, untried while `low_passes` is false), `high` does not.
    Searching { low: u16, low_passes: bool, high: u16 },
}

/// The search on one path.
#[derive(Clone, Debug)]
pub(crate) struct MtuSearch {
    max: u16,
    found: Option<u16>,
    phase: Phase,
    next_search: Instant,
    /// What is on the way: size, nonce, when sent, how often already.
    trying: Option<(Try, Instant)>,
    tries: u8,
}

impl MtuSearch {
    /// A search up to `max` bytes.
    pub(crate) fn new(max: u16, now: Instant) -> Self {
        // One below the type's largest: a search begins one above what it looks for.
        let max = max.clamp(FLOOR_BYTES, u16::MAX - 1);
        let phase = Phase::Resting { until: now };
        Self { max, found: None, phase, next_search: now, trying: None, tries: 0 }
    }

    /// A search that has found this before, and confirms it.
    pub(crate) fn found_before(max: u16, found: u16, now: Instant) -> Self {
        let search = Self::new(max, now);
        let found = Some(found).filter(|found| (FLOOR_BYTES..=search.max).contains(found));
        let next_search = if found.is_some() { now + SEARCH_EVERY } else { now };
        Self { found, next_search, ..search }
    }

    /// The largest size that is known to pass.
    pub(crate) fn found(&self) -> Option<u16> {
        self.found
    }

    /// What to send now, if anything. To be asked at least every 50 ms while the path is up.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        round_trip: Duration,
        nonce: impl FnOnce() -> u64,
    ) -> Option<Try> {
        if let Phase::Resting { until } = self.phase {
            if now < until {
                return None;
            }
            self.phase = if self.found.is_some() && now < self.next_search {
                Phase::Confirming
            } else {
                self.search(now)
            };
        }
        if let Some((_, sent)) = self.trying {
            if now.saturating_duration_since(sent) < PATIENCE + 2 * round_trip {
                return None;
            }
            self.trying = None;
            if self.tries >= TRIES {
                self.does_not_pass(now);
            }
        }
        let next = Try { size: self.candidate()?, nonce: nonce() };
        self.trying = Some((next, now));
        self.tries += 1;
        Some(next)
    }

    /// The kernel did not take the size that was to be tried: it exceeds the device.
    pub(crate) fn refused(&mut self, now: Instant) {
        self.trying = None;
        self.does_not_pass(now);
    }

    /// An answer of `size` bytes (inner packet) with this nonce. True if what is known has changed.
    pub(crate) fn answered(&mut self, nonce: u64, size: u16, now: Instant) -> bool {
        let Some((tried, _)) = self.trying.filter(|(tried, _)| tried.nonce == nonce && tried.size == size)
        else {
            return false;
        };
        self.trying = None;
        self.tries = 0;
        match self.phase {
            Phase::Resting { .. } => false,
            Phase::Confirming => {
                self.phase = Phase::Resting { until: now + CONFIRM_EVERY };
                false
            }
            Phase::Searching { high, .. } => {
                self.phase = Phase::Searching { low: tried.size, low_passes: true, high };
                self.end_search(now)
            }
        }
    }

    /// The path went down: what is on the way does not count.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.trying = None;
        self.tries = 0;
        self.phase = Phase::Resting { until: now };
    }

    fn search(&mut self, now: Instant) -> Phase {
        self.next_search = now + SEARCH_EVERY;
        Phase::Searching { low: FLOOR_BYTES, low_passes: false, high: self.max + 1 }
    }

    fn candidate(&self) -> Option<u16> {
        match self.phase {
            Phase::Resting { .. } => None,
            Phase::Confirming => self.found,
            Phase::Searching { high, .. } if high == self.max + 1 => Some(self.max),
            Phase::Searching { low, low_passes: false, .. } => Some(low),
            Phase::Searching { low, high, .. } => Some(low + (high - low) / 2),
        }
    }

    fn does_not_pass(&mut self, now: Instant) {
        self.tries = 0;
        match self.phase {
            Phase::Resting { .. } => {}
            Phase::Confirming => self.phase = self.search(now),
            Phase::Searching { low_passes: false, high, .. }
                if high != self.max + 1 || self.max == FLOOR_BYTES =>
            {
                // Not even the floor: nothing is known, small packets may pass all the same.
                self.found = None;
                self.phase = Phase::Resting { until: now + CONFIRM_EVERY };
            }
            Phase::Searching { low, low_passes, .. } => {
                if let Some(size) = self.candidate() {
                    self.phase = Phase::Searching { low, low_passes, high: size };
                    if low_passes {
                        self.end_search(now);
                    }
                }
            }
        }
    }

    fn end_search(&mut self, now: Instant) -> bool {
        let Phase::Searching { low, high, .. } = self.phase else { return false };
        if low != self.max && high - low > PRECISION_BYTES {
            return false;
        }
        self.phase = Phase::Resting { until: now + CONFIRM_EVERY };
        self.found.replace(low) != Some(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs the search against a path that passes `passes` bytes, for `run`.
    fn drive(search: &mut MtuSearch, passes: u16, now: &mut Instant, run: Duration) -> usize {
        let end = *now + run;
        let mut sent = 0;
        while *now < end {
            let nonce = sent as u64;
            if let Some(next) = search.poll(*now, Duration::from_millis(1), || nonce) {
                sent += 1;
                if next.size <= passes {
                    search.answered(next.nonce, next.size, *now);
                }
            }
            *now += Duration::from_millis(50);
        }
        sent
    }

    #[test]
    fn a_path_that_passes_the_largest_size_is_known_after_one_probe() {
        let mut now = Instant::now();
        let mut search = MtuSearch::new(1420, now);
        assert_eq!(drive(&mut search, 1500, &mut now, Duration::from_secs(1)), 1);
        assert_eq!(search.found(), Some(1420));
    }

    #[test]
    fn a_path_that_narrows_is_noticed_and_one_that_widens_too() {
        let mut now = Instant::now();
        let mut search = MtuSearch::new(1420, now);
        drive(&mut search, 1500, &mut now, Duration::from_secs(5));
        drive(&mut search, 1350, &mut now, Duration::from_secs(30));
        let narrowed = search.found().unwrap();
        assert!((1346..=1350).contains(&narrowed), "{narrowed}");
        drive(&mut search, 1500, &mut now, SEARCH_EVERY + CONFIRM_EVERY);
        assert_eq!(search.found(), Some(1420));
    }

    #[test]
    fn an_answer_that_was_not_asked_for_changes_nothing() {
        let now = Instant::now();
        let mut search = MtuSearch::new(1420, now);
        let asked = search.poll(now, Duration::ZERO, || 99).unwrap();
        assert!(!search.answered(98, asked.size, now));
        assert!(!search.answered(99, asked.size - 1, now));
        assert_eq!(search.found(), None);
    }

    #[test]
    fn a_path_below_the_floor_is_unknown_not_guessed() {
        let mut now = Instant::now();
        let mut search = MtuSearch::new(1420, now);
        drive(&mut search, 1000, &mut now, Duration::from_secs(60));
        assert_eq!(search.found(), None);
    }

    proptest! {
        #[test]
        fn what_is_found_passes_and_is_the_largest_to_the_precision(passes in 1280u16..1600, max in 1280u16..1600) {
            let mut now = Instant::now();
            let mut search = MtuSearch::new(max, now);
            drive(&mut search, passes, &mut now, Duration::from_secs(14));
            let found = search.found().unwrap();
            prop_assert!(found <= passes && found <= max);
            prop_assert!(found + PRECISION_BYTES >= passes.min(max), "{found} of {passes}");
        }
    }
}
