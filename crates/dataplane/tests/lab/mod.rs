// SPDX-License-Identifier: Apache-2.0
//! Two namespaces that belong to two sleeping processes: when the test ends, so do they, and nothing is left.

pub mod agents;
pub mod crash;
pub mod flows;
pub mod pinger;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use isthmus_dataplane::client::{self, Client, Event};
use isthmus_model::dataplane::{
    DataplaneConfig, DataplaneState, KeySlot, Probe, Report, Request, Tunnel, TunnelState,
};
use isthmus_model::ids::LinkName;
use isthmus_model::ownership::{PROBE_PORT, WIREGUARD_PORT};

pub const TUNNEL: &str = "iw-0123456789ab";
const PATIENCE: Duration = Duration::from_secs(30);

/// Two gateways that are joined and configured.
pub struct Pair {
    pub east: Side,
    pub west: Side,
    pub east_key: String,
    west_key: String,
}

pub struct Side {
    name: &'static str,
    /// What the data plane process is told of who encrypts.
    pub encrypts: &'static str,
    holder: Child,
    process: Option<Child>,
    dir: tempfile::TempDir,
    client: Option<Client>,
    owner: Option<OwnedFd>,
    events: Mutex<(Option<Receiver<Event>>, DataplaneState)>,
}

/// The pair, or a word that the test is skipped.
pub fn as_root(test: &str) -> Option<Pair> {
    if nix::unistd::geteuid().is_root() {
        return Some(Pair::new(["userspace"; 2]));
    }
    skip(test, "needs root");
    None
}

/// The pair with so many lanes each, from 1 to 3, or a word that the test is skipped. Each has addresses enough for flows over all of them.
pub fn with_lanes(test: &str, lanes: [u8; 2]) -> Option<Pair> {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "needs root");
        return None;
    }
    let pair = Pair::new(lanes.map(with_so_many));
    flows::many_addresses(&pair);
    Some(pair)
}

/// What the data plane process is told for so many lanes.
///
/// # Panics
/// For another number than 1 to 3.
pub fn with_so_many(lanes: u8) -> &'static str {
    ["userspace 1", "userspace 2", "userspace 3"][usize::from(lanes) - 1]
}

/// The pair with these choices of who encrypts, of which one is the kernel; or a word that the test is skipped.
pub fn with_kernel(test: &str, choices: [&'static str; 2]) -> Option<Pair> {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "needs root");
        return None;
    }
    match isthmus_wg_kernel::WireGuard::open() {
        Ok(_) => Some(Pair::new(choices)),
        Err(error) => {
            skip(test, &format!("this kernel has no WireGuard ({error}); `make test-vm` boots one that has"));
            None
        }
    }
}

/// Says that a test is skipped, past the test runner, which shows nothing of a test that passes.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {why}");
}

/// The tunnel of a state.
///
/// # Panics
/// When the state has none.
pub fn tunnel(state: &DataplaneState) -> &TunnelState {
    &state.tunnels[&TUNNEL.parse::<LinkName>().unwrap()]
}

/// Packets lost, of what ping(8) says at its end.
pub fn ping_loss(output: &str) -> i64 {
    let number = |word: &str| -> Option<i64> {
        let line = output.lines().find(|line| line.contains("packets transmitted"))?;
        let part = line.split(',').find(|part| part.contains(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    match (number("transmitted"), number("received")) {
        (Some(sent), Some(received)) => sent - received,
        _ => -1,
    }
}

impl Pair {
    fn new(choices: [&'static str; 2]) -> Self {
        let (mut east, mut west) = (Side::new("east", choices[0]), Side::new("west", choices[1]));
        east.run(&format!("ip link add wire type veth peer name wire netns {}", west.holder.id()));
        for (side, number) in [(&east, 1), (&west, 2)] {
            side.run(&format!(
                "ip link set lo up; ip addr add 192.0.2.{number}/24 dev wire; ip link set wire up; \
                 ip addr add 10.{number}.0.0/32 dev lo; ip addr add fd0{number}::/128 dev lo"
            ));
        }
        east.connect(false);
        west.connect(false);
        let (east_key, west_key) = (east.state().public_key.unwrap(), west.state().public_key.unwrap());
        let mut pair = Self { east, west, east_key, west_key };
        pair.configure();
        for (side, ours, theirs) in [(&pair.east, 1, 2), (&pair.west, 2, 1)] {
            side.eventually("ip link", |links| links.contains(TUNNEL));
            side.run(&format!(
                "ip link set {TUNNEL} up; ip route add 10.{theirs}.0.0/16 dev {TUNNEL} src 10.{ours}.0.0; \
                 ip -6 route add fd0{theirs}::/64 dev {TUNNEL} src fd0{ours}::"
            ));
        }
        pair
    }

    /// The configuration of east.
    pub fn east_config(&self) -> DataplaneConfig {
        config("west", &self.west_key, 1, 2)
    }

    /// Configures both, with the keys that are known.
    pub fn configure(&mut self) {
        let (east, west) = (config("west", &self.west_key, 1, 2), config("east", &self.east_key, 2, 1));
        self.east.request(&Request::Configure(east));
        self.west.request(&Request::Configure(west));
        self.east.until("the tunnel is told", |state| !state.tunnels.is_empty());
        self.west.until("the tunnel is told", |state| !state.tunnels.is_empty());
    }

    /// Everything on the wire from now on.
    pub fn capture(&self) -> Capture {
        let file = self.west.dir.path().join("wire.pcap");
        let child = self
            .west
            .command(&format!("exec tcpdump -U --immediate-mode -Z root -s 0 -i wire -w {}", file.display()))
            .spawn()
            .unwrap();
        let capture = Capture { child, file };
        let begun = || std::fs::metadata(&capture.file).is_ok_and(|file| file.len() > 0);
        within(PATIENCE, "tcpdump writes", || begun().then_some(()));
        capture
    }
}

/// A running tcpdump(8).
pub struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// The bytes of the capture file.
    pub fn stop(mut self) -> Vec<u8> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        self.child.wait().unwrap();
        std::fs::read(&self.file).unwrap()
    }
}

/// A program that runs beside the test.
pub struct Running(Child);

impl Running {
    /// What it printed, once it has ended.
    pub fn output(mut self) -> String {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.wait().unwrap();
        text
    }
}

impl Side {
    fn new(name: &'static str, encrypts: &'static str) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) of util-linux runs");
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).expect("a namespace");
        let mut side = Self {
            name,
            encrypts,
            holder,
            process: None,
            dir: tempfile::tempdir().unwrap(),
            client: None,
            owner: None,
            events: Mutex::new((None, DataplaneState::default())),
        };
        side.start();
        side
    }

    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        let net = format!("--net=/proc/{}/ns/net", self.holder.id());
        command.args([&net, "sh", "-c", script]).stderr(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Runs a shell command in the namespace, to its end.
    pub fn run(&self, script: &str) -> String {
        self.spawn(script).output()
    }

    /// Starts a shell command in the namespace.
    pub fn spawn(&self, script: &str) -> Running {
        let mut command = self.command(script);
        Running(command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap())
    }

    /// Runs the command until it prints what is wanted.
    pub fn eventually(&self, script: &str, wanted: impl Fn(&str) -> bool) {
        let mut last = String::new();
        within(PATIENCE, script, || {
            last = self.run(&format!("{{ {script}; }} 2>/dev/null"));
            wanted(&last).then_some(())
        });
    }

    /// Where the process keeps its key.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/dataplane.sock")
    }

    /// Starts the data plane process.
    pub fn start(&mut self) {
        let serve = std::env::current_exe().unwrap();
        let serve = serve.parent().and_then(|deps| deps.parent()).unwrap().join("examples/serve");
        let log = self.dir.path().join("log");
        let script = format!(
            "exec {} {} {} {} 2>>{}",
            serve.display(),
            self.socket().display(),
            self.state_dir().display(),
            self.encrypts,
            log.display()
        );
        self.process = Some(self.command(&script).spawn().unwrap());
    }

    /// Kills it, as the kernel does when memory is short.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// The processes that work for the one that was started.
    pub fn workers(&self) -> Vec<i32> {
        children(self.process.as_ref().unwrap())
    }

    /// Kills the one that works, and leaves its parent.
    ///
    /// # Panics
    /// When not exactly one works.
    pub fn kill_worker(&self) -> i32 {
        let workers = self.workers();
        let [worker] = workers[..] else { panic!("workers: {workers:?}") };
        let pid = nix::unistd::Pid::from_raw(worker);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        worker
    }

    /// Asks for a worker that takes over from the one that carries.
    pub fn ask_for_another_worker(&self) {
        let pid = nix::unistd::Pid::from_raw(self.process.as_ref().unwrap().id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    }

    /// Starts another process beside the one that runs, as an upgrade does. The one that ran is returned.
    pub fn start_beside(&mut self) -> Started {
        let before = self.process.take().unwrap();
        self.start();
        Started(before)
    }

    /// Where a worker is asked to hand over.
    pub fn handover_socket(&self) -> PathBuf {
        self.socket().with_file_name("handover.sock")
    }

    /// What the process has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Connects as an agent does, bringing the owner socket or not.
    pub fn connect(&mut self, bring_owner: bool) {
        let brought = if bring_owner { self.owner.take() } else { None };
        let socket = self.socket();
        let (client, owner) = within(PATIENCE, "the data plane answers", || {
            client::connect(&socket, brought.as_ref().map(AsFd::as_fd)).ok()
        });
        let (sender, receiver) = channel();
        client.listen(move |event| _ = sender.send(event)).unwrap();
        self.client = Some(client);
        self.owner = Some(owner);
        *self.events.lock().unwrap() = (Some(receiver), DataplaneState::default());
        self.until("a first state", |state| state.public_key.is_some());
    }

    /// Ends the connection, as an agent that is killed.
    pub fn hang_up(&mut self) {
        self.client = None;
        self.owner = None;
    }

    /// The netlink port of the owner socket: its name as the kernel knows it.
    pub fn owner_port(&self) -> u32 {
        let owner = self.owner.as_ref().unwrap().as_raw_fd();
        nix::sys::socket::getsockname::<nix::sys::socket::NetlinkAddr>(owner).unwrap().pid()
    }

    pub fn request(&mut self, request: &Request) {
        self.client.as_mut().unwrap().request(request).unwrap();
    }

    /// The state that was told last.
    pub fn state(&self) -> DataplaneState {
        self.events.lock().unwrap().1.clone()
    }

    /// The state as it is now, with all that has been told.
    ///
    /// # Panics
    /// When the process has hung up.
    pub fn news(&self) -> DataplaneState {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(event) = events.0.as_ref().unwrap().try_recv() {
            match event {
                Event::Report(Report::State(state)) => events.1 = state,
                Event::Report(Report::Failed(text)) => {
                    _ = writeln!(std::io::stderr(), "{}: {text}", self.name)
                }
                Event::Closed(why) => panic!("{}: the data plane hung up: {why}", self.name),
            }
        }
        events.1.clone()
    }

    /// Waits until a request is answered by a failure; what it says.
    pub fn until_failed(&self, what: &str) -> String {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let wait = deadline.saturating_duration_since(Instant::now());
            match events.0.as_ref().unwrap().recv_timeout(wait) {
                Ok(Event::Report(Report::Failed(text))) => return text,
                Ok(Event::Report(Report::State(_))) => {}
                other => panic!("{}: not within {PATIENCE:?}: {what}: {other:?}", self.name),
            }
        }
    }

    /// Waits until a state says it; that state.
    pub fn until(&self, what: &str, wanted: impl Fn(&DataplaneState) -> bool) -> DataplaneState {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + PATIENCE;
        let mut failed = Vec::new();
        loop {
            let known = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wanted(&events.1)));
            if known.unwrap_or(false) {
                return events.1.clone();
            }
            let wait = deadline.saturating_duration_since(Instant::now());
            match events.0.as_ref().unwrap().recv_timeout(wait) {
                Ok(Event::Report(Report::State(state))) => events.1 = state,
                Ok(Event::Report(Report::Failed(text))) => failed.push(text),
                other => {
                    let log = self.log();
                    panic!(
                        "{}: not within {PATIENCE:?}: {what}; last {:#?}; failures {failed:?}; {other:?}\n{log}",
                        self.name, events.1
                    );
                }
            }
        }
    }
}

/// A data plane process that is no longer a side's own.
pub struct Started(Child);

impl Started {
    /// The processes that work for it.
    pub fn workers(&self) -> Vec<i32> {
        children(&self.0)
    }

    /// Ends it as the container's runtime does; how it ended.
    pub fn end(mut self) -> std::process::ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn children(process: &Child) -> Vec<i32> {
    let pid = process.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        for child in [self.process.as_mut(), Some(&mut self.holder)].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Tries until something comes of it.
///
/// # Panics
/// When nothing does, in time.
pub fn within<T>(patience: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn config(peer: &str, peer_key: &str, ours: u8, theirs: u8) -> DataplaneConfig {
    let device: LinkName = TUNNEL.parse().unwrap();
    let tunnel = Tunnel {
        peer: peer.parse().unwrap(),
        peer_key: peer_key.to_owned(),
        endpoint: Some(format!("192.0.2.{theirs}:{WIREGUARD_PORT}").parse().unwrap()),
        allowed: [format!("10.{theirs}.0.0/16"), format!("fd0{theirs}::/64")]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect(),
        keepalive_s: 15,
        key_slot: KeySlot::First,
        lane: 0,
    };
    let probe = Probe {
        target: format!("10.{theirs}.0.0:{PROBE_PORT}").parse().unwrap(),
        source: Some(format!("10.{ours}.0.0").parse().unwrap()),
        device: Some(device.clone()),
        interval_ms: 250,
        down_after: 3,
        mtu_max: Some(1420),
    };
    DataplaneConfig {
        gateway: true,
        listen_port: WIREGUARD_PORT,
        key_generation: 0,
        tunnels: BTreeMap::from([(device, tunnel)]),
        probes: BTreeMap::from([("tunnel".to_owned(), probe)]),
        respond_on: [format!("10.{ours}.0.0"), format!("192.0.2.{ours}")]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect(),
    }
}
