// SPDX-License-Identifier: Apache-2.0
//! The thread that carries packets between the tunnel devices and the WireGuard port. It owns the engine: no packet takes a lock.
//! What it carries is [`Carrier`]'s; here is what it carries, and what is told of it.

pub(crate) mod devices;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use isthmus_model::dataplane::{DataplaneConfig, KeySlot, TunnelState};
use isthmus_model::ids::LinkName;
use isthmus_packet_io::{Lifetime, Tun, UdpPort};
use isthmus_wg::{DeviceId, Engine, PrivateKey};
use isthmus_wg_device::{Bell, Carrier, bell};

use crate::board::Board;
use crate::kept::{Kept, KeptName, Parent};
use crate::keys::KeyStore;
use crate::memory::{Memory, Scribe};
use crate::rotation::Rotation;
use devices::Devices;

/// How often what was measured is posted.
const POST_EVERY: Duration = Duration::from_millis(500);
/// How often a device or port that cannot be opened is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(200);

pub(crate) enum Command {
    Configure(Box<DataplaneConfig>, Sender<Vec<String>>),
    RotateKey(Sender<Vec<String>>),
}

/// The thread, for those who command it.
pub(crate) struct PacketThread {
    commands: Sender<Command>,
    bell: Bell,
}

impl PacketThread {
    pub(crate) fn new(commands: Sender<Command>, bell: Bell) -> Self {
        Self { commands, bell }
    }

    /// Runs the tunnels of this configuration. Returns what could not be done, when the rest is.
    pub(crate) fn configure(&self, config: &DataplaneConfig) -> Vec<String> {
        self.command(|answer| Command::Configure(Box::new(config.clone()), answer))
    }

    /// Brings in a new key. Returns why not, if not.
    pub(crate) fn rotate_key(&self) -> Vec<String> {
        self.command(Command::RotateKey)
    }

    fn command(&self, command: impl FnOnce(Sender<Vec<String>>) -> Command) -> Vec<String> {
        let (answer, answered) = channel();
        let sent = self.commands.send(command(answer));
        self.bell.ring();
        sent.ok()
            .and_then(|()| answered.recv().ok())
            .unwrap_or_else(|| vec!["the packet thread has ended".into()])
    }
}

/// What the thread starts with, whoever encrypts.
pub(crate) struct Start {
    pub(crate) keys: KeyStore,
    pub(crate) board: Arc<Board>,
    pub(crate) scribe: Scribe,
    /// Of a worker before this one.
    pub(crate) memory: Option<Memory>,
}

/// Devices and port of a worker before this one.
pub(crate) struct Inherited {
    pub(crate) kept: Kept,
    pub(crate) parent: Parent,
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
    let mut engine = Engine::new(u32::from_le_bytes(first_index), now);
    engine.set_keys(owned(&start.keys));
    let mut packets = Packets {
        rotation: Rotation::new(start.keys, now),
        config: DataplaneConfig::default(),
        carrier: Carrier::new(engine, ear)?,
        board: start.board,
        scribe: start.scribe,
        commanded,
        wanted_port: None,
        devices: Devices::new(inherited),
        told_handshakes: BTreeMap::new(),
        next_post: now,
        next_retry: now,
    };
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
            let heard = self.carrier.turn(until);
            if heard.bell {
                self.obey();
            }
            for id in heard.deleted {
                self.devices.lost(&mut self.carrier, id);
            }
            let now = Instant::now();
            if now >= self.next_retry {
                self.next_retry = now + RETRY_EVERY;
                self.devices.reopen(&mut self.carrier);
                let _ = self.open_port();
            }
            if now >= self.next_post {
                self.next_post = now + POST_EVERY;
                let tunnels = self.post();
                if self.rotation.step(&self.config, &tunnels, &self.board.probes(), now) {
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

    fn misses_port(&self) -> bool {
        self.carrier.port().is_none() && self.wanted_port.is_some()
    }

    fn obey(&mut self) {
        self.carrier.hush();
        while let Ok(command) = self.commanded.try_recv() {
            let (failures, answer) = match command {
                Command::Configure(config, answer) => (self.configure(*config), answer),
                Command::RotateKey(answer) => (self.rotate_key(), answer),
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

    /// Tells what was counted and what keys there are.
    fn post(&mut self) -> BTreeMap<LinkName, TunnelState> {
        let drops = std::mem::take(&mut self.carrier.drops);
        if !drops.is_empty() {
            tracing::debug!(?drops, "dropped since the last post");
        }
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
        let states: BTreeMap<LinkName, TunnelState> = states.collect();
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
        self.board.post_tunnels(states.clone());
        self.scribe.note(Memory::new(&self.config, &states, self.board.probes()));
        self.board.post_keys(self.rotation.keys().told());
        states
    }
}

impl Inherited {
    /// The port: the one that is kept, or a new one, which is kept from now on.
    fn port(&mut self, number: u16) -> io::Result<UdpPort> {
        let name = KeptName::port(number);
        match self.kept.take(&name).map(|kept| UdpPort::adopt(kept, number)) {
            Some(Ok(port)) => return Ok(port),
            Some(Err(error)) => tracing::warn!(%error, "the WireGuard port is opened anew"),
            None => {}
        }
        self.parent.forget(name.clone());
        let port = UdpPort::open(number)?;
        self.parent.keep(name, &port);
        Ok(port)
    }

    /// The tunnel device, likewise.
    fn device(&mut self, link: &LinkName) -> io::Result<Tun> {
        let name = KeptName::tun(link);
        match self.kept.take(&name).map(|kept| Tun::adopt(kept, link.as_str())) {
            Some(Ok(tun)) => return Ok(tun),
            Some(Err(error)) => tracing::warn!(%error, "the tunnel device is opened anew"),
            None => {}
        }
        self.parent.forget(name.clone());
        let tun = Tun::open(link.as_str(), devices::MTU_BYTES, Lifetime::Persistent)?;
        self.parent.keep(name, &tun);
        Ok(tun)
    }

    /// What nobody has asked for, and is not kept any longer.
    fn take_rest(&mut self) -> BTreeMap<KeptName, OwnedFd> {
        let rest = self.kept.take_rest();
        rest.keys().for_each(|name| self.parent.forget(name.clone()));
        rest
    }
}

/// The keys, for the engine.
fn owned(keys: &KeyStore) -> BTreeMap<KeySlot, PrivateKey> {
    keys.by_slot().into_iter().map(|(slot, key)| (slot, key.clone())).collect()
}
