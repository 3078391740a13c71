// SPDX-License-Identifier: Apache-2.0
//! Tunnels where this process encrypts. Each lane is a thread with an engine, a port and devices of its own ([`lane`]); this one is for all
//! of them: it has the keys and their rotation, gives each lane what is its own of a configuration, and tells what they measured. No packet
//! comes by here.

pub(crate) mod devices;
mod inherited;
mod lane;
mod role;
mod thread;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use isthmus_model::dataplane::{DataplaneConfig, Tunnel, TunnelState};
use isthmus_model::ids::LinkName;
use isthmus_model::ownership::{LANES_MAX, lane_port};
use isthmus_packet_io::Features;
use isthmus_wg::Half;
use isthmus_wg_device::{Ear, bell, sleep_until};
use nix::poll::{PollFd, PollFlags, poll};

use crate::board::Board;
use crate::kept::{Kept, KeptName};
use crate::keys::KeyStore;
use crate::memory::{Memory, Scribe};
use crate::rotation::Rotation;
use inherited::Shared;
use lane::{Beginning, LaneThread, Order, Told};

pub(crate) use inherited::Inherited;
pub(crate) use thread::{BEING_REPLACED, Command, PacketThread};

/// How often what was measured is posted.
const POST_EVERY: Duration = Duration::from_millis(500);
/// How often it is looked whether this worker can carry.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the thread starts with, whoever encrypts.
pub(crate) struct Start {
    pub(crate) keys: KeyStore,
    /// How many lanes are told of.
    pub(crate) lanes: u8,
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
    let now = Instant::now();
    // Another half than that of the worker before: it may still carry.
    let half = match &start.memory {
        Some(memory) if !memory.upper => Half::Upper,
        _ => Half::Lower,
    };
    let stage = match (&start.memory, start.carries) {
        (Some(_), Some(carries)) => Stage::Waiting(carries),
        _ => Stage::Carrying,
    };
    let mut lanes = Lanes {
        rotation: Rotation::new(start.keys, now),
        told: start.lanes,
        config: DataplaneConfig::default(),
        half,
        stage,
        live: start.memory.as_ref().map(live_by_lane).unwrap_or_default(),
        board: start.board,
        scribe: start.scribe,
        commanded,
        ear,
        inherited: Shared::new(inherited),
        threads: BTreeMap::new(),
        swept: false,
        unsegmented: BTreeSet::new(),
        next_post: now,
    };
    lanes.start_lane(0)?;
    let run = move || {
        if let Some(memory) = start.memory {
            lanes.resume(memory);
        }
        lanes.run();
    };
    std::thread::Builder::new().name("lanes".into()).spawn(run)?;
    Ok(PacketThread::new(commands, bell))
}

/// What the process is to do while one worker takes over from another; [`role`] is the same for a lane.
enum Stage {
    /// It carries.
    Carrying,
    /// The worker before carries, until every lane of this one can. It is said here then.
    Waiting(Sender<()>),
    /// Another worker takes over, and does not carry yet.
    Retired,
    /// Another worker carries.
    Leaving,
}

impl Stage {
    /// Whether it does what an agent asks for, and its parent keeps what it remembers.
    fn obeys(&self) -> bool {
        matches!(self, Self::Carrying | Self::Waiting(_))
    }

    /// Whether keys are its to change.
    fn decides(&self) -> bool {
        matches!(self, Self::Carrying)
    }
}

struct Lanes {
    rotation: Rotation,
    /// How many lanes are told of, and have tunnels as soon as the agent wants some. A worker with more has left more to this one, until the
    /// agent hears of it.
    told: u8,
    /// As it was told last.
    config: DataplaneConfig,
    /// Of the indices of sessions, for every lane.
    half: Half,
    stage: Stage,
    /// Tunnels that had a session with the worker before, by lane.
    live: BTreeMap<u8, BTreeSet<LinkName>>,
    board: Arc<Board>,
    scribe: Scribe,
    commanded: Receiver<Command>,
    ear: Ear,
    inherited: Shared,
    /// Those that have had a tunnel, and the first.
    threads: BTreeMap<u8, LaneThread>,
    /// What an earlier process left behind is taken away once, after the first configuration.
    swept: bool,
    /// Where nothing segmented is sent to.
    unsegmented: BTreeSet<SocketAddr>,
    next_post: Instant,
}

impl Lanes {
    fn run(mut self) {
        loop {
            let mut until = self.next_post;
            if matches!(self.stage, Stage::Waiting(_)) {
                until = until.min(Instant::now() + LOOK_EVERY);
            }
            let mut polled = [PollFd::new(self.ear.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, sleep_until(until, Instant::now())).unwrap_or(0) > 0 {
                self.obey();
            }
            self.carry_if_ready();
            let now = Instant::now();
            if now >= self.next_post {
                self.next_post = now + POST_EVERY;
                let tunnels = self.post();
                let keys_changed = self.stage.decides()
                    && self.rotation.step(&self.config, &tunnels, &self.board.probes(), now);
                if keys_changed {
                    self.give_keys();
                    self.post();
                }
            }
        }
    }

    /// Goes on with what the worker before ran, and asks every peer for a session where it was last.
    fn resume(&mut self, memory: Memory) {
        for failure in self.configure(memory.config).0 {
            tracing::warn!(failure, "not all goes on");
        }
        for lane in self.threads.values() {
            lane.order(Order::Move(memory.endpoints.clone()));
        }
    }

    fn start_lane(&mut self, number: u8) -> io::Result<()> {
        if self.threads.contains_key(&number) {
            return Ok(());
        }
        let waits = matches!(self.stage, Stage::Waiting(_));
        let thread = LaneThread::start(Beginning {
            number,
            half: self.half,
            keys: self.rotation.keys().of_lane(number),
            inherited: self.inherited.clone(),
            waits_for: waits.then(|| self.live.remove(&number).unwrap_or_default()),
        })?;
        self.threads.insert(number, thread);
        Ok(())
    }

    fn obey(&mut self) {
        self.ear.hush();
        while let Ok(command) = self.commanded.try_recv() {
            match command {
                Command::Configure(_, answer) | Command::RotateKey(answer) if !self.stage.obeys() => {
                    let _ = answer.send(vec![BEING_REPLACED.to_owned()]);
                }
                Command::Configure(config, answer) => {
                    let (failures, told) = self.configure(*config);
                    self.publish(told);
                    // Whoever asked may have gone; what it asked for is done.
                    let _ = answer.send(failures);
                }
                Command::RotateKey(answer) => {
                    let failures = self.rotation.begin(Instant::now());
                    self.give_keys();
                    self.post();
                    let _ = answer.send(failures);
                }
                // Whoever asked waits for it, and says what to do next.
                Command::Retire(answer) => drop(answer.send(self.retire())),
                Command::Resume => self.resume_carrying(),
                Command::StepBack(drained) => {
                    self.stage = Stage::Leaving;
                    self.threads.values().for_each(|lane| lane.order(Order::StepBack(drained.clone())));
                }
            }
        }
    }

    /// What could not be done, and how the lanes are.
    fn configure(&mut self, config: DataplaneConfig) -> (Vec<String>, Vec<Told>) {
        let mut failures = Vec::new();
        if !config.gateway && !config.tunnels.is_empty() {
            failures.push("tunnels were given to a node that is no gateway; none of them runs".to_owned());
        }
        let (mut by_lane, refused) = by_lane(&config);
        failures.extend(refused);
        if !self.swept {
            devices::sweep_kernels();
        }
        for number in by_lane.keys() {
            let started = self.start_lane(*number);
            failures.extend(started.err().map(|error| format!("lane {number} cannot be started: {error}")));
        }
        let answers: Vec<_> = self
            .threads
            .iter()
            .map(|(number, lane)| {
                let tunnels = by_lane.remove(number).unwrap_or_default();
                let listens = config.gateway && (*number == 0 || !tunnels.is_empty());
                let port = listens.then(|| lane_port(config.listen_port, *number));
                lane.ask(|answer| Order::Configure(tunnels, port, answer))
            })
            .collect();
        let mut told = answered(answers);
        told.iter_mut().for_each(|told| failures.append(&mut told.failures));
        if !std::mem::replace(&mut self.swept, true) {
            // Only now: what is wanted is among what is kept.
            let names = told.iter().flat_map(|told| told.tunnels.keys());
            devices::sweep(&self.inherited, names.map(ToString::to_string).collect());
        }
        self.config = config;
        self.rotation.configured(Instant::now());
        (failures, told)
    }

    fn give_keys(&self) {
        for (number, lane) in &self.threads {
            lane.order(Order::Keys(self.rotation.keys().of_lane(*number)));
        }
    }

    /// Reads from devices and ports once every lane has a session wherever the worker before has.
    fn carry_if_ready(&mut self) {
        let Stage::Waiting(carries) = &self.stage else { return };
        let carries = carries.clone();
        if !self.ask_all(Order::IsReady).into_iter().all(|is_ready| is_ready) {
            return;
        }
        self.ask_all(Order::Carry);
        tracing::info!(lanes = self.threads.len(), "this worker carries");
        self.stage = Stage::Carrying;
        // Whoever waits for it may have given up.
        let _ = carries.send(());
    }

    /// Begins nothing any more; what the worker that takes over needs.
    fn retire(&mut self) -> io::Result<Kept> {
        self.stage = Stage::Retired;
        let kept = self.hand_over();
        if kept.is_err() {
            self.resume_carrying();
        }
        kept
    }

    fn hand_over(&self) -> io::Result<Kept> {
        let mut kept = Kept::default();
        for opened in self.ask_all(Order::Retire) {
            kept.extend(opened?);
        }
        let (tunnels, _) = merged(self.ask_all(Order::Tell));
        kept.put(KeptName::memory(), self.memory(&tunnels).write()?.into());
        Ok(kept)
    }

    /// Nobody takes over after all.
    fn resume_carrying(&mut self) {
        self.stage = Stage::Carrying;
        self.threads.values().for_each(|lane| lane.order(Order::Resume));
    }

    fn memory(&self, tunnels: &BTreeMap<LinkName, TunnelState>) -> Memory {
        let memory = Memory::new(&self.config, tunnels, self.board.probes());
        Memory { upper: self.half == Half::Upper, ..memory }
    }

    /// Asks every lane at once, and waits for all.
    fn ask_all<T>(&self, order: impl Fn(Sender<T>) -> Order) -> Vec<T> {
        answered(self.threads.values().map(|lane| lane.ask(&order)).collect())
    }

    /// Has lanes send nothing segmented to where that is lost. Said again while there is such a place: a lane may have begun since.
    fn leave_segmentation_out(&mut self, tunnels: &BTreeMap<LinkName, TunnelState>) {
        let unsegmented = self.unsegmented(tunnels);
        if !unsegmented.is_empty() || !self.unsegmented.is_empty() {
            self.threads.values().for_each(|lane| lane.order(Order::SendSingly(unsegmented.clone())));
        }
        self.unsegmented = unsegmented;
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
        let told = self.ask_all(Order::Tell);
        self.publish(told)
    }

    fn publish(&mut self, told: Vec<Told>) -> BTreeMap<LinkName, TunnelState> {
        let (tunnels, features) = merged(told);
        // Before it is told: what an agent knows, the next worker does too.
        if self.stage.obeys() {
            self.scribe.note(self.memory(&tunnels));
        }
        self.leave_segmentation_out(&tunnels);
        self.board.post_tunnels(tunnels.clone());
        self.board.post_offload(features.iter().map(|feature| feature.name().to_owned()).collect());
        self.board.post_keys(self.rotation.keys().told(self.told));
        tunnels
    }
}

/// The answers, in the order of those who were asked. Who does not answer any more has ended, and with it the process.
fn answered<T>(answers: Vec<Receiver<T>>) -> Vec<T> {
    answers.into_iter().filter_map(|answer| answer.recv().ok()).collect()
}

/// Tunnels of all lanes, and features that are in use in each that has a port or a device.
fn merged(told: Vec<Told>) -> (BTreeMap<LinkName, TunnelState>, Features) {
    let mut tunnels = BTreeMap::new();
    let mut features: Option<Features> = None;
    for one in told {
        tunnels.extend(one.tunnels);
        if !one.features.is_empty() {
            features = Some(features.map_or(one.features.clone(), |all| &all & &one.features));
        }
    }
    (tunnels, features.unwrap_or_default())
}

/// Each lane's tunnels of a configuration, and a word about those of lanes that there cannot be.
fn by_lane(config: &DataplaneConfig) -> (BTreeMap<u8, BTreeMap<LinkName, Tunnel>>, Vec<String>) {
    let (mut lanes, mut refused) = (BTreeMap::<u8, BTreeMap<LinkName, Tunnel>>::new(), Vec::new());
    for (name, tunnel) in config.tunnels.iter().filter(|_| config.gateway) {
        if tunnel.lane < LANES_MAX {
            lanes.entry(tunnel.lane).or_default().insert(name.clone(), tunnel.clone());
        } else {
            refused.push(format!(
                "tunnel {name}: there is no lane {}, the last is {}",
                tunnel.lane,
                LANES_MAX - 1
            ));
        }
    }
    (lanes, refused)
}

/// Tunnels that had a session, by lane.
fn live_by_lane(memory: &Memory) -> BTreeMap<u8, BTreeSet<LinkName>> {
    let mut lanes = BTreeMap::<u8, BTreeSet<LinkName>>::new();
    for name in &memory.live {
        if let Some(tunnel) = memory.config.tunnels.get(name) {
            lanes.entry(tunnel.lane).or_default().insert(name.clone());
        }
    }
    lanes
}
