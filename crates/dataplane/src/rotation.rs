// SPDX-License-Identifier: Apache-2.0
//! How a node's key rotates without a packet lost.
//!
//! A device of the kernel has one key, and takes a source from one of its peers only. So both sides have a second device for a
//! while, whoever encrypts:
//! 1. *Introducing*: tunnels with the next key come up beside those with the present one, and carry traffic with them.
//! 2. *Draining*: once they lead wherever the others lead, the next key becomes the present one. We send by its tunnels
//!    alone and announce no other. The old ones go on receiving.
//! 3. Once nothing comes by the old ones any more, their key is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use isthmus_model::dataplane::{DataplaneConfig, KeySlot, ProbeState, TunnelState};
use isthmus_model::ids::LinkName;

use crate::keys::{KeyError, KeyStore};

/// Time for the first probes of a process that has just started, and for peers to measure the tunnels that were just made.
const INTRODUCE_AT_LEAST: Duration = Duration::from_secs(10);
/// Nobody sends by the old tunnels any more when they have been silent for so long. A peer that has one probes it four
/// times a second.
const SILENT_FOR: Duration = Duration::from_secs(10);
/// A peer that has not heard for so long that a key is gone finds out by its probes.
const DRAIN_AT_MOST: Duration = Duration::from_secs(300);

const ROTATES_ALREADY: &str =
    "the last rotation is not over: peers still use the key before, or have not met the new one";

/// The keys of a node and how far their rotation is.
pub(crate) struct Rotation {
    keys: KeyStore,
    phase: Phase,
    /// There was a configuration: before it nobody can say whom the present key reaches.
    configured: bool,
}

impl Rotation {
    /// With what an earlier process left of a rotation.
    pub(crate) fn new(keys: KeyStore, now: Instant) -> Self {
        let phase = match (keys.next(), keys.previous()) {
            (_, Some(_)) => Phase::draining(now),
            (Some(_), None) => Phase::introducing(now),
            (None, None) => Phase::Settled,
        };
        Self { keys, phase, configured: false }
    }

    pub(crate) fn keys(&self) -> &KeyStore {
        &self.keys
    }

    /// Makes the next key. What prevents it is said.
    pub(crate) fn begin(&mut self, now: Instant) -> Vec<String> {
        if self.phase != Phase::Settled {
            return vec![ROTATES_ALREADY.to_owned()];
        }
        match self.keys.make_next() {
            Ok(next) => {
                tracing::info!(public_key = %next.public(), "new key made; tunnels with it come up beside the others");
                self.phase = Phase::introducing(now);
                Vec::new()
            }
            Err(error) => vec![error.to_string()],
        }
    }

    /// There is a configuration. With the first one, time for its probes begins.
    pub(crate) fn configured(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.configured, true) && matches!(self.phase, Phase::Introducing { .. }) {
            self.phase = Phase::introducing(now);
        }
    }

    /// Goes on with a rotation, or begins one that the configuration asks for. True when there are other keys than before.
    pub(crate) fn step(
        &mut self,
        config: &DataplaneConfig,
        tunnels: &BTreeMap<LinkName, TunnelState>,
        probes: &BTreeMap<String, ProbeState>,
        now: Instant,
    ) -> bool {
        if !self.configured {
            return false;
        }
        let outcome = match self.phase {
            Phase::Settled if config.key_generation > self.keys.generation() => {
                for failure in self.begin(now) {
                    tracing::error!(failure, "the key cannot be rotated");
                }
                return self.phase != Phase::Settled;
            }
            Phase::Introducing { .. } if self.phase.may_switch(config, probes, self.keys.slot(), now) => {
                self.switch(config, now)
            }
            Phase::Draining { .. } => {
                let old = self.keys.slot().other();
                let with_it = config.tunnels.iter().filter(|(_, tunnel)| tunnel.key_slot == old);
                let received = with_it.filter_map(|(name, _)| Some(tunnels.get(name)?.received_bytes)).sum();
                if !self.phase.is_drained(received, now) {
                    return false;
                }
                self.forget()
            }
            _ => return false,
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, "the key's rotation cannot go on");
        }
        outcome.is_ok()
    }

    fn switch(&mut self, config: &DataplaneConfig, now: Instant) -> Result<(), KeyError> {
        let generation = config.key_generation.max(self.keys.generation());
        self.keys.switch(generation)?;
        self.phase = Phase::draining(now);
        tracing::info!(public_key = %self.keys.present().public(), generation, "new key in use");
        Ok(())
    }

    fn forget(&mut self) -> Result<(), KeyError> {
        self.keys.forget_previous()?;
        self.phase = Phase::Settled;
        tracing::info!("the key before is gone: nobody sends to it any more");
        Ok(())
    }
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is one key.
    Settled,
    /// There is a next key.
    Introducing {
        /// Since when this process knows.
        since: Instant,
    },
    /// There is a previous key.
    Draining {
        since: Instant,
        /// Bytes received by its tunnels, and when that changed last.
        heard: (u64, Instant),
    },
}

impl Phase {
    fn introducing(now: Instant) -> Self {
        Self::Introducing { since: now }
    }

    fn draining(now: Instant) -> Self {
        Self::Draining { since: now, heard: (0, now) }
    }

    /// Whether the next key can become the present one.
    fn may_switch(
        &self,
        config: &DataplaneConfig,
        probes: &BTreeMap<String, ProbeState>,
        present: KeySlot,
        now: Instant,
    ) -> bool {
        match self {
            Self::Introducing { since } => {
                now.duration_since(*since) >= INTRODUCE_AT_LEAST
                    && leads_wherever_the_other_leads(config, probes, present)
            }
            _ => false,
        }
    }

    /// Whether nobody needs the previous key. `received` are the bytes that its tunnels have received since they were made.
    fn is_drained(&mut self, received: u64, now: Instant) -> bool {
        let Self::Draining { since, heard } = self else { return false };
        if heard.0 != received {
            *heard = (received, now);
        }
        now.duration_since(heard.1) >= SILENT_FOR || now.duration_since(*since) >= DRAIN_AT_MOST
    }
}

/// Whether every remote gateway, and lane of one, that a lane's present key reaches is reached by its next one too, and over a path whose
/// size is known if that was known before.
fn leads_wherever_the_other_leads(
    config: &DataplaneConfig,
    probes: &BTreeMap<String, ProbeState>,
    present: KeySlot,
) -> bool {
    let reached = |slot: KeySlot| -> BTreeSet<(u8, &str, bool)> {
        let paths = config.probes.iter().filter_map(|(name, probe)| {
            let tunnel = config.tunnels.get(probe.device.as_ref()?)?;
            let state = probes.get(name).filter(|state| state.up && tunnel.key_slot == slot)?;
            Some((tunnel.lane, tunnel.peer_key.as_str(), state.path_mtu.is_some()))
        });
        paths.collect()
    };
    let next = reached(present.other());
    let as_good = |(lane, key, sized): &(u8, &str, bool)| {
        next.contains(&(*lane, *key, true)) || (!sized && next.contains(&(*lane, *key, false)))
    };
    reached(present).iter().all(as_good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_model::dataplane::{Probe, Tunnel};

    const PRESENT: KeySlot = KeySlot::First;

    /// Tunnels to these gateways: slot of our key, the gateway's key, whether its probe is up and whether it knows the size.
    fn tunnels(of: &[(KeySlot, &str, bool, bool)]) -> (DataplaneConfig, BTreeMap<String, ProbeState>) {
        let (mut config, mut states) = (DataplaneConfig::default(), BTreeMap::new());
        for (number, (key_slot, peer_key, up, sized)) in of.iter().enumerate() {
            let device: isthmus_model::ids::LinkName = format!("iw-{number:012x}").parse().unwrap();
            let tunnel = Tunnel {
                peer: "west".parse().unwrap(),
                peer_key: (*peer_key).to_owned(),
                endpoint: None,
                allowed: BTreeSet::new(),
                keepalive_s: 0,
                key_slot: *key_slot,
                lane: 0,
            };
            let probe = Probe {
                target: "10.2.0.0:51821".parse().unwrap(),
                source: None,
                device: Some(device.clone()),
                interval_ms: 250,
                down_after: 3,
                mtu_max: None,
            };
            config.tunnels.insert(device.clone(), tunnel);
            config.probes.insert(device.to_string(), probe);
            let path_mtu = sized.then_some(1420);
            states.insert(device.to_string(), ProbeState { up: *up, path_mtu, ..ProbeState::default() });
        }
        (config, states)
    }

    fn switches(of: &[(KeySlot, &str, bool, bool)], after_s: u64) -> bool {
        let (config, states) = tunnels(of);
        let start = Instant::now();
        Phase::introducing(start).may_switch(&config, &states, PRESENT, start + Duration::from_secs(after_s))
    }

    #[test]
    fn the_next_key_takes_over_once_it_reaches_all_that_the_present_one_reaches() {
        use KeySlot::{First, Second};
        let both = [(First, "g0", true, true), (Second, "g0", true, true), (First, "g1", false, false)];
        assert!(switches(&both, 11));
        assert!(!switches(&both, 9), "probes of tunnels that were just made have said nothing yet");
        assert!(!switches(&[(First, "g0", true, true)], 60), "peers have not heard of it");
        assert!(!switches(&[(First, "g0", true, true), (Second, "g1", true, true)], 60));
        assert!(!switches(&[(First, "g0", true, true), (Second, "g0", false, false)], 60));
        assert!(
            !switches(&[(First, "g0", true, true), (Second, "g0", true, false)], 60),
            "its size is unknown"
        );
        assert!(switches(&[(First, "g0", true, false), (Second, "g0", true, false)], 60));
        assert!(switches(&[], 11), "a node without tunnels needs nobody's leave");
    }

    #[test]
    fn a_lane_that_does_not_lead_there_yet_holds_the_next_key_up_though_another_does() {
        use KeySlot::{First, Second};
        let of = [(First, "g", true, true), (First, "g", true, true), (Second, "g", true, true)];
        let with_second_lane = |second_lane_too: bool| {
            let (mut config, mut states) =
                tunnels(&[&of[..], &[(Second, "g", second_lane_too, true)]].concat());
            // The second and the fourth are those of the second lane.
            config.tunnels.values_mut().skip(1).step_by(2).for_each(|tunnel| tunnel.lane = 1);
            states.values_mut().for_each(|state| state.path_mtu = Some(1420));
            let start = Instant::now();
            Phase::introducing(start).may_switch(&config, &states, PRESENT, start + Duration::from_secs(11))
        };
        assert!(!with_second_lane(false) && with_second_lane(true));
    }

    #[test]
    fn a_process_that_starts_in_a_rotation_waits_for_its_configuration_and_then_for_the_probes() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = KeyStore::open(dir.path()).unwrap();
        let next = keys.make_next().unwrap().public();
        let start = Instant::now();
        let mut rotation = Rotation::new(keys, start);
        let config = DataplaneConfig { key_generation: 1, ..DataplaneConfig::default() };
        let step = |rotation: &mut Rotation, second| {
            let now = start + Duration::from_secs(second);
            rotation.step(&config, &BTreeMap::new(), &BTreeMap::new(), now)
        };
        assert!(!step(&mut rotation, 60), "nobody has said whom the present key reaches");
        rotation.configured(start + Duration::from_secs(60));
        assert!(!step(&mut rotation, 69), "no probe can have come back yet");
        assert!(step(&mut rotation, 70));
        assert_eq!((rotation.keys().present().public(), rotation.keys().generation()), (next, 1));
    }

    #[test]
    fn the_previous_key_goes_once_its_tunnels_are_silent_and_at_the_latest_after_five_minutes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut phase = Phase::draining(start);
        assert!(!phase.is_drained(500, at(1)));
        assert!(!phase.is_drained(900, at(9)));
        assert!(!phase.is_drained(900, at(18)));
        assert!(phase.is_drained(900, at(19)));
        let mut never_silent = Phase::draining(start);
        assert!((1..300).all(|second| !never_silent.is_drained(second, at(second))));
        assert!(never_silent.is_drained(300, at(300)));
        assert!(!Phase::Settled.is_drained(0, at(900)));
    }
}
