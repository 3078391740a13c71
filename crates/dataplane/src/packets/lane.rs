// SPDX-License-Identifier: Apache-2.0
//! A lane: the thread that carries packets between tunnel devices and a WireGuard port. It owns the engine: no packet takes a lock.
//! What it carries is [`Carrier`]'s; here is what it carries, and what is told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use isthmus_model::dataplane::{KeySlot, Tunnel, TunnelState};
use isthmus_model::ids::LinkName;
use isthmus_packet_io::Features;
use isthmus_wg::{DeviceId, Engine, Half, PrivateKey};
use isthmus_wg_device::{Bell, Carrier, bell};

use super::devices::Devices;
use super::inherited::Shared;
use super::role::Role;
use crate::kept::{Kept, KeptName};

/// How often a device or port that cannot be opened is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// What a lane begins with.
pub(super) struct Beginning {
    /// Which lane it is.
    pub(super) number: u8,
    /// Its half of the session indices.
    pub(super) half: Half,
    pub(super) keys: BTreeMap<KeySlot, PrivateKey>,
    pub(super) inherited: Shared,
    /// Tunnels that have a session with the same lane of a worker that still carries. None: this one carries at once.
    pub(super) waits_for: Option<BTreeSet<LinkName>>,
}

/// To a lane, with where to answer.
pub(super) enum Order {
    /// Run exactly these tunnels, with this port or none. Those that stay keep their sessions.
    Configure(BTreeMap<LinkName, Tunnel>, Option<u16>, Sender<Told>),
    /// Have these keys.
    Keys(BTreeMap<KeySlot, PrivateKey>),
    /// Peers were heard from there.
    Move(BTreeMap<LinkName, SocketAddr>),
    /// Send nothing segmented to these.
    SendSingly(BTreeSet<SocketAddr>),
    /// Say how it is.
    Tell(Sender<Told>),
    /// Whether it could carry.
    IsReady(Sender<bool>),
    /// Carry from now on.
    Carry(Sender<()>),
    /// Another worker takes over: hand everything over, and begin nothing.
    Retire(Sender<io::Result<Kept>>),
    /// None takes over after all.
    Resume,
    /// Another worker carries. The sender is dropped when nothing is on its way to this one any more.
    StepBack(Sender<()>),
}

/// How a lane is.
#[derive(Default)]
pub(super) struct Told {
    /// What could not be done.
    pub(super) failures: Vec<String>,
    pub(super) tunnels: BTreeMap<LinkName, TunnelState>,
    /// What of the kernel's features is in use.
    pub(super) features: Features,
}

/// The thread, for who commands it.
pub(super) struct LaneThread {
    orders: Sender<Order>,
    bell: Bell,
}

impl LaneThread {
    /// Starts it, without tunnels.
    ///
    /// # Errors
    /// No descriptors or threads left.
    pub(super) fn start(beginning: Beginning) -> io::Result<Self> {
        let (orders, ordered) = channel();
        let (bell, ear) = bell()?;
        let mut first_index = [0; 4];
        getrandom::fill(&mut first_index).map_err(|error| io::Error::other(error.to_string()))?;
        let now = Instant::now();
        let Beginning { number, half, keys, inherited, waits_for } = beginning;
        let mut engine = Engine::in_half(half, u32::from_le_bytes(first_index), now);
        engine.set_keys(keys);
        let mut lane = Lane {
            number,
            carrier: Carrier::new(engine, ear)?,
            half,
            role: Role::Carrying,
            ordered,
            wanted_port: None,
            devices: Devices::new(inherited.clone()),
            inherited,
            told_handshakes: BTreeMap::new(),
            next_retry: now,
        };
        if let Some(live) = waits_for {
            lane.wait_to_carry(live, now)?;
        }
        let name = if number == 0 { "packets".to_owned() } else { format!("packets-{number}") };
        std::thread::Builder::new().name(name).spawn(move || lane.run())?;
        Ok(Self { orders, bell })
    }

    /// Orders, and returns where the answer comes. A thread that has ended gives none.
    pub(super) fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Receiver<T> {
        let (answer, answered) = channel();
        self.order(order(answer));
        answered
    }

    pub(super) fn order(&self, order: Order) {
        // It ends only with the process.
        let _ = self.orders.send(order);
        self.bell.ring();
    }
}

pub(super) struct Lane {
    pub(super) number: u8,
    pub(super) carrier: Carrier,
    /// Of the indices of sessions.
    pub(super) half: Half,
    pub(super) role: Role,
    ordered: Receiver<Order>,
    wanted_port: Option<u16>,
    devices: Devices,
    pub(super) inherited: Shared,
    told_handshakes: BTreeMap<LinkName, u64>,
    next_retry: Instant,
}

impl Lane {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            let misses = self.devices.missing(&self.carrier) || self.misses_port();
            let until = if misses { self.next_retry } else { now + RETRY_EVERY };
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
        }
    }

    fn misses_port(&self) -> bool {
        self.carrier.port().is_none() && self.wanted_port.is_some()
    }

    fn obey(&mut self) {
        self.carrier.hush();
        // Whoever asked may have gone; what it asked for is done.
        while let Ok(order) = self.ordered.try_recv() {
            match order {
                Order::Configure(tunnels, port, answer) => {
                    let failures = self.configure(&tunnels, port);
                    let _ = answer.send(Told { failures, ..self.tell() });
                }
                Order::Keys(keys) => self.carrier.engine.set_keys(keys),
                Order::Move(endpoints) => {
                    let engine = &mut self.carrier.engine;
                    endpoints.iter().for_each(|(name, endpoint)| engine.move_tunnel(name, *endpoint));
                }
                Order::SendSingly(to) => self.carrier.send_singly(to),
                Order::Tell(answer) => drop(answer.send(self.tell())),
                Order::IsReady(answer) => drop(answer.send(self.is_ready(Instant::now()))),
                Order::Carry(answer) => {
                    self.carry();
                    let _ = answer.send(());
                }
                Order::Retire(answer) => drop(answer.send(self.retire())),
                Order::Resume => self.resume_carrying(),
                Order::StepBack(drained) => self.step_back(drained, Instant::now()),
            }
        }
    }

    fn configure(&mut self, tunnels: &BTreeMap<LinkName, Tunnel>, port: Option<u16>) -> Vec<String> {
        let refusals = self.carrier.engine.configure(tunnels, Instant::now());
        let mut failures: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        let wanted: BTreeMap<DeviceId, LinkName> =
            self.carrier.engine.facts().into_iter().map(|(id, facts)| (id, facts.name)).collect();
        failures.extend(self.devices.serve(&mut self.carrier, wanted));
        if self.wanted_port != port {
            if let Some(before) = std::mem::replace(&mut self.wanted_port, port) {
                self.inherited.lock().parent.forget(KeptName::port(before));
            }
            failures.extend(self.carrier.set_port(None).err().map(|error| error.to_string()));
        }
        failures.extend(self.open_port().err());
        failures
    }

    fn open_port(&mut self) -> Result<(), String> {
        let Some(port) = self.wanted_port else { return Ok(()) };
        if self.carrier.port().is_none() {
            let opened = self.inherited.lock().port(port);
            let opened = opened.and_then(|opened| self.carrier.set_port(Some(opened)));
            opened.map_err(|error| format!("cannot listen on UDP port {port}: {error}"))?;
            tracing::info!(port, lane = self.number, "WireGuard port open");
        }
        Ok(())
    }

    /// Copies of all that is open.
    pub(super) fn opened(&self) -> io::Result<Kept> {
        let mut kept = Kept::default();
        for (name, tun) in self.devices.served(&self.carrier) {
            kept.put(KeptName::tun(name), tun.as_fd().try_clone_to_owned()?);
        }
        if let (Some(number), Some(port)) = (self.wanted_port, self.carrier.port()) {
            kept.put(KeptName::port(number), port.as_fd().try_clone_to_owned()?);
        }
        Ok(kept)
    }

    fn tell(&mut self) -> Told {
        let drops = std::mem::take(&mut self.carrier.drops);
        if !drops.is_empty() {
            tracing::debug!(?drops, lane = self.number, "dropped since it was told last");
        }
        let tunnels = self.states();
        self.log_sessions(&tunnels);
        Told { failures: Vec::new(), tunnels, features: self.carrier.features() }
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

    fn log_sessions(&mut self, states: &BTreeMap<LinkName, TunnelState>) {
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
    }
}
