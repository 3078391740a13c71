// SPDX-License-Identifier: Apache-2.0
//! One end of a tunnel: a namespace, a program that serves a device in it, and the device's keys.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use isthmus_testkit::{Lab, Namespace, within};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const PORT: u16 = 51820;

/// Sockets of all namespaces lie in one directory, so names are used once.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A program that makes a device and is configured by wg(8).
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    path: PathBuf,
    arguments: &'static [&'static str],
}

impl Program {
    pub(crate) fn ours() -> Self {
        Self { name: "isthmus-wg", path: isthmus_wg(), arguments: &["--foreground"] }
    }

    /// Without some of what the kernel can do at once.
    pub(crate) fn ours_with(arguments: &'static [&'static str]) -> Self {
        Self { arguments, ..Self::ours() }
    }

    pub(crate) fn other(name: &'static str, path: PathBuf, arguments: &'static [&'static str]) -> Self {
        Self { name, path, arguments }
    }
}

/// Beside the test, in the virtual machine, else where cargo built it.
fn isthmus_wg() -> PathBuf {
    let beside = std::env::current_exe().expect("a path").with_file_name("isthmus-wg");
    if beside.exists() { beside } else { env!("CARGO_BIN_EXE_isthmus-wg").into() }
}

pub(crate) struct Side {
    pub(crate) host: Namespace,
    /// Of the device.
    pub(crate) name: String,
    pub(crate) public_key: String,
    key: tempfile::NamedTempFile,
    /// What the program prints; kept while it may print.
    _printed: tempfile::NamedTempFile,
    process: Child,
}

impl Side {
    /// Starts the program, and waits until wg(8) can speak to it. The device has a key, and listens if `port` is not 0.
    pub(crate) fn new(host: Namespace, program: &Program, port: u16) -> Self {
        let name = format!("w{}n{}", std::process::id() % 1_000_000, NEXT.fetch_add(1, Ordering::Relaxed));
        let printed = tempfile::NamedTempFile::new().unwrap();
        let script = format!("exec \"$0\" \"$@\" > {} 2>&1", printed.path().display());
        let path = program.path.display().to_string();
        let mut arguments = vec!["-c", &script, &path];
        arguments.extend(program.arguments);
        arguments.push(&name);
        let process = host.spawn("sh", &arguments).unwrap();
        let key = tempfile::NamedTempFile::new().unwrap();
        let path = key.path().display();
        let public_key = host.sh(&format!("wg genkey > {path}; wg pubkey < {path}")).trim().to_owned();
        let set = format!("wg set {name} private-key {path} listen-port {port}");
        within(PATIENCE, || {
            host.try_sh(&set).map_err(|error| {
                let printed = std::fs::read_to_string(printed.path()).unwrap_or_default();
                format!("{}: {error:#}: {printed}", program.name)
            })
        });
        Self { host, name, public_key, key, _printed: printed, process }
    }

    pub(crate) fn key_file(&self) -> &Path {
        self.key.path()
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn process(&mut self) -> &mut Child {
        &mut self.process
    }

    /// Sets a peer: `rest` as wg(8) has it.
    pub(crate) fn peer(&self, peer: &Self, rest: &str) {
        self.host.sh(&format!("wg set {} peer {} {rest}", self.name, peer.public_key));
    }

    /// Gives the device addresses, with prefix lengths, and brings it up.
    pub(crate) fn up(&self, addresses: &[&str], mtu: u32) {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            self.host.sh(&format!("ip addr add {address} dev {} {nodad}", self.name));
        }
        self.host.sh(&format!("ip link set {} mtu {mtu} up", self.name));
    }

    /// One field of `wg show`, of the only peer.
    pub(crate) fn shown(&self, field: &str) -> String {
        let line = self.host.sh(&format!("wg show {} {field}", self.name));
        line.split_once('\t').map(|(_, rest)| rest.trim().to_owned()).unwrap_or_default()
    }

    /// Pings until an answer comes, in the time that a handshake may take.
    pub(crate) fn reaches(&self, target: &str) {
        within(PATIENCE, || self.host.ping(target));
    }

    /// Pings; how many of them came back. After the last one ping waits for the interval (`-i`) or twice the longest round trip, whatever
    /// `-W` says: several at once (`-l`) with a long interval lose none to a machine that has other work.
    pub(crate) fn ping(&self, target: &str, options: &str) -> String {
        self.host.sh(&format!("ping -n -q {options} {target} || true"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        format!("/var/run/wireguard/{}.sock", self.name).into()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.socket());
    }
}

/// Two hosts with a cable between them.
pub(crate) fn hosts(lab: &Lab) -> [Namespace; 2] {
    let hosts = [lab.namespace("east"), lab.namespace("west")];
    lab.cable(
        (&hosts[0], "wire", &["192.0.2.1/24", "fd00:2::1/64"]),
        (&hosts[1], "wire", &["192.0.2.2/24", "fd00:2::2/64"]),
    );
    hosts
}

/// Two programs that know each other: 10.8.0.1 and fd08::1 in the east, .2 and ::2 in the west. East begins.
pub(crate) fn pair(lab: &Lab, east: &Program, west: &Program, mtu: u32) -> [Side; 2] {
    let [a, b] = hosts(lab);
    let sides = [Side::new(a, east, PORT), Side::new(b, west, PORT)];
    for (number, side) in sides.iter().enumerate() {
        let (own, other) = (number + 1, 2 - number);
        side.peer(&sides[1 - number], &format!("allowed-ips 10.8.0.{other}/32,fd08::{other}/128"));
        side.up(&[&format!("10.8.0.{own}/24"), &format!("fd08::{own}/64")], mtu);
    }
    sides[0].peer(&sides[1], &format!("endpoint 192.0.2.2:{PORT}"));
    sides
}

/// Runs the program to its end and gives what it printed on both outputs.
pub(crate) fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(isthmus_wg());
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}
