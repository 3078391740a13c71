// SPDX-License-Identifier: Apache-2.0
//! When a worker is started: at once after one has ended, with pauses when they end again and again; beside one that carries when somebody
//! asks for it; and not while one of another parent carries. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A worker that carried for so long has not ended for what made others end before it.
const SOUND_AFTER: Duration = Duration::from_secs(10);
/// The pause after the second in a row that has ended; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// From so many in a row on, the next does without what the others left: that may be what they ended for.
const FORGET_AFTER: u32 = 5;

/// Whoever took over from here, a worker of another parent, is gone for good when it was not there so often in a row.
const MISSED: u32 = 4;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It does not carry yet.
    Starting,
    Carrying,
    /// Another one carries.
    Leaving,
}

/// The workers of a parent.
pub(crate) struct Family {
    workers: BTreeMap<WorkerId, Stage>,
    next_id: u32,
    /// When another is to be started.
    due: Option<Instant>,
    /// Somebody asks for a worker in place of the one that carries.
    asked: bool,
    /// A worker of another parent carries; how often in a row it was not there.
    standby: Option<u32>,
    /// Ended in a row, none of them sound.
    failures: u32,
    has_carried: bool,
}

impl Family {
    /// Without a worker; the first is due now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            workers: BTreeMap::new(),
            next_id: 0,
            due: Some(now),
            asked: false,
            standby: None,
            failures: 0,
            has_carried: false,
        }
    }

    /// When [`Self::birth`] wants to be asked.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A worker of another parent carries: it is to be looked for ([`Self::looked`]), and nothing is to be kept meanwhile.
    pub(crate) fn stands_by(&self) -> bool {
        self.standby.is_some()
    }

    /// The worker that is to be started now, if one is.
    pub(crate) fn birth(&mut self, now: Instant) -> Option<Birth> {
        self.due.filter(|due| now >= *due)?;
        self.due = None;
        let id = WorkerId(self.next_id);
        self.next_id += 1;
        self.workers.insert(id, Stage::Starting);
        Some(Birth { id, bare: self.failures >= FORGET_AFTER })
    }

    /// A worker says that it carries.
    pub(crate) fn carries(&mut self, id: WorkerId) {
        if !self.workers.contains_key(&id) {
            return;
        }
        (self.has_carried, self.standby) = (true, None);
        for (other, stage) in &mut self.workers {
            *stage = if *other == id { Stage::Carrying } else { Stage::Leaving };
        }
    }

    /// A worker says that another one carries: one that is about to say so, or one of another parent.
    pub(crate) fn hands_over(&mut self, id: WorkerId) {
        let Some(stage) = self.workers.get_mut(&id) else { return };
        *stage = Stage::Leaving;
        if !self.has_heir() {
            self.standby = Some(0);
        }
    }

    /// Somebody wants another worker to take over from the one that carries. It is started once that is the only one.
    pub(crate) fn replace(&mut self, now: Instant) {
        self.asked = true;
        self.heed(now);
    }

    /// Whether the one of the other parent was there.
    pub(crate) fn looked(&mut self, is_there: bool, now: Instant) {
        let Some(missed) = &mut self.standby else { return };
        *missed = if is_there { 0 } else { *missed + 1 };
        if *missed >= MISSED {
            (self.standby, self.due) = (None, Some(now));
        }
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
        let stage = self.workers.remove(&id)?;
        if let Some(code) = code.filter(|_| !self.has_carried) {
            return Some(code);
        }
        // One that was to take over and did not leaves the one that carries; one that has handed over leaves its heir.
        if self.has_heir() || self.standby.is_some() {
            self.heed(now);
            return None;
        }
        let sound = lived >= SOUND_AFTER || stage == Stage::Leaving;
        self.failures = if sound { 0 } else { self.failures.saturating_add(1) };
        self.due = Some(now + pause(self.failures));
        None
    }

    /// Whether there is one that carries, or is to.
    fn has_heir(&self) -> bool {
        self.workers.values().any(|stage| *stage != Stage::Leaving)
    }

    fn heed(&mut self, now: Instant) {
        let alone = self.workers.len() == 1 && self.workers.values().all(|stage| *stage == Stage::Carrying);
        if self.asked && alone {
            (self.asked, self.due) = (false, Some(now));
        }
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

    /// With one worker that carries.
    fn family(now: Instant) -> (Family, WorkerId) {
        let mut family = Family::new(now);
        let worker = family.birth(now).unwrap().id;
        family.carries(worker);
        (family, worker)
    }

    #[test]
    fn a_worker_that_takes_over_is_started_beside_the_one_that_carries_and_the_next_only_once_that_has_ended()
    {
        let start = Instant::now();
        let (mut family, old) = family(start);
        family.replace(start);
        let new = family.birth(start).unwrap().id;
        family.replace(start);
        assert_eq!(family.birth(start), None, "two are enough");
        family.hands_over(old);
        family.carries(new);
        assert!(!family.stands_by());
        assert_eq!(family.birth(start), None);
        assert_eq!(family.ended(old, MS(900), Some(0), start), None);
        let newest = family.birth(start).unwrap();
        assert!(!newest.bare);
        family.carries(newest.id);
        family.ended(new, MS(900), Some(0), start);
        assert_eq!(family.due(), None, "nobody asked for more");
    }

    #[test]
    fn a_replacement_that_dies_leaves_the_one_that_carries_and_if_that_had_handed_over_another_is_started() {
        let start = Instant::now();
        let (mut family, old) = family(start);
        family.replace(start);
        let new = family.birth(start).unwrap().id;
        family.ended(new, MS(5), Some(1), start);
        assert_eq!(family.due(), None);
        family.replace(start);
        let new = family.birth(start).unwrap().id;
        family.hands_over(old);
        family.ended(new, MS(5), None, start);
        assert_eq!(family.due(), Some(start));
        family.birth(start).unwrap();
        family.ended(old, MS(5), Some(0), start);
        assert_eq!(family.due(), None);
    }

    #[test]
    fn the_one_that_carries_may_die_beside_the_one_that_takes_over() {
        let start = Instant::now();
        let (mut family, old) = family(start);
        family.replace(start);
        let new = family.birth(start).unwrap().id;
        family.ended(old, MS(5), None, start);
        assert_eq!(family.due(), None, "it gets everything from its parent");
        family.carries(new);
        family.ended(new, MS(5), None, start);
        assert_eq!(family.due(), Some(start));
    }

    #[test]
    fn a_parent_stands_by_while_a_worker_of_another_one_carries_and_starts_its_own_when_that_is_gone() {
        let start = Instant::now();
        let (mut family, old) = family(start);
        family.hands_over(old);
        assert!(family.stands_by());
        family.ended(old, MS(900), Some(0), start);
        for is_there in [true, false, false, false, true, false, false, false] {
            family.looked(is_there, start);
            assert_eq!((family.due(), family.stands_by()), (None, true));
        }
        family.looked(false, start);
        assert_eq!((family.due(), family.stands_by()), (Some(start), false));
        let own = family.birth(start).unwrap().id;
        family.carries(own);
        family.looked(false, start);
        assert_eq!(family.due(), None);
    }
}
