// SPDX-License-Identifier: Apache-2.0
//! When a worker is started: at once after one has ended, with pauses when they end again and again. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A worker that carried for so long has not ended for what made others end before it.
const SOUND_AFTER: Duration = Duration::from_secs(10);
/// The pause after the second in a row that has ended; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// From so many in a row on, the next does without what the others left: that may be what they ended for.
const FORGET_AFTER: u32 = 5;

/// One of the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WorkerId(u32);

/// A worker that shall be started now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Birth {
    pub(crate) id: WorkerId,
    /// It gets nothing of what was kept.
    pub(crate) bare: bool,
}

/// The workers of a parent.
pub(crate) struct Family {
    workers: BTreeSet<WorkerId>,
    next_id: u32,
    /// When another is to be started.
    due: Option<Instant>,
    /// Ended in a row, none of them sound.
    failures: u32,
    has_carried: bool,
}

impl Family {
    /// Without a worker; the first is due now.
    pub(crate) fn new(now: Instant) -> Self {
        Self { workers: BTreeSet::new(), next_id: 0, due: Some(now), failures: 0, has_carried: false }
    }

    /// When [`Self::birth`] wants to be asked.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The worker that is to be started now, if one is.
    pub(crate) fn birth(&mut self, now: Instant) -> Option<Birth> {
        self.due.filter(|due| now >= *due)?;
        self.due = None;
        let id = WorkerId(self.next_id);
        self.next_id += 1;
        self.workers.insert(id);
        Some(Birth { id, bare: self.failures >= FORGET_AFTER })
    }

    /// A worker says that it carries.
    pub(crate) fn carries(&mut self, id: WorkerId) {
        self.has_carried |= self.workers.contains(&id);
    }

    /// A worker has ended, having lived so long: by itself with this code, or killed. The code that the parent ends with, if it does: one
    /// whose first worker cannot start leaves it to whoever started it to try again.
    pub(crate) fn ended(
        &mut self,
        id: WorkerId,
        lived: Duration,
        code: Option<i32>,
        now: Instant,
    ) -> Option<i32> {
        if !self.workers.remove(&id) {
            return None;
        }
        if let Some(code) = code.filter(|_| !self.has_carried) {
            return Some(code);
        }
        self.failures = if lived >= SOUND_AFTER { 0 } else { self.failures.saturating_add(1) };
        self.due = Some(now + pause(self.failures));
        None
    }
}

fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        _ => (FIRST_PAUSE * 2u32.saturating_pow((failures - 2).min(10))).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_worker_that_ends_is_followed_at_once_and_those_that_end_at_once_with_pauses() {
        let start = Instant::now();
        let mut family = Family::new(start);
        let mut worker = family.birth(start).unwrap();
        assert_eq!(family.birth(start), None, "one is enough");
        family.carries(worker.id);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(family.ended(worker.id, MS(30), None, start), None);
            let due = family.due().unwrap();
            pauses.push(due - start);
            assert!(due == start || family.birth(start).is_none());
            worker = family.birth(due).unwrap();
        }
        let wanted = [0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000];
        assert_eq!(pauses, wanted.map(MS));
        assert!(worker.bare);
        family.ended(worker.id, SOUND_AFTER, None, start);
        assert_eq!(family.due(), Some(start), "this one was sound");
        assert!(!family.birth(start).unwrap().bare);
    }

    #[test]
    fn what_was_kept_is_left_out_from_the_sixth_on() {
        let start = Instant::now();
        let mut family = Family::new(start);
        let bare = (0..7).map(|_| {
            let due = family.due().unwrap();
            let worker = family.birth(due).unwrap();
            family.carries(worker.id);
            family.ended(worker.id, MS(1), Some(1), due);
            worker.bare
        });
        assert_eq!(bare.collect::<Vec<_>>(), [false, false, false, false, false, true, true]);
    }

    #[test]
    fn a_first_worker_that_cannot_start_ends_its_parent_and_one_that_is_killed_does_not() {
        let start = Instant::now();
        let mut family = Family::new(start);
        let worker = family.birth(start).unwrap();
        assert_eq!(family.ended(worker.id, MS(5), None, start), None);
        let worker = family.birth(start).unwrap();
        assert_eq!(family.ended(worker.id, MS(5), Some(1), start), Some(1));
        assert_eq!(family.ended(worker.id, MS(5), Some(1), start), None, "it has ended once");
    }
}
