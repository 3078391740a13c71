// SPDX-License-Identifier: Apache-2.0
//! Who carries while one worker takes over from another, as the packet thread of either sees it ([`crate::handover`]).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use isthmus_model::ids::LinkName;
use isthmus_wg_device::{Begins, Relay};

use super::Packets;
use crate::handover::{is_drained, may_take_over};
use crate::kept::{Kept, KeptName};

/// How often it is looked whether this worker can carry, or has nothing left to do.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the thread is to do.
pub(super) enum Role {
    /// It carries.
    Carrying,
    /// The worker before carries, until this one has a session wherever that has.
    Waiting { live: BTreeSet<LinkName>, since: Instant, carries: Sender<()> },
    /// It carries, and begins nothing: another worker takes over.
    Retired,
    /// Another worker carries. What comes under sessions of this one is opened.
    Leaving { since: Instant, relayed: u64, heard_at: Instant, drained: Sender<()> },
}

impl Role {
    /// Whether it does what an agent asks for, and its parent keeps what it remembers.
    pub(super) fn obeys(&self) -> bool {
        matches!(self, Self::Carrying | Self::Waiting { .. })
    }

    /// Whether keys are its to change, and devices and port its to open.
    pub(super) fn decides(&self) -> bool {
        matches!(self, Self::Carrying)
    }

    /// When to look at it again, at the latest.
    pub(super) fn until(&self, until: Instant) -> Instant {
        match self {
            Self::Carrying | Self::Retired => until,
            Self::Waiting { .. } | Self::Leaving { .. } => until.min(Instant::now() + LOOK_EVERY),
        }
    }
}

impl Packets {
    /// Leaves reading to the worker before, until this one can carry.
    pub(super) fn wait_to_carry(
        &mut self,
        live: BTreeSet<LinkName>,
        carries: Sender<()>,
        now: Instant,
    ) -> io::Result<()> {
        self.carrier.set_reading(false)?;
        if let Some(relay) = self.devices.inherited.kept.take(&KeptName::relay()) {
            self.carrier.set_relay(Some(Relay::new(relay, self.half.other(), Begins::We)))?;
        }
        self.role = Role::Waiting { live, since: now, carries };
        Ok(())
    }

    /// Has everything that is open handed over, and the rest of what the other one needs.
    pub(super) fn retire(&mut self) -> io::Result<Kept> {
        self.carrier.engine.retire(true);
        let kept = self.hand_over();
        match kept {
            Ok(_) => self.role = Role::Retired,
            Err(_) => self.resume_carrying(),
        }
        kept
    }

    fn hand_over(&mut self) -> io::Result<Kept> {
        let mut kept = Kept::default();
        for (name, tun) in self.devices.served(&self.carrier) {
            kept.put(KeptName::tun(name), tun.as_fd().try_clone_to_owned()?);
        }
        if let (Some(number), Some(port)) = (self.wanted_port, self.carrier.port()) {
            kept.put(KeptName::port(number), port.as_fd().try_clone_to_owned()?);
        }
        let memory = self.memory(&self.states()).write()?;
        kept.put(KeptName::memory(), memory.into());
        let (ours, theirs) = Relay::ends()?;
        self.carrier.set_relay(Some(Relay::new(ours, self.half.other(), Begins::They)))?;
        kept.put(KeptName::relay(), theirs);
        Ok(kept)
    }

    /// Nobody takes over after all.
    pub(super) fn resume_carrying(&mut self) {
        self.carrier.engine.retire(false);
        // Taking it away cannot fail.
        let _ = self.carrier.set_relay(None);
        self.role = Role::Carrying;
    }

    /// The other one reads from now on.
    pub(super) fn step_back(&mut self, drained: Sender<()>, now: Instant) {
        if let Err(error) = self.carrier.set_reading(false) {
            tracing::warn!(%error, "two workers read for a while");
        }
        self.role = Role::Leaving { since: now, relayed: self.carrier.relayed(), heard_at: now, drained };
    }

    /// Looks whether it is time for another role.
    pub(super) fn play_role(&mut self, other_is_gone: bool, now: Instant) {
        match &mut self.role {
            Role::Waiting { live, since, carries } => {
                let ready = self.carrier.engine.facts().into_values();
                let ready =
                    ready.filter(|facts| facts.since_handshake.is_some()).map(|facts| facts.name).collect();
                if !other_is_gone && !may_take_over(live, &ready, now.duration_since(*since)) {
                    return;
                }
                tracing::info!(sessions = ready.len(), took = ?now.duration_since(*since), "this worker carries");
                let carries = carries.clone();
                if let Err(error) = self.carrier.set_reading(true) {
                    // Without memory for it there is no way back either.
                    tracing::error!(%error, "cannot wait for packets");
                    std::process::abort();
                }
                self.role = Role::Carrying;
                // Whoever waits for it may have given up.
                let _ = carries.send(());
            }
            Role::Leaving { since, relayed, heard_at, drained } => {
                if *relayed != self.carrier.relayed() {
                    (*relayed, *heard_at) = (self.carrier.relayed(), now);
                }
                if other_is_gone || is_drained(now.duration_since(*heard_at), now.duration_since(*since)) {
                    let _ = drained.send(());
                }
            }
            Role::Carrying | Role::Retired => {}
        }
    }
}
