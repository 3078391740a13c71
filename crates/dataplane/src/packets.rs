// SPDX-License-Identifier: Apache-2.0
//! The thread that carries packets between the tunnel devices and the WireGuard port. It owns the engine: no packet takes a lock.

pub(crate) mod devices;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use isthmus_model::dataplane::{DataplaneConfig, KeySlot, TunnelState};
use isthmus_model::ids::LinkName;
use isthmus_packet_io::{READ_BYTES, ReceiveBatch, SLOT_BYTES, SendBatch, UdpPort};
use isthmus_wg::{Action, Drop, Engine, OVERHEAD_BYTES, PrivateKey, TunnelId};
use nix::poll::{PollFd, PollFlags, poll};

use crate::bell::{Bell, Ear, bell, sleep_until};
use crate::board::Board;
use crate::keys::KeyStore;
use crate::rotation::Rotation;
use devices::Devices;

/// Packets taken from one device, or batches from the port, before the others have their turn.
const TURN_PACKETS: usize = 64;
const TURN_BATCHES: usize = 4;
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

/// Starts the thread, without tunnels.
///
/// # Errors
/// No descriptors or threads left.
pub(crate) fn start(keys: KeyStore, board: Arc<Board>) -> io::Result<PacketThread> {
    let (commands, commanded) = channel();
    let (bell, ear) = bell()?;
    let mut first_index = [0; 4];
    getrandom::fill(&mut first_index).map_err(|error| io::Error::other(error.to_string()))?;
    let now = Instant::now();
    let mut engine = Engine::new(keys.present().clone(), u32::from_le_bytes(first_index), now);
    engine.set_keys(owned(&keys));
    let carrier = Carrier {
        rotation: Rotation::new(keys, now),
        config: DataplaneConfig::default(),
        engine,
        board,
        commanded,
        ear,
        wanted_port: None,
        port: None,
        devices: Devices::default(),
        received: ReceiveBatch::default(),
        outgoing: SendBatch::default(),
        scratch: Scratch::default(),
        drops: BTreeMap::new(),
        told_handshakes: BTreeMap::new(),
        next_post: now,
        next_retry: now,
    };
    std::thread::Builder::new().name("packets".into()).spawn(move || carrier.run())?;
    Ok(PacketThread::new(commands, bell))
}

struct Scratch {
    from_device: Vec<u8>,
    packet: Vec<u8>,
    from_port: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        // Padding (16 bytes) has to fit as well.
        let packet = vec![0; SLOT_BYTES - OVERHEAD_BYTES - 16];
        Self { from_device: vec![0; READ_BYTES], packet, from_port: vec![0; 65536] }
    }
}

struct Carrier {
    rotation: Rotation,
    /// As it was told last.
    config: DataplaneConfig,
    engine: Engine,
    board: Arc<Board>,
    commanded: Receiver<Command>,
    ear: Ear,
    wanted_port: Option<u16>,
    port: Option<UdpPort>,
    devices: Devices,
    received: ReceiveBatch,
    outgoing: SendBatch,
    scratch: Scratch,
    drops: BTreeMap<Drop, u64>,
    told_handshakes: BTreeMap<LinkName, u64>,
    next_post: Instant,
    next_retry: Instant,
}

/// What has something to be read.
#[derive(Default)]
struct Ready {
    commands: bool,
    port: bool,
    devices: Vec<TunnelId>,
    deleted: Vec<TunnelId>,
}

impl Carrier {
    fn run(mut self) {
        loop {
            let ready = self.wait();
            if ready.commands {
                self.obey();
            }
            let now = Instant::now();
            for id in ready.deleted {
                self.devices.lost(id);
            }
            if ready.port {
                self.carry_in();
            }
            for id in ready.devices {
                self.carry_out(id, now);
            }
            self.engine.handle_timeout(now);
            self.send_due(now);
            flush(&mut self.outgoing, self.port.as_ref());
            if now >= self.next_retry {
                self.next_retry = now + RETRY_EVERY;
                self.devices.reopen();
                let _ = self.open_port();
            }
            if now >= self.next_post {
                self.next_post = now + POST_EVERY;
                let tunnels = self.post();
                if self.rotation.step(&self.config, &tunnels, &self.board.probes(), now) {
                    self.engine.set_keys(owned(self.rotation.keys()));
                    self.post();
                }
            }
        }
    }

    fn wait(&self) -> Ready {
        let now = Instant::now();
        let mut until = self.engine.poll_timeout().min(self.next_post);
        if self.devices.missing() || (self.port.is_none() && self.wanted_port.is_some()) {
            until = until.min(self.next_retry);
        }
        let served: Vec<(TunnelId, PollFd<'_>)> = self.devices.descriptors().collect();
        let mut polled = vec![PollFd::new(self.ear.as_fd(), PollFlags::POLLIN)];
        polled.extend(served.iter().map(|(_, descriptor)| descriptor.clone()));
        polled.extend(self.port.as_ref().map(|port| PollFd::new(port.as_fd(), PollFlags::POLLIN)));
        if poll(&mut polled, sleep_until(until, now)).unwrap_or(0) == 0 {
            return Ready::default();
        }
        let has = |at: usize, flag| polled[at].revents().is_some_and(|events| events.contains(flag));
        let mut ready = Ready { commands: has(0, PollFlags::POLLIN), ..Ready::default() };
        for (at, (id, _)) in served.iter().enumerate() {
            if has(at + 1, PollFlags::POLLERR) {
                ready.deleted.push(*id);
            } else if has(at + 1, PollFlags::POLLIN) {
                ready.devices.push(*id);
            }
        }
        ready.port = self.port.is_some() && polled.last().and_then(PollFd::any).unwrap_or(false);
        ready
    }

    fn obey(&mut self) {
        self.ear.hush();
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
        failures.extend(self.engine.configure(tunnels, Instant::now()).iter().map(ToString::to_string));
        let wanted: BTreeMap<TunnelId, LinkName> =
            self.engine.facts().into_iter().map(|(id, facts)| (id, facts.name)).collect();
        failures.extend(self.devices.serve(&wanted));
        let wanted_port = config.gateway.then_some(config.listen_port);
        if self.wanted_port != wanted_port {
            self.wanted_port = wanted_port;
            self.port = None;
        }
        failures.extend(self.open_port().err());
        self.config = config;
        self.rotation.configured(Instant::now());
        failures
    }

    fn open_port(&mut self) -> Result<(), String> {
        let Some(port) = self.wanted_port else { return Ok(()) };
        if self.port.is_none() {
            let opened = UdpPort::open(port);
            self.port = Some(opened.map_err(|error| format!("cannot listen on UDP port {port}: {error}"))?);
            tracing::info!(port, "WireGuard port open");
        }
        Ok(())
    }

    fn rotate_key(&mut self) -> Vec<String> {
        let failures = self.rotation.begin(Instant::now());
        self.engine.set_keys(owned(self.rotation.keys()));
        failures
    }

    fn carry_in(&mut self) {
        for _ in 0..TURN_BATCHES {
            let Some(port) = &self.port else { return };
            let more = self.received.fill(port).unwrap_or_else(|error| {
                tracing::debug!(%error, "receiving failed");
                false
            });
            for (from, datagram) in self.received.datagrams() {
                match self.engine.handle_datagram(from, datagram, &mut self.scratch.from_port) {
                    Action::Deliver { tunnel, packet } => self.devices.write(tunnel, packet),
                    Action::Send { to, datagram } => reply(&mut self.outgoing, port, to, datagram),
                    Action::Dropped(reason) => *self.drops.entry(reason).or_default() += 1,
                    Action::Nothing => {}
                }
            }
            self.devices.flush();
            if !more {
                break;
            }
        }
    }

    fn carry_out(&mut self, id: TunnelId, now: Instant) {
        let mut carried = 0;
        while carried < TURN_PACKETS {
            let outgoing = match self.devices.read(id, &mut self.scratch.from_device) {
                Ok(outgoing) => outgoing,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    *self.drops.entry(Drop::Malformed).or_default() += 1;
                    carried += 1;
                    continue;
                }
                Err(_) => return,
            };
            carried += outgoing.count();
            for index in 0..outgoing.count() {
                let Some(length) = outgoing.write(index, &mut self.scratch.packet) else {
                    *self.drops.entry(Drop::Malformed).or_default() += 1;
                    continue;
                };
                if self.outgoing.is_full() {
                    flush(&mut self.outgoing, self.port.as_ref());
                }
                let packet = &self.scratch.packet[..length];
                match self.engine.handle_packet(id, packet, self.outgoing.slot(), now) {
                    Action::Send { to, datagram } => {
                        let length = datagram.len();
                        self.outgoing.commit(to, length);
                    }
                    Action::Dropped(reason) => *self.drops.entry(reason).or_default() += 1,
                    Action::Nothing | Action::Deliver { .. } => {}
                }
            }
        }
    }

    fn send_due(&mut self, now: Instant) {
        loop {
            if self.outgoing.is_full() {
                flush(&mut self.outgoing, self.port.as_ref());
            }
            let Some((to, datagram)) = self.engine.poll_transmit(self.outgoing.slot(), now) else { return };
            let length = datagram.len();
            self.outgoing.commit(to, length);
        }
    }

    /// Tells what was counted and what keys there are.
    fn post(&mut self) -> BTreeMap<LinkName, TunnelState> {
        if !self.drops.is_empty() {
            tracing::debug!(drops = ?self.drops, "dropped since the last post");
            self.drops.clear();
        }
        let unix_now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let states = self.engine.facts().into_values().map(|facts| {
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
        self.board.post_keys(self.rotation.keys().told());
        states
    }
}

/// The keys, for the engine.
fn owned(keys: &KeyStore) -> BTreeMap<KeySlot, PrivateKey> {
    keys.by_slot().into_iter().map(|(slot, key)| (slot, key.clone())).collect()
}

/// Sends what is due; without a port it goes nowhere.
fn flush(outgoing: &mut SendBatch, port: Option<&UdpPort>) {
    match port {
        _ if outgoing.is_empty() => {}
        Some(port) => {
            let sent = outgoing.flush(port);
            if sent.failed > 0 {
                tracing::trace!(failed = sent.failed, "datagrams that the kernel refused");
            }
        }
        None => outgoing.clear(),
    }
}

fn reply(outgoing: &mut SendBatch, port: &UdpPort, to: SocketAddr, datagram: &[u8]) {
    if outgoing.is_full() {
        outgoing.flush(port);
    }
    outgoing.slot()[..datagram.len()].copy_from_slice(datagram);
    outgoing.commit(to, datagram.len());
}
