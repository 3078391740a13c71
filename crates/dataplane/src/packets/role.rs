// SPDX-License-Identifier: Apache-2.0
//! Who carries while one worker takes over from another, as a lane of either sees it ([`crate::handover`]).

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use isthmus_model::ids::LinkName;
use isthmus_wg_device::{Begins, Relay};

use super::lane::Lane;
use crate::handover::{is_drained, may_take_over};
use crate::kept::{Kept, KeptName};

/// How often it is looked whether there is nothing left to do.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the lane is to do.
pub(super) enum Role {
    /// It carries.
    Carrying,
    /// The same lane of the worker before carries, until every lane of this one has a session wherever that has.
    Waiting { live: BTreeSet<LinkName>, since: Instant, other_is_gone: bool },
    /// It carries, and begins nothing: another worker takes over.
    Retired,
    /// Another worker carries. What comes under sessions of this one is opened. The sender is dropped when nothing comes any more.
    Leaving { since: Instant, relayed: u64, heard_at: Instant, drained: Option<Sender<()>> },
}

impl Role {
    /// Whether devices and port are its to open.
    pub(super) fn decides(&self) -> bool {
        matches!(self, Self::Carrying)
    }

    /// When to look at it again, at the latest.
    pub(super) fn until(&self, until: Instant) -> Instant {
        match self {
            Self::Carrying | Self::Waiting { .. } | Self::Retired => until,
            Self::Leaving { .. } => until.min(Instant::now() + LOOK_EVERY),
        }
    }
}

impl Lane {
    /// Leaves reading to the worker before.
    pub(super) fn wait_to_carry(&mut self, live: BTreeSet<LinkName>, now: Instant) -> io::Result<()> {
        self.carrier.set_reading(false)?;
        let relay = self.inherited.lock().relay(self.number);
        if let Some(relay) = relay {
            self.carrier.set_relay(Some(Relay::new(relay, self.half.other(), Begins::We)))?;
        }
        self.role = Role::Waiting { live, since: now, other_is_gone: false };
        Ok(())
    }

    /// Whether it can carry.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        let Role::Waiting { live, since, other_is_gone } = &self.role else { return true };
        let facts = self.carrier.engine.facts().into_values();
        let ready = facts.filter(|facts| facts.since_handshake.is_some()).map(|facts| facts.name).collect();
        *other_is_gone || may_take_over(live, &ready, now.duration_since(*since))
    }

    /// Reads from now on.
    pub(super) fn carry(&mut self) {
        if let Err(error) = self.carrier.set_reading(true) {
            // Without memory for it there is no way back either.
            tracing::error!(%error, "cannot wait for packets");
            std::process::abort();
        }
        self.role = Role::Carrying;
    }

    /// Has everything that is open handed over, and begins nothing any more.
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
        let mut kept = self.opened()?;
        let (ours, theirs) = Relay::ends()?;
        self.carrier.set_relay(Some(Relay::new(ours, self.half.other(), Begins::They)))?;
        kept.put(KeptName::relay(self.number), theirs);
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
        let (relayed, drained) = (self.carrier.relayed(), Some(drained));
        self.role = Role::Leaving { since: now, relayed, heard_at: now, drained };
    }

    /// Looks at what the other worker does, and whether something is left to be done.
    pub(super) fn play_role(&mut self, relay_ended: bool, now: Instant) {
        match &mut self.role {
            Role::Waiting { other_is_gone, .. } => *other_is_gone |= relay_ended,
            Role::Leaving { since, relayed, heard_at, drained } => {
                if *relayed != self.carrier.relayed() {
                    (*relayed, *heard_at) = (self.carrier.relayed(), now);
                }
                if relay_ended || is_drained(now.duration_since(*heard_at), now.duration_since(*since)) {
                    *drained = None;
                }
            }
            Role::Carrying | Role::Retired => {}
        }
    }
}
