// SPDX-License-Identifier: Apache-2.0
//! Where the threads post what they measured, and where reporters wait for news.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_model::dataplane::{DataplaneState, KeySlot, LaneKeys, ProbeState, TunnelState, WireGuardMode};
use isthmus_model::ids::LinkName;

/// Reports are at least this far apart.
const REPORT_GAP: Duration = Duration::from_millis(100);
/// Quantities (bytes, round trips, loss) alone are reported this often.
const QUANTITIES_EVERY: Duration = Duration::from_secs(2);

/// What runs, as last posted.
pub(crate) struct Board {
    posted: Mutex<Posted>,
    news: Condvar,
}

#[derive(Clone, Default)]
struct Posted {
    state: DataplaneState,
    /// Grows with everything that the agent acts on.
    facts: u64,
    /// Grows with every change.
    quantities: u64,
}

/// What a reporter has told its agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    facts: u64,
    quantities: u64,
    at: Instant,
}

/// What is told of our keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnKeys {
    /// The node's own, which are those of its first lane.
    pub(crate) node: LaneKeys,
    /// Those of every lane.
    pub(crate) lanes: Vec<LaneKeys>,
    pub(crate) slot: KeySlot,
    pub(crate) generation: u64,
}

impl Board {
    pub(crate) fn new(keys: OwnKeys, mode: WireGuardMode) -> Self {
        let state = DataplaneState { mode, ..DataplaneState::default() };
        let board = Self { posted: Mutex::new(Posted { state, ..Posted::default() }), news: Condvar::new() };
        board.post_keys(keys);
        board
    }

    pub(crate) fn post_keys(&self, keys: OwnKeys) {
        self.post(|state| {
            let told = |state: &DataplaneState| {
                let keys = [&state.public_key, &state.previous_public_key, &state.next_public_key];
                (keys.map(Clone::clone), state.lanes.clone(), state.key_slot, state.key_generation)
            };
            let before = told(state);
            (state.key_slot, state.key_generation, state.lanes) = (keys.slot, keys.generation, keys.lanes);
            let LaneKeys { public_key, previous_public_key, next_public_key } = keys.node;
            state.public_key = Some(public_key);
            (state.previous_public_key, state.next_public_key) = (previous_public_key, next_public_key);
            told(state) != before
        });
    }

    /// What of the kernel's features is in use.
    pub(crate) fn post_offload(&self, offload: BTreeSet<String>) {
        self.post(|state| std::mem::replace(&mut state.offload, offload) != state.offload);
    }

    /// Who encrypts.
    pub(crate) fn mode(&self) -> WireGuardMode {
        self.lock().state.mode
    }

    /// What probes measured last.
    pub(crate) fn probes(&self) -> BTreeMap<String, ProbeState> {
        self.lock().state.probes.clone()
    }

    pub(crate) fn post_tunnels(&self, tunnels: BTreeMap<LinkName, TunnelState>) {
        self.post(|state| {
            let acted_on = |tunnels: &BTreeMap<LinkName, TunnelState>| -> Vec<_> {
                tunnels
                    .iter()
                    .map(|(n, t)| (n.clone(), t.endpoint, t.listen_port, t.last_handshake_s.is_some()))
                    .collect()
            };
            let changed = acted_on(&state.tunnels) != acted_on(&tunnels);
            state.tunnels = tunnels;
            changed
        });
    }

    pub(crate) fn post_probes(&self, probes: BTreeMap<String, ProbeState>) {
        self.post(|state| {
            let acted_on = |probes: &BTreeMap<String, ProbeState>| -> Vec<_> {
                probes.iter().map(|(n, p)| (n.clone(), p.up, p.path_mtu, p.reaches.clone())).collect()
            };
            let changed = acted_on(&state.probes) != acted_on(&probes);
            state.probes = probes;
            changed
        });
    }

    /// Has every reporter tell the state, changed or not.
    pub(crate) fn ask_for_report(&self) {
        self.post(|_| true);
    }

    /// Waits until there is something to tell: at once what the agent acts on, at intervals what it only shows.
    /// `None` after some seconds without news, so that the caller can see whether anybody still listens.
    pub(crate) fn wait(&self, told: Option<Told>) -> Option<(DataplaneState, Told)> {
        let mut posted = self.lock();
        if let Some(told) = told {
            loop {
                let since = told.at.elapsed();
                let urgent = posted.facts != told.facts && since >= REPORT_GAP;
                let usual = posted.quantities != told.quantities && since >= QUANTITIES_EVERY;
                if urgent || usual {
                    break;
                }
                if since >= QUANTITIES_EVERY * 2 {
                    return None;
                }
                let until = if posted.facts != told.facts { REPORT_GAP } else { QUANTITIES_EVERY * 2 };
                let until =
                    if posted.quantities != told.quantities { until.min(QUANTITIES_EVERY) } else { until };
                let wait = until.saturating_sub(since).max(Duration::from_millis(1));
                posted = self.news.wait_timeout(posted, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        let told = Told { facts: posted.facts, quantities: posted.quantities, at: Instant::now() };
        Some((posted.state.clone(), told))
    }

    fn post(&self, change: impl FnOnce(&mut DataplaneState) -> bool) {
        let mut posted = self.lock();
        if change(&mut posted.state) {
            posted.facts += 1;
            self.news.notify_all();
        }
        posted.quantities += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn probes(up: bool, rtt_us: u32) -> BTreeMap<String, ProbeState> {
        BTreeMap::from([("p".to_owned(), ProbeState { up, rtt_us: Some(rtt_us), ..ProbeState::default() })])
    }

    #[test]
    fn a_path_that_goes_down_is_told_within_the_gap_and_a_round_trip_is_not() {
        let node = LaneKeys { public_key: "k".into(), ..LaneKeys::default() };
        let keys = OwnKeys { lanes: vec![node.clone()], node, slot: KeySlot::First, generation: 0 };
        let board = Arc::new(Board::new(keys, WireGuardMode::Userspace));
        board.post_probes(probes(true, 5));
        let (_, told) = board.wait(None).unwrap();
        let started = Instant::now();
        let poster = Arc::clone(&board);
        let posts = std::thread::spawn(move || {
            poster.post_probes(probes(true, 6));
            poster.post_probes(probes(false, 7));
        });
        let (state, _) = board.wait(Some(told)).unwrap();
        posts.join().unwrap();
        assert!(!state.probes["p"].up);
        assert!(started.elapsed() < QUANTITIES_EVERY, "told after {:?}", started.elapsed());
    }
}
