// SPDX-License-Identifier: Apache-2.0
//! The thread that carries packets between the tunnel devices and the WireGuard port. It owns the engine: no packet takes a lock.
//! What it carries is [`Carrier`]'s; here is what it carries, and what is told of it.

pub(crate) mod devices;
mod inherited;
mod role;
mod thread;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use isthmus_model::dataplane::{DataplaneConfig, KeySlot, TunnelState};
use isthmus_model::ids::LinkName;
use isthmus_wg::{DeviceId, Engine, Half, PrivateKey};
use isthmus_wg_device::{Carrier, bell};

use crate::board::Board;
use crate::kept::KeptName;
use crate::keys::KeyStore;
use crate::memory::{Memory, Scribe};
use crate::rotation::Rotation;
use devices::Devices;
use role::Role;

pub(crate) use inherited::Inherited;
pub(crate) use thread::{BEING_REPLACED, Command, PacketThread};

/// How often what was measured is posted.
const POST_EVERY: Duration = Duration::from_millis(500);
/// How often a device or port that cannot be opened is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// What the thread starts with, whoever encrypts.
pub(crate) struct Start {
    pub(crate) keys: KeyStore,
    pub(crate) board: Arc<Board>,
    pub(crate) scribe: Scribe,
    /// Of a worker before this one.
    pub(crate) memory: Option<Memory>,
    /// That worker still carries: something is sent here once this one does.
    pub(crate) carries: Option<Sender<()>>,
}

/// Starts the thread, with the tunnels that are remembered.
///
/// # Errors
/// No descriptors or threads left.
pub(crate) fn start(start: Start, inherited: Inherited) -> io::Result<PacketThread> {
    let (commands, commanded) = channel();
    let (bell, ear) = bell()?;
    let mut first_index = [0; 4];
    getrandom::fill(&mut first_index).map_err(|error| io::Error::other(error.to_string()))?;
    let now = Instant::now();
    // Another half than that of the worker before: it may still carry.
    let half = match &start.memory {
        Some(memory) if !memory.upper => Half::Upper,
        _ => Half::Lower,
    };
    let mut engine = Engine::in_half(half, u32::from_le_bytes(first_index), now);
    engine.set_keys(owned(&start.keys));
    let mut packets = Packets {
        rotation: Rotation::new(start.keys, now),
        config: DataplaneConfig::default(),
        carrier: Carrier::new(engine, ear)?,
        half,
        role: Role::Carrying,
        board: start.board,
        scribe: start.scribe,
        commanded,
        wanted_port: None,
        devices: Devices::new(inherited),
        told_handshakes: BTreeMap::new(),
        next_post: now,
        next_retry: now,
    };
    if let (Some(memory), Some(carries)) = (&start.memory, start.carries) {
        packets.wait_to_carry(memory.live.clone(), carries, now)?;
    }
    let run = move || {
        if let Some(memory) = start.memory {
            packets.resume(memory);
        }
        packets.run();
    };
    std::thread::Builder::new().name("packets".into()).spawn(run)?;
    Ok(PacketThread::new(commands, bell))
}

struct Packets {
    rotation: Rotation,
    /// As it was told last.
    config: DataplaneConfig,
    carrier: Carrier,
    /// Of the indices of sessions.
    half: Half,
    role: Role,
    board: Arc<Board>,
    scribe: Scribe,
    commanded: Receiver<Command>,
    wanted_port: Option<u16>,
    devices: Devices,
    told_handshakes: BTreeMap<LinkName, u64>,
    next_post: Instant,
    next_retry: Instant,
}

impl Packets {
    fn run(mut self) {
        loop {
            let mut until = self.next_post;
            if self.devices.missing(&self.carrier) || self.misses_port() {
                until = until.min(self.next_retry);
            }
            let heard = self.carrier.turn(self.role.until(until));
            if heard.bell {
                self.obey();
            }
            for id in heard.deleted {
                self.devices.lost(&mut self.carrier, id);
            }
            let now = Instant::now();
            self.play_role(heard.relay_ended, now);
            if now >= self.next_retry {
                self.next_retry = now + RETRY_EVERY;
                if self.role.decides() {
                    self.devices.reopen(&mut self.carrier);
                    let _ = self.open_port();
                }
            }
            if now >= self.next_post {
                self.next_post = now + POST_EVERY;
                let tunnels = self.post();
                let keys_changed = self.role.decides()
                    && self.rotation.step(&self.config, &tunnels, &self.board.probes(), now);
                if keys_changed {
                    self.carrier.engine.set_keys(owned(self.rotation.keys()));
                    self.post();
                }
            }
        }
    }

    /// Goes on with what the worker before ran, and asks every peer for a session where it was last.
    fn resume(&mut self, memory: Memory) {
        for failure in self.configure(memory.config) {
            tracing::warn!(failure, "not all goes on");
        }
        for (name, endpoint) in memory.endpoints {
            self.carrier.engine.move_tunnel(&name, endpoint);
        }
    }

    fn memory(&self, tunnels: &BTreeMap<LinkName, TunnelState>) -> Memory {
        let memory = Memory::new(&self.config, tunnels, self.board.probes());
        Memory { upper: self.half == Half::Upper, ..memory }
    }

    fn misses_port(&self) -> bool {
        self.carrier.port().is_none() && self.wanted_port.is_some()
    }

    fn obey(&mut self) {
        self.carrier.hush();
        while let Ok(command) = self.commanded.try_recv() {
            let (failures, answer) = match command {
                Command::Configure(_, answer) | Command::RotateKey(answer) if !self.role.obeys() => {
                    (vec![BEING_REPLACED.to_owned()], answer)
                }
                Command::Configure(config, answer) => (self.configure(*config), answer),
                Command::RotateKey(answer) => (self.rotate_key(), answer),
                Command::Retire(answer) => {
                    // Whoever asked waits for it, and tells this thread what to do next.
                    let _ = answer.send(self.retire());
                    continue;
                }
                Command::Resume => {
                    self.resume_carrying();
                    continue;
                }
                Command::StepBack(drained) => {
                    self.step_back(drained, Instant::now());
                    continue;
                }
            };
            self.post();
            // Whoever asked may have gone; what it asked for is done.
            let _ = answer.send(failures);
        }
    }

    fn configure(&mut self, config: DataplaneConfig) -> Vec<String> {
        let mut failures = Vec::new();
        let none = BTreeMap::new();
        let tunnels = if config.gateway { &config.tunnels } else { &none };
        if !config.gateway && !config.tunnels.is_empty() {
            failures.push("tunnels were given to a node that is no gateway; none of them runs".to_owned());
        }
        failures
            .extend(self.carrier.engine.configure(tunnels, Instant::now()).iter().map(ToString::to_string));
        let wanted: BTreeMap<DeviceId, LinkName> =
            self.carrier.engine.facts().into_iter().map(|(id, facts)| (id, facts.name)).collect();
        failures.extend(self.devices.serve(&mut self.carrier, wanted));
        let wanted_port = config.gateway.then_some(config.listen_port);
        if self.wanted_port != wanted_port {
            if let Some(port) = std::mem::replace(&mut self.wanted_port, wanted_port) {
                self.devices.inherited.parent.forget(KeptName::port(port));
            }
            failures.extend(self.carrier.set_port(None).err().map(|error| error.to_string()));
        }
        failures.extend(self.open_port().err());
        // Only now: the port is among what is kept.
        self.devices.sweep();
        self.config = config;
        self.rotation.configured(Instant::now());
        failures
    }

    fn open_port(&mut self) -> Result<(), String> {
        let Some(port) = self.wanted_port else { return Ok(()) };
        if self.carrier.port().is_none() {
            let opened =
                self.devices.inherited.port(port).and_then(|opened| self.carrier.set_port(Some(opened)));
            opened.map_err(|error| format!("cannot listen on UDP port {port}: {error}"))?;
            tracing::info!(port, "WireGuard port open");
        }
        Ok(())
    }

    fn rotate_key(&mut self) -> Vec<String> {
        let failures = self.rotation.begin(Instant::now());
        self.carrier.engine.set_keys(owned(self.rotation.keys()));
        failures
    }

    fn states(&self) -> BTreeMap<LinkName, TunnelState> {
        let unix_now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let states = self.carrier.engine.facts().into_values().map(|facts| {
            let state = TunnelState {
                endpoint: facts.endpoint,
                last_handshake_s: facts.since_handshake.map(|since| {
                    // Rounding must not make one handshake look like another.
                    let at = unix_now.saturating_sub(since).as_secs();
                    let told = self.told_handshakes.get(&facts.name).copied();
                    told.filter(|told| told.abs_diff(at) <= 1).unwrap_or(at)
                }),
                received_bytes: facts.received_bytes,
                sent_bytes: facts.sent_bytes,
                listen_port: None,
            };
            (facts.name, state)
        });
        states.collect()
    }

    /// Where the ends are to which segmented sends are lost.
    fn unsegmented(&self, tunnels: &BTreeMap<LinkName, TunnelState>) -> BTreeSet<SocketAddr> {
        let probes = self.board.probes();
        let lossy = self
            .config
            .probes
            .iter()
            .filter(|(name, _)| probes.get(*name).is_some_and(|probe| probe.unsegmented));
        lossy.filter_map(|(_, probe)| tunnels.get(probe.device.as_ref()?)?.endpoint).collect()
    }

    /// Tells what was counted and what keys there are.
    fn post(&mut self) -> BTreeMap<LinkName, TunnelState> {
        let drops = std::mem::take(&mut self.carrier.drops);
        if !drops.is_empty() {
            tracing::debug!(?drops, "dropped since the last post");
        }
        let states = self.states();
        let handshakes =
            states.iter().filter_map(|(name, state)| Some((name.clone(), state.last_handshake_s?)));
        let handshakes: BTreeMap<LinkName, u64> = handshakes.collect();
        for name in handshakes.keys().filter(|name| !self.told_handshakes.contains_key(*name)) {
            tracing::info!(tunnel = %name, endpoint = ?states[name].endpoint, "session begins");
        }
        for name in self.told_handshakes.keys().filter(|name| !handshakes.contains_key(*name)) {
            tracing::warn!(tunnel = %name, "session is over; a new one is asked for every 5 s");
        }
        self.told_handshakes = handshakes;
        // Before it is told: what an agent knows, the next worker does too.
        if self.role.obeys() {
            self.scribe.note(self.memory(&states));
        }
        self.carrier.send_singly(self.unsegmented(&states));
        self.board.post_tunnels(states.clone());
        let features = self.carrier.features();
        self.board.post_offload(features.iter().map(|feature| feature.name().to_owned()).collect());
        self.board.post_keys(self.rotation.keys().told());
        states
    }
}

/// The keys, for the engine.
fn owned(keys: &KeyStore) -> BTreeMap<KeySlot, PrivateKey> {
    keys.by_slot().into_iter().map(|(slot, key)| (slot, key.clone())).collect()
}
