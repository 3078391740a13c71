// SPDX-License-Identifier: Apache-2.0
//! One path under probe: up or down, how long, how much is lost. Pure: time and nonces are arguments.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use isthmus_model::dataplane::{Probe, ProbeState};

use super::datagram::{Answer, Header, Purpose};
use super::mtu::{MtuSearch, Try};
use super::train::{CARS, Trains};

/// Loss is of so many.
const LOSS_OF: usize = 100;
/// A path that was down is up again after so many answers without a gap.
const UP_AFTER: u8 = 2;
/// The newest may still be answered: they do not count as lost yet.
const PENDING: usize = 4;
/// Length of a probe, in bytes, at first and when the answer has many names.
const SHORT_BYTES: usize = 128;
const LONG_BYTES: usize = 1232;
/// Faster than this is never probed.
const MIN_INTERVAL: Duration = Duration::from_millis(20);

struct Sent {
    sequence: u32,
    nonce: u64,
    at: Instant,
    answered: bool,
}

/// What the agent, or the thread that carries packets, acts on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    up: bool,
    reaches: BTreeSet<String>,
    path_mtu: Option<u16>,
    unsegmented: bool,
}

/// One path.
pub(crate) struct Path {
    interval: Duration,
    down_after: u8,
    next_sequence: u32,
    next_at: Instant,
    sent: VecDeque<Sent>,
    unanswered: u8,
    answers: u8,
    was_up: bool,
    up: bool,
    round_trip: Option<Duration>,
    reaches: BTreeSet<String>,
    length: usize,
    mtu: Option<MtuSearch>,
    trains: Trains,
    /// What was told last.
    told: Told,
}

impl Path {
    /// A path of which nothing is known.
    pub(crate) fn new(probe: &Probe, now: Instant) -> Self {
        Self {
            interval: Duration::from_millis(probe.interval_ms.into()).max(MIN_INTERVAL),
            down_after: probe.down_after.max(1),
            next_sequence: 0,
            next_at: now,
            sent: VecDeque::new(),
            unanswered: 0,
            answers: 0,
            was_up: false,
            up: false,
            round_trip: None,
            reaches: BTreeSet::new(),
            length: SHORT_BYTES,
            mtu: probe.mtu_max.map(|max| MtuSearch::new(max, now)),
            trains: Trains::new(now),
            told: Told::default(),
        }
    }

    /// A path that another worker has probed until now: as it was, until probes say otherwise.
    pub(crate) fn known(probe: &Probe, known: &ProbeState, now: Instant) -> Self {
        let mtu = probe.mtu_max.map(|max| match known.path_mtu {
            Some(found) => MtuSearch::found_before(max, found, now),
            None => MtuSearch::new(max, now),
        });
        let path_mtu = mtu.as_ref().and_then(MtuSearch::found);
        let (up, reaches) = (known.up, known.reaches.clone());
        let told = Told { up, reaches: reaches.clone(), path_mtu, unsegmented: false };
        Self { up, was_up: up, reaches, mtu, told, ..Self::new(probe, now) }
    }

    /// Whether answers come.
    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    /// When to call [`Self::poll`] next.
    pub(crate) fn next_at(&self) -> Instant {
        self.next_at
    }

    /// How many in a row were not answered.
    pub(crate) fn unanswered(&self) -> u8 {
        self.unanswered
    }

    /// The next probe and its length, if it is time; counts the last one as unanswered.
    pub(crate) fn poll(&mut self, now: Instant, nonce: impl FnOnce() -> u64) -> Option<(Header, usize)> {
        if now < self.next_at {
            return None;
        }
        self.next_at = now + self.interval;
        if self.sent.back().is_some_and(|last| !last.answered) {
            self.unanswered = self.unanswered.saturating_add(1);
            self.answers = 0;
            if self.unanswered >= self.down_after && self.up {
                self.up = false;
                self.reaches.clear();
                if let Some(mtu) = &mut self.mtu {
                    mtu.pause(now);
                }
                self.trains.pause(now);
            }
        }
        let (sequence, nonce) = (self.next_sequence, nonce());
        self.next_sequence = sequence.wrapping_add(1);
        self.sent.push_back(Sent { sequence, nonce, at: now, answered: false });
        if self.sent.len() > LOSS_OF + PENDING {
            self.sent.pop_front();
        }
        Some((Header { purpose: Purpose::Alive, sequence, nonce }, self.length))
    }

    /// The next size to be tried, while the path is up.
    pub(crate) fn poll_size(&mut self, now: Instant, nonce: impl FnOnce() -> u64) -> Option<Try> {
        let round_trip = self.round_trip.unwrap_or_default();
        if self.up { self.mtu.as_mut()?.poll(now, round_trip, nonce) } else { None }
    }

    /// The nonces of the next train, while the path is up.
    pub(crate) fn poll_train(&mut self, now: Instant, nonce: impl FnMut() -> u64) -> Option<[u64; CARS]> {
        let (round_trip, lossless) = (self.round_trip.unwrap_or_default(), self.unanswered == 0);
        if self.up { self.trains.poll(now, round_trip, lossless, nonce) } else { None }
    }

    /// The device does not take the size that was to be tried.
    pub(crate) fn size_refused(&mut self, now: Instant) {
        if let Some(mtu) = &mut self.mtu {
            mtu.refused(now);
        }
    }

    /// Takes an answer; one that was not asked for, or a second one, changes nothing. `inner_size` is that of the whole packet.
    pub(crate) fn answered(&mut self, answer: &Answer, inner_size: u16, now: Instant) {
        if answer.header.purpose == Purpose::Size {
            if let Some(mtu) = &mut self.mtu {
                mtu.answered(answer.header.nonce, inner_size, now);
            }
            self.trains.answered(answer.header.nonce);
            return;
        }
        let asked =
            |sent: &&mut Sent| sent.sequence == answer.header.sequence && sent.nonce == answer.header.nonce;
        let Some(sent) = self.sent.iter_mut().find(asked).filter(|sent| !sent.answered) else { return };
        sent.answered = true;
        let took = now.saturating_duration_since(sent.at);
        self.round_trip = Some(self.round_trip.map_or(took, |smooth| (smooth * 7 + took) / 8));
        self.unanswered = 0;
        self.answers = self.answers.saturating_add(1);
        if !self.up && (!self.was_up || self.answers >= UP_AFTER) {
            self.up = true;
            self.was_up = true;
        }
        if self.up {
            self.reaches.clone_from(&answer.reaches);
        }
        if answer.more {
            self.length = (self.length * 2).min(LONG_BYTES);
        }
    }

    /// Whether it was up when [`Self::take_news`] was asked last.
    pub(crate) fn told_up(&self) -> bool {
        self.told.up
    }

    /// Whether datagrams of this path left one by one when [`Self::take_news`] was asked last.
    pub(crate) fn told_unsegmented(&self) -> bool {
        self.told.unsegmented
    }

    /// Whether something that others act on has changed since this was asked last.
    pub(crate) fn take_news(&mut self) -> bool {
        let path_mtu = self.mtu.as_ref().and_then(MtuSearch::found);
        let (up, reaches, unsegmented) = (self.up, self.reaches.clone(), self.trains.unsegmented());
        let now = Told { up, reaches, path_mtu, unsegmented };
        let changed = now != self.told;
        self.told = now;
        changed
    }

    /// What is known.
    pub(crate) fn state(&self) -> ProbeState {
        ProbeState {
            up: self.up,
            rtt_us: self.round_trip.map(|took| u32::try_from(took.as_micros()).unwrap_or(u32::MAX)),
            loss_percent: self.loss_percent(),
            path_mtu: self.mtu.as_ref().and_then(MtuSearch::found),
            reaches: self.reaches.clone(),
            unsegmented: self.trains.unsegmented(),
        }
    }

    fn loss_percent(&self) -> u8 {
        let counted = self.sent.len().saturating_sub(PENDING);
        if counted == 0 {
            return 0;
        }
        let lost = self.sent.iter().take(counted).filter(|sent| !sent.answered).count();
        (lost * 100 / counted) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> Probe {
        Probe {
            target: "10.2.0.0:51821".parse().unwrap(),
            source: None,
            device: None,
            interval_ms: 250,
            down_after: 3,
            mtu_max: None,
        }
    }

    fn answer(header: Header) -> Answer {
        Answer { header, reaches: ["west".to_owned()].into(), more: false }
    }

    /// Sends `count` probes, answering those that `answers` says.
    fn drive(path: &mut Path, now: &mut Instant, count: usize, answers: impl Fn(usize) -> bool) {
        for number in 0..count {
            *now = path.next_at();
            let (header, _) = path.poll(*now, || number as u64).unwrap();
            if answers(number) {
                path.answered(&answer(header), 0, *now + Duration::from_millis(2));
            }
        }
    }

    #[test]
    fn a_path_is_up_with_its_first_answer_and_down_within_a_second_of_silence() {
        let mut now = Instant::now();
        let mut path = Path::new(&probe(), now);
        drive(&mut path, &mut now, 1, |_| true);
        assert!(path.is_up());
        let silent_from = now;
        while path.is_up() {
            drive(&mut path, &mut now, 1, |_| false);
        }
        assert!(now - silent_from <= Duration::from_secs(1), "down after {:?}", now - silent_from);
        assert!(path.state().reaches.is_empty());
    }

    #[test]
    fn one_answer_does_not_raise_a_path_that_was_down_two_do() {
        let mut now = Instant::now();
        let mut path = Path::new(&probe(), now);
        drive(&mut path, &mut now, 6, |number| number == 0);
        drive(&mut path, &mut now, 2, |number| number == 0);
        assert!(!path.is_up());
        drive(&mut path, &mut now, 2, |_| true);
        assert!(path.is_up());
    }

    #[test]
    fn a_long_path_whose_answers_come_after_the_next_probe_stays_up() {
        let mut now = Instant::now();
        let mut path = Path::new(&probe(), now);
        let mut waiting = VecDeque::new();
        for number in 0..40 {
            now = path.next_at();
            waiting.push_back(path.poll(now, || number).unwrap().0);
            if waiting.len() > 2 {
                path.answered(&answer(waiting.pop_front().unwrap()), 0, now + Duration::from_millis(100));
            }
            assert!(number < 3 || path.is_up(), "down at {number}");
        }
        assert_eq!(path.state().loss_percent, 0);
    }

    #[test]
    fn an_answer_with_a_wrong_nonce_counts_for_nothing() {
        let now = Instant::now();
        let mut path = Path::new(&probe(), now);
        let (header, _) = path.poll(now, || 5).unwrap();
        path.answered(&answer(Header { nonce: 6, ..header }), 0, now);
        assert!(!path.is_up());
    }

    #[test]
    fn loss_and_round_trip_are_those_of_the_last_hundred() {
        let mut now = Instant::now();
        let mut path = Path::new(&probe(), now);
        drive(&mut path, &mut now, 50, |_| false);
        drive(&mut path, &mut now, 104, |number| number % 4 != 0);
        let state = path.state();
        assert_eq!((state.loss_percent, state.rtt_us), (25, Some(2000)));
    }

    #[test]
    fn probes_grow_while_the_answers_have_more_names_than_room() {
        let now = Instant::now();
        let mut path = Path::new(&probe(), now);
        let (header, first) = path.poll(now, || 1).unwrap();
        path.answered(&Answer { more: true, ..answer(header) }, 0, now);
        let (_, second) = path.poll(now + Duration::from_secs(1), || 2).unwrap();
        assert_eq!((first, second), (128, 256));
    }

    #[test]
    fn a_path_that_was_up_stays_so_until_as_many_probes_as_ever_are_unanswered() {
        let start = Instant::now();
        let reaches = BTreeSet::from(["west".to_owned()]);
        let known = ProbeState { up: true, path_mtu: Some(1380), reaches, ..ProbeState::default() };
        let probe = Probe { mtu_max: Some(1420), ..probe() };
        let mut path = Path::known(&probe, &known, start);
        assert_eq!(path.state(), known);
        assert!(!path.take_news(), "nothing that was not told before");
        let downs = (0..4).map(|turn| {
            path.poll(start + probe_interval() * turn, || 1);
            path.is_up()
        });
        assert_eq!(downs.collect::<Vec<_>>(), [true, true, true, false]);
        assert!(path.take_news());
        let wide = ProbeState { path_mtu: Some(9000), ..known };
        assert_eq!(Path::known(&probe, &wide, start).state().path_mtu, None, "more than may be looked for");
    }

    fn probe_interval() -> Duration {
        Duration::from_millis(probe().interval_ms.into())
    }
}
