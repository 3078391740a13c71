// SPDX-License-Identifier: Apache-2.0
//! The thread that sends probes and answers them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use isthmus_model::dataplane::{DataplaneConfig, Probe, ProbeState, WireGuardMode};
use isthmus_model::ids::LinkName;
use isthmus_model::ownership::PROBE_PORT;
use isthmus_packet_io::{ProbeSocket, ProbeSocketOptions};
use nix::poll::{PollFd, PollFlags, poll};

use super::datagram::{self, Header, MAX_BYTES, Purpose};
use super::path::Path;
use super::train::{CAR_BYTES, CARS};
use crate::board::Board;
use crate::memory::Memory;
use isthmus_wg_device::{Bell, Ear, bell, sleep_until};

/// How often quantities are posted, sizes are thought of, and sockets that could not be opened are tried again.
const TICK: Duration = Duration::from_millis(50);
const POST_EVERY: Duration = Duration::from_secs(1);
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// A socket is made anew after so many probes in a row without an answer: its device may have been another one of the same name.
const RENEW_AFTER: u8 = 8;
/// Requests answered on one socket before the others have their turn.
const TURN: usize = 64;

/// The thread, for those who command it.
pub(crate) struct ProbeThread {
    commands: Sender<Command>,
    bell: Bell,
}

enum Command {
    Configure(Box<DataplaneConfig>),
    Stop(Sender<()>),
}

impl ProbeThread {
    /// Runs the probes of this configuration; those that stay as they are keep what they know.
    pub(crate) fn configure(&self, config: DataplaneConfig) {
        // The thread ends only with the process, or when another one probes.
        let _ = self.commands.send(Command::Configure(Box::new(config)));
        self.bell.ring();
    }

    /// Sends and answers nothing any more, and closes every socket: another process is to.
    pub(crate) fn stop(&self) {
        let (stopped, has_stopped) = channel();
        let _ = self.commands.send(Command::Stop(stopped));
        self.bell.ring();
        // Without a sender the thread has ended.
        let _ = has_stopped.recv();
    }
}

/// Starts the thread, with the probes that are remembered.
///
/// # Errors
/// No descriptors or threads left.
pub(crate) fn start(board: Arc<Board>, memory: Option<Memory>) -> io::Result<ProbeThread> {
    let (commands, commanded) = channel();
    let (bell, ear) = bell()?;
    let now = Instant::now();
    let segments = board.mode() == WireGuardMode::Userspace;
    let mut prober = Prober {
        board,
        commanded,
        ear,
        probes: BTreeMap::new(),
        responders: BTreeMap::new(),
        peers: BTreeMap::new(),
        tunnel_indices: BTreeSet::new(),
        reaches: BTreeSet::new(),
        buffer: vec![0; MAX_BYTES + 1],
        next_post: now,
        next_retry: now,
        segments,
    };
    let run = move || {
        if let Some(memory) = memory {
            prober.configure(memory.config, &memory.probes);
        }
        prober.run();
    };
    std::thread::Builder::new().name("probes".into()).spawn(run)?;
    Ok(ProbeThread { commands, bell })
}

struct Running {
    probe: Probe,
    path: Path,
    socket: Option<ProbeSocket>,
}

struct Prober {
    board: Arc<Board>,
    commanded: Receiver<Command>,
    ear: Ear,
    probes: BTreeMap<String, Running>,
    responders: BTreeMap<IpAddr, Option<ProbeSocket>>,
    /// Whose each tunnel is.
    peers: BTreeMap<LinkName, String>,
    /// Indices of the tunnel devices, as of the last look.
    tunnel_indices: BTreeSet<u32>,
    /// Peers that we reach: one of their tunnels has a probe that is up.
    reaches: BTreeSet<String>,
    buffer: Vec<u8>,
    next_post: Instant,
    next_retry: Instant,
    /// What carries packets may send them segmented: not so where the kernel encrypts.
    segments: bool,
}

impl Prober {
    fn run(mut self) {
        loop {
            let (commanded, answered, asked) = self.wait();
            if commanded && let Some(stopped) = self.obey() {
                drop(self);
                // Whoever asked may have gone.
                let _ = stopped.send(());
                return;
            }
            let now = Instant::now();
            for name in answered {
                self.take_answers(&name);
            }
            self.refresh_reaches();
            for address in asked {
                self.answer_requests(address);
            }
            for running in self.probes.values_mut() {
                running.send_due(now, self.segments);
            }
            self.refresh_reaches();
            if now >= self.next_retry {
                self.next_retry = now + RETRY_EVERY;
                self.refresh_indices();
                self.open_responders();
            }
            let mut news = false;
            for (name, running) in &mut self.probes {
                news |= running.tell_news(name);
            }
            if news || now >= self.next_post {
                self.next_post = now + POST_EVERY;
                self.post();
            }
        }
    }

    /// Waits for something to do: commands, probes with answers, responders with requests.
    fn wait(&self) -> (bool, Vec<String>, Vec<IpAddr>) {
        let now = Instant::now();
        let next_probe = self.probes.values().map(|running| running.path.next_at()).min();
        let tick = if self.probes.is_empty() { RETRY_EVERY } else { TICK };
        let until = next_probe.unwrap_or(now + tick).min(now + tick).max(now);
        let sockets = |socket: &Option<ProbeSocket>| socket.is_some();
        let probing: Vec<_> = self.probes.iter().filter(|(_, running)| sockets(&running.socket)).collect();
        let answering: Vec<_> = self.responders.iter().filter(|(_, socket)| sockets(socket)).collect();
        let mut polled = vec![PollFd::new(self.ear.as_fd(), PollFlags::POLLIN)];
        let used =
            probing.iter().map(|(_, running)| &running.socket).chain(answering.iter().map(|(_, s)| *s));
        polled.extend(used.flatten().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        if poll(&mut polled, sleep_until(until, now)).unwrap_or(0) == 0 {
            return (false, Vec::new(), Vec::new());
        }
        let mut ready = polled.iter().map(|descriptor| descriptor.any().unwrap_or(false));
        let commanded = ready.next().unwrap_or(false);
        let answered =
            probing.iter().filter(|_| ready.next().unwrap_or(false)).map(|(n, _)| (*n).clone()).collect();
        let asked = answering.iter().filter(|_| ready.next().unwrap_or(false)).map(|(a, _)| **a).collect();
        (commanded, answered, asked)
    }

    /// Does what it is told; whom to tell that it has stopped, if it shall.
    fn obey(&mut self) -> Option<Sender<()>> {
        self.ear.hush();
        let mut last = None;
        while let Ok(command) = self.commanded.try_recv() {
            match command {
                Command::Configure(config) => last = Some(config),
                Command::Stop(stopped) => return Some(stopped),
            }
        }
        if let Some(config) = last {
            self.configure(*config, &BTreeMap::new());
        }
        None
    }

    /// Runs the probes of this configuration. Paths that are new begin with what is known of them.
    fn configure(&mut self, config: DataplaneConfig, known: &BTreeMap<String, ProbeState>) {
        let now = Instant::now();
        self.peers =
            config.tunnels.into_iter().map(|(device, tunnel)| (device, tunnel.peer.to_string())).collect();
        let mut before = std::mem::take(&mut self.probes);
        for (name, probe) in config.probes {
            let running = match before.remove(&name) {
                Some(running) if running.probe == probe => running,
                _ => {
                    let path = match known.get(&name) {
                        Some(known) => Path::known(&probe, known, now),
                        None => Path::new(&probe, now),
                    };
                    Running { path, probe, socket: None }
                }
            };
            self.probes.insert(name, running);
        }
        self.responders.retain(|address, _| config.respond_on.contains(address));
        for address in config.respond_on {
            self.responders.entry(address).or_insert(None);
        }
        self.refresh_indices();
        self.open_responders();
        self.next_post = now;
    }

    fn open_responders(&mut self) {
        for (address, socket) in self.responders.iter_mut().filter(|(_, socket)| socket.is_none()) {
            let bind = SocketAddr::new(*address, PROBE_PORT);
            match ProbeSocket::open(ProbeSocketOptions { bind, device: None, early: true }) {
                Ok(opened) => *socket = Some(opened),
                Err(error) => tracing::warn!(%error, %bind, "probes to this address are not answered yet"),
            }
        }
    }

    fn take_answers(&mut self, name: &str) {
        let Some(running) = self.probes.get_mut(name) else { return };
        let Some(socket) = &running.socket else { return };
        for _ in 0..TURN {
            let arrival = match socket.receive(&mut self.buffer) {
                Ok(arrival) => arrival,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(%error, name, "probe socket");
                    return;
                }
            };
            if arrival.from.ip() != running.probe.target.ip() {
                continue;
            }
            if let Some(answer) = datagram::read_answer(&self.buffer[..arrival.length]) {
                let size = arrival.length + headers(running.probe.target.ip());
                running.path.answered(&answer, u16::try_from(size).unwrap_or(u16::MAX), Instant::now());
            }
        }
    }

    fn answer_requests(&mut self, address: IpAddr) {
        let Some(Some(socket)) = self.responders.get(&address) else { return };
        for _ in 0..TURN {
            let Ok(arrival) = socket.receive(&mut self.buffer) else { return };
            let Some(header) = datagram::read_request(&self.buffer[..arrival.length]) else { continue };
            let names = self.reaches.iter().map(String::as_str);
            let answer = datagram::answer(header, arrival.length, names);
            // What came out of a tunnel goes back into the same one: each tunnel is measured for itself.
            let device = arrival.device_index.filter(|index| self.tunnel_indices.contains(index));
            if let Err(error) = socket.send(arrival.from, &answer, device) {
                tracing::debug!(%error, to = %arrival.from, "answer not sent");
            }
        }
    }

    fn refresh_indices(&mut self) {
        let index = |name: &LinkName| nix::net::if_::if_nametoindex(name.as_str()).ok();
        self.tunnel_indices = self.peers.keys().filter_map(index).collect();
    }

    fn refresh_reaches(&mut self) {
        let up = self.probes.values().filter(|running| running.path.is_up());
        let devices = up.filter_map(|running| running.probe.device.as_ref());
        self.reaches = devices.filter_map(|device| self.peers.get(device)).cloned().collect();
    }

    fn post(&self) {
        let states = self.probes.iter().map(|(name, running)| (name.clone(), running.path.state()));
        self.board.post_probes(states.collect());
    }
}

impl Running {
    /// Writes to the log what the agent acts on. True if it has changed.
    fn tell_news(&mut self, name: &str) -> bool {
        let (was_up, was_unsegmented) = (self.path.told_up(), self.path.told_unsegmented());
        let news = self.path.take_news();
        match (was_up, self.path.is_up()) {
            (false, true) => tracing::info!(probe = name, target = %self.probe.target, "path is up"),
            (true, false) => tracing::warn!(probe = name, target = %self.probe.target, "path is down"),
            _ => {}
        }
        match (was_unsegmented, self.path.told_unsegmented()) {
            (false, true) => {
                tracing::warn!(probe = name, "segmented sends are lost here: datagrams leave one by one");
            }
            (true, false) => tracing::info!(probe = name, "datagrams leave segmented again"),
            _ => {}
        }
        news
    }

    /// `segments`: what is sent to the device may leave this process segmented.
    fn send_due(&mut self, now: Instant, segments: bool) {
        if let Some((header, length)) = self.path.poll(now, nonce) {
            if self.path.unanswered() % RENEW_AFTER == RENEW_AFTER - 1 {
                self.socket = None;
            }
            self.open();
            let sent = self.send(header, length);
            if let Err(error) = sent {
                tracing::trace!(%error, target = %self.probe.target, "probe not sent");
                self.socket = None;
            }
        }
        if let Some(size) = self.path.poll_size(now, nonce) {
            let header = Header { purpose: Purpose::Size, sequence: 0, nonce: size.nonce };
            let length = usize::from(size.size).saturating_sub(headers(self.probe.target.ip()));
            match self.send(header, length) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {
                    self.path.size_refused(now)
                }
                _ => {}
            }
        }
        if segments
            && self.probe.device.is_some()
            && let Some(nonces) = self.path.poll_train(now, nonce)
            && let Err(error) = self.send_train(nonces)
        {
            tracing::trace!(%error, target = %self.probe.target, "train not sent");
        }
    }

    /// At once, so that they are read from the device, and leave, together.
    fn send_train(&self, nonces: [u64; CARS]) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let length = usize::from(CAR_BYTES) - headers(self.probe.target.ip());
        let car = |nonce| datagram::request(Header { purpose: Purpose::Size, sequence: 0, nonce }, length);
        socket.send_together(self.probe.target, &nonces.map(car).concat(), length)
    }

    fn open(&mut self) {
        if self.socket.is_some() {
            return;
        }
        let any: IpAddr = match self.probe.target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let bind = SocketAddr::new(self.probe.source.unwrap_or(any), 0);
        let device = self.probe.device.as_ref().map(LinkName::as_str);
        match ProbeSocket::open(ProbeSocketOptions { bind, device, early: false }) {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => {
                tracing::debug!(%error, target = %self.probe.target, ?device, "no probe socket yet")
            }
        }
    }

    fn send(&self, header: Header, length: usize) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        socket.send(self.probe.target, &datagram::request(header, length), None)
    }
}

/// Bytes of IP and UDP headers before a probe.
fn headers(target: IpAddr) -> usize {
    if target.is_ipv4() { 28 } else { 48 }
}

fn nonce() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness probes are not protected against forgers, and still work: the kernel has it from its start on.
    if let Err(error) = getrandom::fill(&mut bytes) {
        tracing::error!(%error, "no randomness for probes");
    }
    u64::from_le_bytes(bytes)
}
