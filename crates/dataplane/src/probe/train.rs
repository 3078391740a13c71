// SPDX-License-Identifier: Apache-2.0
//! Whether segmented sends are what a path loses. Pure: time, nonces and what became of single probes are arguments.
//!
//! A *train* is a few probes of one size that leave together, so that what carries them sends them segmented (UDP_SEGMENT). Where trains
//! are lost in a row while single probes come back, datagrams leave one by one for a while. Do trains come through then, segmentation
//! explains the loss, and it stays off for some minutes; else it does not, and is on again.

use std::time::{Duration, Instant};

/// Probes of a train.
pub(crate) const CARS: usize = 4;
/// Size of each as an inner packet: encrypted, it passes wherever IPv6 does (RFC 8200, 5).
pub(crate) const CAR_BYTES: u16 = 1200;
/// A train of which no more came back is lost; one that lacks no more came through.
const STRAYS: usize = 1;
/// What decides is so many trains in a row.
const IN_A_ROW: u8 = 3;
const EVERY: Duration = Duration::from_secs(5);
/// After a lost one.
const SOON: Duration = Duration::from_secs(1);
/// Patience with each, on top of two round trips.
const PATIENCE: Duration = Duration::from_millis(500);
/// Until what was decided here is done where datagrams are sent.
const SETTLE: Duration = Duration::from_secs(3);
/// After a verdict nothing is tried for so long.
const REST: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Segmented, as usual.
    Watching,
    /// One by one, to see whether trains come through so.
    Comparing,
    /// One by one: segmented they were lost.
    Singly,
    /// Segmented: they are lost either way.
    Excused,
}

struct Travelling {
    nonces: [u64; CARS],
    back: [bool; CARS],
    since: Instant,
}

/// The trains of one path.
pub(crate) struct Trains {
    phase: Phase,
    in_a_row: u8,
    next_at: Instant,
    travelling: Option<Travelling>,
}

impl Trains {
    pub(crate) fn new(now: Instant) -> Self {
        Self { phase: Phase::Watching, in_a_row: 0, next_at: now + EVERY, travelling: None }
    }

    /// Whether datagrams of this path shall leave one by one.
    pub(crate) fn unsegmented(&self) -> bool {
        matches!(self.phase, Phase::Comparing | Phase::Singly)
    }

    /// The nonces of the train to be sent now, if one is. To be asked often while the path is up; `lossless`: the last single probes
    /// were answered.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        round_trip: Duration,
        lossless: bool,
        mut nonce: impl FnMut() -> u64,
    ) -> Option<[u64; CARS]> {
        if let Some(train) = &self.travelling {
            if now.saturating_duration_since(train.since) < PATIENCE + 2 * round_trip {
                return None;
            }
            let back = train.back.iter().filter(|back| **back).count();
            self.travelling = None;
            if lossless {
                self.judge(back, now);
            }
        }
        if now < self.next_at {
            return None;
        }
        if matches!(self.phase, Phase::Singly | Phase::Excused) {
            self.enter(Phase::Watching, now + EVERY);
            return None;
        }
        self.next_at = now + EVERY;
        let nonces = std::array::from_fn(|_| nonce());
        self.travelling = Some(Travelling { nonces, back: [false; CARS], since: now });
        Some(nonces)
    }

    /// An answer with this nonce came.
    pub(crate) fn answered(&mut self, nonce: u64) {
        let Some(train) = &mut self.travelling else { return };
        for (sent, back) in train.nonces.iter().zip(&mut train.back) {
            *back |= *sent == nonce;
        }
    }

    /// The path went down: what is on its way counts for nothing.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.travelling = None;
        self.in_a_row = 0;
        if self.phase == Phase::Comparing {
            self.enter(Phase::Watching, now + EVERY);
        }
    }

    fn judge(&mut self, back: usize, now: Instant) {
        let (lost, through) = (back <= STRAYS, back >= CARS - STRAYS);
        match self.phase {
            Phase::Watching if lost => self.another(Phase::Comparing, now, SETTLE),
            Phase::Watching => self.in_a_row = 0,
            Phase::Comparing if through => self.another(Phase::Singly, now, REST),
            Phase::Comparing => self.enter(Phase::Excused, now + REST),
            Phase::Singly | Phase::Excused => {}
        }
    }

    /// One more in a row; the last of them leads to the next phase, whose first train is `after` that.
    fn another(&mut self, next: Phase, now: Instant, after: Duration) {
        self.in_a_row += 1;
        if self.in_a_row >= IN_A_ROW {
            self.enter(next, now + after);
        } else {
            self.next_at = self.next_at.min(now + SOON);
        }
    }

    fn enter(&mut self, phase: Phase, next_at: Instant) {
        (self.phase, self.in_a_row, self.next_at) = (phase, 0, next_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drives trains for `time`, looking every 50 ms. `back`: how many of a train come back, by whether it left segmented.
    /// Returns how many trains left, and the times at which segmentation went off or on.
    fn drive(
        trains: &mut Trains,
        (start, time): (Instant, Duration),
        lossless: bool,
        back: impl Fn(bool) -> usize,
    ) -> (usize, Vec<(Duration, bool)>) {
        let (mut sent, mut changes, mut last) = (0, Vec::new(), trains.unsegmented());
        let (mut next, mut elapsed) = (1, Duration::ZERO);
        while elapsed < time {
            let nonces = trains.poll(start + elapsed, Duration::from_millis(2), lossless, || {
                next += 1;
                next
            });
            if let Some(nonces) = nonces {
                sent += 1;
                nonces.iter().take(back(!trains.unsegmented())).for_each(|nonce| trains.answered(*nonce));
            }
            if trains.unsegmented() != last {
                last = !last;
                changes.push((elapsed, last));
            }
            elapsed += Duration::from_millis(50);
        }
        (sent, changes)
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    #[test]
    fn a_path_that_loses_nothing_stays_as_it_is_for_a_train_every_five_seconds() {
        let start = Instant::now();
        let mut trains = Trains::new(start);
        assert_eq!(drive(&mut trains, (start, minutes(10)), true, |_| CARS), (119, Vec::new()));
    }

    #[test]
    fn where_only_segmented_trains_are_lost_datagrams_leave_singly_and_segmentation_is_tried_again() {
        let start = Instant::now();
        let mut trains = Trains::new(start);
        let (_, changes) =
            drive(&mut trains, (start, minutes(7)), true, |segmented| if segmented { 0 } else { 4 });
        let (off, on) = (changes[0], changes[1]);
        assert!(off.1 && off.0 < Duration::from_secs(10), "{changes:?}");
        assert!(!on.1 && on.0 > off.0 + REST, "{changes:?}");
        assert_eq!(changes.len(), 3, "still broken, and off again: {changes:?}");
    }

    #[test]
    fn where_trains_are_lost_either_way_segmentation_stays() {
        let start = Instant::now();
        let mut trains = Trains::new(start);
        let (_, changes) = drive(&mut trains, (start, minutes(4)), true, |_| 1);
        let [(off, true), (on, false)] = changes[..] else { panic!("{changes:?}") };
        assert!(on - off < Duration::from_secs(10), "off for the comparison only: {changes:?}");
    }

    #[test]
    fn single_trains_that_are_lost_and_those_that_are_half_lost_change_nothing() {
        let start = Instant::now();
        let mut trains = Trains::new(start);
        let turn = std::cell::Cell::new(0);
        let (_, changes) = drive(&mut trains, (start, minutes(10)), true, |_| {
            turn.set(turn.get() + 1);
            [0, 0, 4, 2, 0, 3][turn.get() % 6]
        });
        assert!(changes.is_empty(), "{changes:?}");
    }

    #[test]
    fn what_is_lost_while_single_probes_are_lost_too_counts_for_nothing() {
        let start = Instant::now();
        let mut trains = Trains::new(start);
        assert!(drive(&mut trains, (start, minutes(10)), false, |_| 0).1.is_empty());
    }

    #[test]
    fn a_path_that_goes_down_ends_a_comparison() {
        let start = Instant::now();
        let mut trains = Trains::new(start);
        let time = Duration::from_secs(10);
        drive(&mut trains, (start, time), true, |_| 0);
        assert!(trains.unsegmented());
        trains.pause(start + time);
        assert!(!trains.unsegmented());
    }

    #[test]
    fn an_answer_that_was_not_asked_for_or_comes_twice_counts_once_at_most() {
        let start = Instant::now();
        let mut trains = Trains::new(start);
        let mut next = 0;
        let nonces = trains.poll(start + EVERY, Duration::ZERO, true, || {
            next += 1;
            next
        });
        let nonces = nonces.unwrap();
        for nonce in [nonces[0], nonces[0], 77, 78] {
            trains.answered(nonce);
        }
        let back = trains.travelling.unwrap().back;
        assert_eq!(back, [true, false, false, false]);
    }
}
