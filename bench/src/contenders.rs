// SPDX-License-Identifier: Apache-2.0
//! Two hosts with a wire between them, and one of the tunnels over it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use isthmus_dataplane::client::{self, Client, Event};
use isthmus_model::dataplane::{DataplaneConfig, KeySlot, Report, Tunnel};
use isthmus_model::ids::LinkName;
use isthmus_model::ownership::WIREGUARD_PORT;
use isthmus_testkit::{Lab, Namespace};
use tempfile::TempDir;

use crate::cni::{until, until_within};
use crate::tools;

const OUR_DEVICE: &str = "iw-00000000beac";
/// MTU of every tunnel: what IPv6 over Ethernet leaves.
const MTU_BYTES: u16 = 1420;
/// How long another program may take until wg(8) can speak to it.
const SOCKET_PATIENCE: Duration = Duration::from_secs(60);

/// What carries the packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// Nothing: the bare wire.
    Wire,
    /// Our data plane process.
    Isthmus,
    /// Another WireGuard program that makes a device and is configured by wg(8).
    Wireguard { program: PathBuf, arguments: Vec<&'static str>, device: &'static str },
}

/// Two hosts, joined.
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) hosts: [Namespace; 2],
    /// Where the second host is reached.
    pub(crate) target: &'static str,
    /// One tunnel process on each host, if any.
    pub(crate) processes: Vec<Child>,
    sockets: Vec<PathBuf>,
    /// Names of the devices that wg(8) configures.
    devices: Vec<String>,
    /// Kept: the data plane process goes on when they close, but a closed connection would be news in its log.
    _clients: Vec<Client>,
    _directories: Vec<TempDir>,
}

impl Pair {
    /// Sets the hosts up and waits until the second answers the first.
    ///
    /// # Errors
    /// A program does not start, or no packet comes through.
    pub(crate) fn new(lab: &Lab, name: &str, carrier: &Carrier) -> Result<Self> {
        let hosts = [lab.namespace("east"), lab.namespace("west")];
        lab.cable(
            (&hosts[0], "wire", &["192.0.2.1/24", "fd00:2::1/64"]),
            (&hosts[1], "wire", &["192.0.2.2/24", "fd00:2::2/64"]),
        );
        let mut pair = Self {
            name: name.to_owned(),
            hosts,
            target: if *carrier == Carrier::Wire { "192.0.2.2" } else { "10.200.0.2" },
            processes: Vec::new(),
            sockets: Vec::new(),
            devices: Vec::new(),
            _clients: Vec::new(),
            _directories: Vec::new(),
        };
        match carrier {
            Carrier::Wire => {}
            Carrier::Isthmus => pair.start_isthmus()?,
            Carrier::Wireguard { program, arguments, device } => {
                pair.start_wireguard(program, arguments, device)?;
            }
        }
        until(|| pair.hosts[0].ping(pair.target))
            .with_context(|| format!("{name}: nothing comes through"))?;
        Ok(pair)
    }

    fn start_isthmus(&mut self) -> Result<()> {
        let program = tools::ours("isthmus-dataplane")?.display().to_string();
        let device: LinkName = OUR_DEVICE.parse()?;
        let mut sides = Vec::new();
        for host in &self.hosts {
            let directory = tempfile::tempdir()?;
            let socket = directory.path().join("run/dataplane.sock");
            let state = directory.path().display().to_string();
            let arguments = ["--socket", &socket.display().to_string(), "--state-dir", &state];
            self.processes.push(host.spawn(&program, &arguments)?);
            let mut connected = None;
            until(|| {
                connected = Some(client::connect(&socket, None)?);
                Ok(())
            })?;
            let (client, _owner) = connected.context("connected")?;
            let (events, heard) = channel();
            client.listen(move |event| drop(events.send(event)))?;
            sides.push((client, public_key(&heard)?));
            self._directories.push(directory);
        }
        let keys: Vec<String> = sides.iter().map(|(_, key)| key.clone()).collect();
        for (number, (mut client, _)) in sides.into_iter().enumerate() {
            client.configure(&config(&device, number, &keys[1 - number])?)?;
            self._clients.push(client);
        }
        for number in 0..2 {
            let host = &self.hosts[number];
            until(|| host.try_sh(&format!("ip link show {OUR_DEVICE}")).map(drop))?;
            self.address(number, OUR_DEVICE)?;
        }
        Ok(())
    }

    fn start_wireguard(&mut self, program: &Path, arguments: &[&str], device: &str) -> Result<()> {
        let program = program.display().to_string();
        let directory = tempfile::tempdir()?;
        let mut names = Vec::new();
        for number in 0..2 {
            let host = &self.hosts[number];
            // The names differ: the programs' sockets lie in one directory, whatever the network namespace.
            let name = format!("{device}{number}p{}", std::process::id() % 100_000);
            let mut line = arguments.to_vec();
            line.push(&name);
            let mut process = host.spawn(&program, &line)?;
            drain(&mut process);
            self.processes.push(process);
            self.sockets.push(format!("/var/run/wireguard/{name}.sock").into());
            let key = directory.path().join(number.to_string()).display().to_string();
            host.try_sh(&format!("umask 077; wg genkey > {key}; wg pubkey < {key} > {key}.pub"))?;
            names.push(name);
        }
        self.devices.clone_from(&names);
        for (number, name) in names.iter().enumerate() {
            let other = 1 - number;
            let key = directory.path().join(number.to_string()).display().to_string();
            let peer = std::fs::read_to_string(directory.path().join(format!("{other}.pub")))?;
            let line = format!(
                "wg set {name} listen-port {WIREGUARD_PORT} private-key {key} peer {} allowed-ips 10.200.0.{}/32 endpoint 192.0.2.{}:{WIREGUARD_PORT}",
                peer.trim(),
                other + 1,
                other + 1
            );
            until_within(SOCKET_PATIENCE, || self.hosts[number].try_sh(&line).map(drop)).with_context(
                || format!("{program}: wg(8) could not set {name} for {} s", SOCKET_PATIENCE.as_secs()),
            )?;
            self.address(number, name)?;
        }
        Ok(())
    }

    /// Gives the host its address inside the tunnel and a way to the other.
    fn address(&self, number: usize, device: &str) -> Result<()> {
        let (own, other) = (number + 1, 2 - number);
        self.hosts[number]
            .try_sh(&format!(
                "ip addr add 10.200.0.{own}/32 dev {device}; ip link set {device} mtu {MTU_BYTES} up; ip route add 10.200.0.{other}/32 dev {device}"
            ))
            .map(drop)
    }

    /// Gives both devices so many peers more, which never answer.
    pub(crate) fn add_peers(&self, count: u32) -> Result<()> {
        for (number, name) in self.devices.iter().enumerate() {
            let file = tempfile::NamedTempFile::new()?;
            // Any 32 bytes are a public key.
            let peers = format!(
                "for i in $(seq {count}); do echo '[Peer]'; printf 'PublicKey = '; printf 'peer-%027d' $i | base64 -w0; \
                 echo; echo \"AllowedIPs = 10.$((100 + i / 256)).$((i % 256)).0/24\"; done > {}",
                file.path().display()
            );
            self.hosts[number].try_sh(&peers)?;
            self.hosts[number].try_sh(&format!("wg addconf {name} {}", file.path().display()))?;
        }
        Ok(())
    }

    /// Process times so far, seconds of CPU, of all tunnel processes together.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let all = self.processes.iter().flat_map(|process| with_children(process.id()));
        all.filter_map(cpu_seconds).sum()
    }

    /// Resident memory of one tunnel process, with those that it started, MB; the larger of the two.
    pub(crate) fn resident_mb(&self) -> f64 {
        let sum = |process: u32| with_children(process).into_iter().map(resident_kb).sum::<Option<u64>>();
        let all = self.processes.iter().filter_map(|process| sum(process.id()));
        all.max().map_or(f64::NAN, |kb| kb as f64 / 1e3)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // Ended already is fine.
            let _ = process.kill();
            let _ = process.wait();
        }
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn config(device: &LinkName, number: usize, peer_key: &str) -> Result<DataplaneConfig> {
    let other = 2 - number;
    let tunnel = Tunnel {
        peer: "bench".parse()?,
        peer_key: peer_key.to_owned(),
        endpoint: Some(format!("192.0.2.{other}:{WIREGUARD_PORT}").parse()?),
        allowed: [format!("10.200.0.{other}/32").parse()?].into(),
        keepalive_s: 15,
        key_slot: KeySlot::First,
        lane: 0,
    };
    Ok(DataplaneConfig {
        gateway: true,
        listen_port: WIREGUARD_PORT,
        tunnels: BTreeMap::from([(device.clone(), tunnel)]),
        ..DataplaneConfig::default()
    })
}

fn public_key(heard: &Receiver<Event>) -> Result<String> {
    loop {
        match heard.recv_timeout(Duration::from_secs(10)).context("the data plane says nothing")? {
            Event::Report(Report::State(state)) => {
                if let Some(key) = state.public_key {
                    return Ok(key);
                }
            }
            Event::Report(Report::Failed(_)) => {}
            Event::Closed(reason) => anyhow::bail!("the data plane closed the connection: {reason}"),
        }
    }
}

/// Reads and forgets what a program prints, so that it never waits for a reader.
pub(crate) fn drain(process: &mut Child) {
    if let Some(mut printed) = process.stdout.take() {
        std::thread::spawn(move || std::io::copy(&mut printed, &mut std::io::sink()));
    }
}

/// Ours has a parent that keeps what must survive, and a worker.
fn with_children(process: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    let children = children.unwrap_or_default();
    std::iter::once(process).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
}

fn cpu_seconds(process: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some((user + system) / ticks as f64)
}

fn resident_kb(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
