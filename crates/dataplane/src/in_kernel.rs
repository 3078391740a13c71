// SPDX-License-Identifier: Apache-2.0
//! Tunnels where the kernel encrypts: this thread makes and configures one WireGuard device for each and reads what it counts.
//! No packet comes by here.
//!
//! In the kernel a UDP port belongs to one device, so each has its own out of [`isthmus_model::ownership::WIREGUARD_PORTS`]; peers
//! learn it through the operators.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use isthmus_model::dataplane::{DataplaneConfig, Tunnel, TunnelState, WireGuardMode};
use isthmus_model::ids::LinkName;
use isthmus_wg::accept;
use isthmus_wg_kernel::{Change, Device, WireGuard};
use nix::poll::{PollFd, PollFlags, poll};

use crate::board::Board;
use crate::kept::{Kept, KeptName};
use crate::memory::{Memory, Scribe};
use crate::packets::devices::{MTU_BYTES, is_tunnel_name};
use crate::packets::{BEING_REPLACED, Command, PacketThread, Start};
use crate::rotation::Rotation;
use isthmus_wg_device::{Ear, bell, sleep_until};
use plan::{Wanted, is_alive, peer_change, ports};

/// The kernel encrypts on every core by itself: one lane is enough, and the fewer there are the more peers the ports are enough for.
pub(crate) const LANES: u8 = 1;
/// How often it is looked whether somebody has deleted a device.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often what the kernel counted is posted.
const POST_EVERY: Duration = Duration::from_millis(500);

/// Starts the thread, with the tunnels that are remembered.
///
/// # Errors
/// No descriptors or threads left.
pub(crate) fn start(wireguard: WireGuard, start: Start) -> io::Result<PacketThread> {
    let (commands, commanded) = channel();
    let (bell, ear) = bell()?;
    let now = Instant::now();
    let mut keeper = Keeper {
        wireguard,
        rotation: Rotation::new(start.keys, now),
        board: start.board,
        scribe: start.scribe,
        commanded,
        ear,
        config: DataplaneConfig::default(),
        wanted: BTreeMap::new(),
        swept: false,
        told_alive: BTreeSet::new(),
        retired: false,
        next_look: now,
        next_post: now,
    };
    let run = move || {
        if let Some(memory) = start.memory {
            for failure in keeper.configure(memory.config) {
                tracing::warn!(failure, "not all goes on");
            }
        }
        // The kernel carries: there is nothing to wait for.
        let _ = start.carries.map(|carries| carries.send(()));
        keeper.run();
    };
    std::thread::Builder::new().name("tunnels".into()).spawn(run)?;
    Ok(PacketThread::new(commands, bell))
}

struct Keeper {
    wireguard: WireGuard,
    rotation: Rotation,
    board: Arc<Board>,
    scribe: Scribe,
    commanded: Receiver<Command>,
    ear: Ear,
    /// As it was told last.
    config: DataplaneConfig,
    wanted: BTreeMap<LinkName, Wanted>,
    /// What an earlier process left behind is taken away once, with the first configuration.
    swept: bool,
    told_alive: BTreeSet<LinkName>,
    /// Another worker takes over: nothing is changed here.
    retired: bool,
    next_look: Instant,
    next_post: Instant,
}

impl Keeper {
    fn run(mut self) {
        loop {
            let until = self.next_look.min(self.next_post);
            let mut polled = [PollFd::new(self.ear.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, sleep_until(until, Instant::now())).unwrap_or(0) > 0 {
                self.obey();
            }
            let now = Instant::now();
            if now >= self.next_look {
                self.next_look = now + LOOK_EVERY;
                if !self.retired {
                    self.restore();
                }
            }
            if now >= self.next_post {
                self.next_post = now + POST_EVERY;
                let tunnels = self.post();
                if !self.retired && self.rotation.step(&self.config, &tunnels, &self.board.probes(), now) {
                    self.post();
                }
            }
        }
    }

    fn obey(&mut self) {
        self.ear.hush();
        while let Ok(command) = self.commanded.try_recv() {
            let (failures, answer) = match command {
                Command::Configure(_, answer) | Command::RotateKey(answer) if self.retired => {
                    (vec![BEING_REPLACED.to_owned()], answer)
                }
                Command::Retire(answer) => {
                    self.retired = true;
                    let _ = answer.send(self.hand_over());
                    continue;
                }
                Command::Resume => {
                    self.retired = false;
                    continue;
                }
                Command::StepBack(drained) => {
                    // Nothing ever comes by here.
                    drop(drained);
                    continue;
                }
                Command::Configure(config, answer) => (self.configure(*config), answer),
                Command::RotateKey(answer) => (self.rotation.begin(Instant::now()), answer),
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
        let (mut wanted, refused) = self.wanted_of(tunnels);
        failures.extend(refused);
        let mut before = std::mem::take(&mut self.wanted);
        for (name, wanted) in &mut wanted {
            wanted.told = before.remove(name).filter(|old| old.peer == wanted.peer).and_then(|old| old.told);
        }
        self.wanted = wanted;
        self.config = config;
        self.rotation.configured(Instant::now());
        self.take_away(before.into_keys().map(|name| name.to_string()).collect());
        if !std::mem::replace(&mut self.swept, true) {
            self.sweep();
        }
        failures.extend(self.converge());
        failures
    }

    /// The tunnels that can run, and a word about each other one. More than one lane is there only while the agent has not heard that this
    /// process has one.
    fn wanted_of(&self, tunnels: &BTreeMap<LinkName, Tunnel>) -> (BTreeMap<LinkName, Wanted>, Vec<String>) {
        let (mut wanted, mut refused) = (BTreeMap::new(), Vec::new());
        let lanes: BTreeSet<u8> = tunnels.values().map(|tunnel| tunnel.lane).collect();
        for lane in lanes {
            let of_lane = tunnels.iter().filter(|(_, tunnel)| tunnel.lane == lane);
            let of_lane = of_lane.map(|(name, tunnel)| (name.clone(), tunnel.clone())).collect();
            let keys = self.rotation.keys().of_lane(lane);
            let keys = keys.into_iter().map(|(slot, key)| (slot, key.public())).collect();
            let (accepted, refusals) = accept(&of_lane, &keys);
            refused.extend(refusals.iter().map(ToString::to_string));
            wanted
                .extend(accepted.into_iter().map(|(name, (peer, tunnel))| (name, Wanted::new(peer, tunnel))));
        }
        (wanted, refused)
    }

    /// Tunnel devices of an earlier process that nobody wants, of either mode.
    fn sweep(&mut self) {
        let Ok(links) = nix::net::if_::if_nameindex() else { return };
        let names = links.iter().filter_map(|link| link.name().to_str().ok().map(str::to_owned));
        let wanted: BTreeSet<&str> = self.wanted.keys().map(LinkName::as_str).collect();
        let gone = names.filter(|name| is_tunnel_name(name) && !wanted.contains(name.as_str())).collect();
        self.take_away(gone);
    }

    fn take_away(&mut self, names: Vec<String>) {
        for name in names {
            match self.wireguard.delete(&name) {
                Ok(()) => tracing::info!(device = name, "tunnel device taken away"),
                Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => {}
                Err(error) => tracing::warn!(%error, device = name, "tunnel device stays"),
            }
        }
    }

    /// Brings every device to what is wanted. Those that are as wanted are not touched.
    fn converge(&mut self) -> Vec<String> {
        let mut taken = BTreeMap::new();
        let mut seen = BTreeMap::new();
        let names: Vec<LinkName> = self.wanted.keys().cloned().collect();
        for name in &names {
            if let Ok(Some(device)) = self.wireguard.device(name.as_str()) {
                taken.insert(name.clone(), device.listen_port);
                seen.insert(name.clone(), device);
            }
        }
        let mut failures = Vec::new();
        for name in names {
            let others = taken.iter().filter(|(other, _)| **other != name).map(|(_, port)| *port).collect();
            match self.bring(&name, seen.remove(&name), &others) {
                Ok(port) => _ = taken.insert(name, port),
                Err(error) => failures.push(format!("tunnel {name}: {error}")),
            }
        }
        failures
    }

    /// Returns the device's port.
    fn bring(&mut self, name: &LinkName, seen: Option<Device>, others: &BTreeSet<u16>) -> io::Result<u16> {
        let Some(wanted) = self.wanted.get_mut(name) else { return Err(io::ErrorKind::NotFound.into()) };
        let own = self
            .rotation
            .keys()
            .of_lane(wanted.lane)
            .remove(&wanted.key_slot)
            .ok_or_else(|| io::Error::other("its key is gone"))?;
        let made = seen.is_none();
        if made {
            self.wireguard.create(name.as_str(), MTU_BYTES)?;
        }
        let seen = seen.unwrap_or_default();
        let private_key = (seen.public_key != Some(*own.public().as_bytes())).then(|| own.as_bytes());
        let (peer, only_this_peer) = match peer_change(wanted, &seen, unix_now()) {
            Some((change, only)) => (Some(change), only),
            None => (None, false),
        };
        let change = Change { private_key, listen_port: None, only_this_peer, peer };
        if change != Change::default() {
            self.wireguard.set(name.as_str(), &change)?;
        }
        wanted.told = Some(wanted.endpoint);
        let has = (seen.listen_port != 0).then_some(seen.listen_port);
        let candidates = ports(self.config.listen_port, has, others);
        if !made && candidates.first().copied() == has {
            return Ok(seen.listen_port);
        }
        let port = open_port(&mut self.wireguard, name, &candidates)?;
        tracing::info!(device = %name, port, "tunnel device of the kernel's WireGuard serves");
        Ok(port)
    }

    /// Makes devices again that somebody has deleted.
    fn restore(&mut self) {
        let there = |name: &LinkName| nix::net::if_::if_nametoindex(name.as_str()).is_ok();
        let missing: Vec<String> =
            self.wanted.keys().filter(|name| !there(name)).map(ToString::to_string).collect();
        if missing.is_empty() {
            return;
        }
        tracing::warn!(devices = ?missing, "tunnel devices are missing, making them again");
        for failure in self.converge() {
            tracing::warn!(failure, "not made yet");
        }
    }

    /// Devices, ports and sessions are the kernel's: what is handed over is what is known of them.
    fn hand_over(&mut self) -> io::Result<Kept> {
        let tunnels = self.post();
        let mut kept = Kept::default();
        kept.put(KeptName::memory(), self.memory(&tunnels).write()?.into());
        Ok(kept)
    }

    fn memory(&self, tunnels: &BTreeMap<LinkName, TunnelState>) -> Memory {
        let memory = Memory::new(&self.config, tunnels, self.board.probes());
        Memory { mode: WireGuardMode::Kernel, ..memory }
    }

    /// Tells what the kernel counted and what keys there are.
    fn post(&mut self) -> BTreeMap<LinkName, TunnelState> {
        let now = unix_now();
        let mut states = BTreeMap::new();
        let mut alive = BTreeSet::new();
        for (name, wanted) in &self.wanted {
            let mut state = TunnelState::default();
            if let Ok(Some(device)) = self.wireguard.device(name.as_str()) {
                state.listen_port = Some(device.listen_port).filter(|port| *port != 0);
                let peer = device.peers.iter().find(|peer| peer.public_key == *wanted.peer.as_bytes());
                if let Some(peer) = peer {
                    state.endpoint = peer.endpoint;
                    state.last_handshake_s =
                        peer.last_handshake.filter(|_| is_alive(peer, now)).map(|at| at.as_secs());
                    (state.received_bytes, state.sent_bytes) = (peer.received_bytes, peer.sent_bytes);
                }
            }
            if state.last_handshake_s.is_some() {
                alive.insert(name.clone());
            }
            states.insert(name.clone(), state);
        }
        for name in alive.difference(&self.told_alive) {
            tracing::info!(tunnel = %name, endpoint = ?states[name].endpoint, "session begins");
        }
        for name in self.told_alive.difference(&alive) {
            tracing::warn!(tunnel = %name, "session is over");
        }
        self.told_alive = alive;
        if !self.retired {
            self.scribe.note(self.memory(&states));
        }
        self.board.post_tunnels(states.clone());
        self.board.post_keys(self.rotation.keys().told(LANES));
        states
    }
}

/// Sets the device up on the first port that nobody has. The kernel looks at a port only while its device is up.
fn open_port(wireguard: &mut WireGuard, name: &LinkName, candidates: &[u16]) -> io::Result<u16> {
    for port in candidates {
        let change = Change { listen_port: Some(*port), ..Change::default() };
        let opened = wireguard.set(name.as_str(), &change).and_then(|()| wireguard.set_up(name.as_str()));
        match opened {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            opened => return opened.map(|()| *port),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        "every UDP port that tunnels may have is in use on this node",
    ))
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
