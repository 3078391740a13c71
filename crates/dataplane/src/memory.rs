// SPDX-License-Identifier: Apache-2.0
//! What a worker acts on and has found out, as its parent keeps it for the next one: in a file without a name, that lives in memory.
//! The parent never reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use isthmus_model::dataplane::{DataplaneConfig, ProbeState, TunnelState, WireGuardMode};
use isthmus_model::ids::LinkName;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::kept::{KeptName, Parent};

/// Longer than any: a configuration has one MiB at most, what is found out of it is less.
const MAX_BYTES: u64 = 4 << 20;

/// Everything of a worker that the next one cannot find out at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    /// As the agent told it last.
    pub(crate) config: DataplaneConfig,
    /// Who encrypts.
    pub(crate) mode: WireGuardMode,
    /// Where the peers are, roamed or not.
    pub(crate) endpoints: BTreeMap<LinkName, SocketAddr>,
    /// Tunnels that have a session.
    pub(crate) live: BTreeSet<LinkName>,
    /// Which half of the session indices the engine has: the upper one.
    pub(crate) upper: bool,
    /// What the agent acts on: paths are up until probes say otherwise.
    pub(crate) probes: BTreeMap<String, ProbeState>,
}

impl Memory {
    pub(crate) fn new(
        config: &DataplaneConfig,
        tunnels: &BTreeMap<LinkName, TunnelState>,
        probes: BTreeMap<String, ProbeState>,
    ) -> Self {
        let endpoints = tunnels.iter().filter_map(|(name, state)| Some((name.clone(), state.endpoint?)));
        let probes = probes.into_iter().filter(|(name, _)| config.probes.contains_key(name));
        // Quantities change all the time, and are soon measured again.
        let facts = probes.map(|(name, state)| (name, ProbeState { rtt_us: None, loss_percent: 0, ..state }));
        let live = tunnels.iter().filter(|(_, state)| state.last_handshake_s.is_some());
        Self {
            config: config.clone(),
            endpoints: endpoints.collect(),
            live: live.map(|(name, _)| name.clone()).collect(),
            probes: facts.collect(),
            ..Self::default()
        }
    }

    /// Tunnels as they are told until they are measured: without it an agent would think that there are none.
    pub(crate) fn tunnels(&self) -> BTreeMap<LinkName, TunnelState> {
        let tunnels = self.config.tunnels.keys().map(|name| {
            let endpoint = self.endpoints.get(name).copied();
            (name.clone(), TunnelState { endpoint, ..TunnelState::default() })
        });
        tunnels.collect()
    }

    pub(crate) fn write(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create(c"isthmus-dataplane", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        Ok(file)
    }

    pub(crate) fn read(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let length = file.metadata()?.len();
        if length > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what was remembered exceeds 4 MiB"));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        // Not from where it was written last: that place is the same for all who have the file.
        file.read_exact_at(&mut bytes, 0)?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }
}

/// Has the parent keep what changed.
pub(crate) struct Scribe {
    parent: Parent,
    told: Option<Memory>,
}

impl Scribe {
    pub(crate) fn new(parent: Parent) -> Self {
        Self { parent, told: None }
    }

    pub(crate) fn note(&mut self, memory: Memory) {
        if self.told.as_ref() == Some(&memory) {
            return;
        }
        match memory.write() {
            Ok(file) => self.parent.keep(KeptName::memory(), &file),
            Err(error) => tracing::warn!(%error, "what runs is not remembered"),
        }
        self.told = Some(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_read_again_however_often() {
        let name: LinkName = "iw-0123456789ab".parse().unwrap();
        let tunnel = TunnelState { endpoint: Some("192.0.2.1:7".parse().unwrap()), ..TunnelState::default() };
        let config = DataplaneConfig { gateway: true, listen_port: 51820, ..DataplaneConfig::default() };
        let probe = ProbeState { up: true, rtt_us: Some(9), ..ProbeState::default() };
        let memory = Memory::new(&config, &[(name, tunnel)].into(), [("gone".to_owned(), probe)].into());
        assert!(memory.probes.is_empty(), "of no probe that is configured");
        let file = memory.write().unwrap();
        for _ in 0..2 {
            assert_eq!(Memory::read(file.try_clone().unwrap().into()).unwrap(), memory);
        }
    }

    #[test]
    fn something_else_is_not_taken_for_a_memory() {
        let other = memfd_create(c"other", MFdFlags::MFD_CLOEXEC).unwrap();
        let mut file = File::from(other.try_clone().unwrap());
        assert!(Memory::read(other.try_clone().unwrap()).is_err());
        file.write_all(b"{\"config\":").unwrap();
        assert!(Memory::read(other.try_clone().unwrap()).is_err());
        file.set_len(MAX_BYTES + 1).unwrap();
        assert!(Memory::read(other).is_err());
    }
}
