// SPDX-License-Identifier: Apache-2.0
//! A node whose agent may be killed at any time: what the agent, its journal and the kernel hold of addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use isthmus_cni::plugin;
use isthmus_cni::wire::Request;
use isthmus_testkit::{Lab, Namespace};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_netns-agent");
pub(crate) const IFNAME: &str = "eth0";

/// A node of a test: its namespace, its state on disk and its data plane process.
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    directory: TempDir,
    dataplane: Process,
}

/// An empty directory. In memory: a process that is killed leaves on any file system what it wrote, and here no disk is
/// waited for.
pub(crate) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory")
}

/// Ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Addresses by container.
pub(crate) type Held = BTreeMap<String, Vec<String>>;

/// What the agent says that its ledger holds.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) held: Held,
    pub(crate) links: BTreeSet<String>,
    /// Addresses of the blocks that cannot be given.
    pub(crate) in_use: u64,
}

impl Node {
    pub(crate) fn new(lab: &Lab) -> Self {
        Self::on(lab, directory(), |_| {})
    }

    /// A node with many addresses.
    pub(crate) fn wide(lab: &Lab) -> Self {
        let node = Self::new(lab);
        fs::write(node.path("wide"), "").expect("a file");
        node
    }

    /// A node of this state; `prepare` runs in its namespace before anything is started.
    pub(crate) fn on(lab: &Lab, directory: TempDir, prepare: impl FnOnce(&Namespace)) -> Self {
        let namespace = lab.namespace("node");
        namespace
            .sh("ip link add eth0 type veth peer name cable; ip addr add 172.18.0.1/24 dev eth0; ip link set eth0 up; ip link set cable up");
        fs::create_dir_all(directory.path().join("state")).expect("a directory");
        prepare(&namespace);
        let dataplane = Process(spawn(&namespace, "dataplane", directory.path()));
        Self { namespace, directory, dataplane }
    }

    /// The node is switched off: nothing but what is on disk stays.
    pub(crate) fn power_off(self) -> TempDir {
        self.directory
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An agent that waits to be told to start.
    pub(crate) fn agent(&self) -> Agent {
        let mut child = spawn(&self.namespace, "agent", self.directory.path());
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Agent { child, pipes: Pipes { input, output: BufReader::new(output) } }
    }

    /// An agent that can add pods.
    pub(crate) fn started_agent(&self) -> Agent {
        let mut agent = self.agent();
        agent.pipes.start().expect("the agent starts");
        agent
    }

    pub(crate) fn caller(&self) -> Caller {
        Caller { socket: self.path("run/cni.sock") }
    }

    /// What the journal holds, read as its description says and not by the agent's code.
    pub(crate) fn journal(&self) -> Result<Held, String> {
        let path = self.path("state/journal/addresses");
        let text = self.namespace.run(move || fs::read_to_string(path));
        let mut held = Held::new();
        for line in text.unwrap_or_default().lines() {
            let record = line.split_once(' ').and_then(|(_, record)| serde_json::from_str(record).ok());
            let record: Value =
                record.ok_or_else(|| format!("a line of the journal is damaged: {line:?}"))?;
            let container = |record: &Value| record["key"]["container"].as_str().unwrap_or("?").to_owned();
            if let Some(given) = record.get("Given") {
                held.insert(container(given), texts(&given["to"]["addresses"]));
            }
            if let Some(released) = record.get("Released") {
                held.remove(&container(released));
            }
        }
        Ok(held)
    }

    /// What the data plane process takes up.
    pub(crate) fn dataplane_size(&self) -> Size {
        Size::of(self.dataplane.0.id())
    }

    /// Host ends of pods' links, whatever their alias.
    pub(crate) fn links(&self) -> BTreeSet<String> {
        let pod = |name: &String| name.starts_with(isthmus_model::ownership::POD_LINK_PREFIX);
        links(&self.namespace).into_iter().filter(pod).collect()
    }
}

/// What a process takes up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) memory_kib: u64,
    pub(crate) descriptors: usize,
}

impl Size {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory_kib = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").count();
        Self { memory_kib: memory_kib.expect("a size in KiB"), descriptors }
    }
}

/// Names of a namespace's links.
pub(crate) fn links(namespace: &Namespace) -> BTreeSet<String> {
    let table = fs::read_to_string(format!("/proc/{}/net/dev", namespace.holder())).expect("a namespace");
    let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    names.collect()
}

/// On the thread that holds the namespace, so that whoever traces the process is not its parent.
fn spawn(namespace: &Namespace, what: &'static str, directory: &Path) -> Child {
    let directory = directory.to_owned();
    let spawned = namespace.run(move || {
        Command::new(PROGRAM)
            .arg(what)
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
    });
    spawned.unwrap_or_else(|error| panic!("{PROGRAM} {what}: {error}"))
}

/// An agent. It ends with its pipes.
pub(crate) struct Agent {
    child: Child,
    pub(crate) pipes: Pipes,
}

/// How a test talks to its agent.
pub(crate) struct Pipes {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Pipes {
    /// Starts the agent; returns once it can add pods, or with an error if it is killed before.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        self.ask().map(drop)
    }

    fn ask(&mut self) -> Result<String, String> {
        self.input.write_all(b"\n").map_err(|error| error.to_string())?;
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|error| error.to_string())?;
        if line.is_empty() { Err("the agent ended".to_owned()) } else { Ok(line) }
    }
}

impl Agent {
    /// What it holds in memory.
    pub(crate) fn ledger(&mut self) -> Result<Ledger, String> {
        let line = self.pipes.ask()?;
        let seen: Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line:?}"))?;
        let all = seen["attachments"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        Ok(Ledger {
            held: all
                .iter()
                .map(|it| (text(&it["key"]["container"]), texts(&it["to"]["addresses"])))
                .collect(),
            links: all.iter().map(|it| text(&it["to"]["link"])).collect(),
            in_use: seen["in_use"].as_u64().unwrap_or_default(),
        })
    }

    /// For who will kill it, and wait for its end.
    pub(crate) fn given_away(self) -> (Pid, Pipes) {
        (Pid::from_raw(self.child.id() as i32), self.pipes)
    }

    /// What it takes up.
    pub(crate) fn size(&self) -> Size {
        Size::of(self.child.id())
    }

    /// Has it end by itself.
    pub(crate) fn stop(self) {
        let Self { mut child, pipes } = self;
        drop(pipes);
        let ended = child.wait().expect("the agent is ours");
        assert!(ended.success(), "an agent that was told to end ended with {ended}");
    }

    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The runtime's way to the agent: the code of the plugin.
#[derive(Clone)]
pub(crate) struct Caller {
    socket: PathBuf,
}

/// What a call ended with: what it printed if it went well, what it printed if not.
pub(crate) type Answer = Result<Value, Value>;

impl Caller {
    pub(crate) fn add(&self, container: &str, pod: &Path) -> Answer {
        self.call("ADD", container, Some(pod), json!({}))
    }

    pub(crate) fn del(&self, container: &str) -> Answer {
        self.call("DEL", container, None, json!({}))
    }

    pub(crate) fn check(&self, container: &str, pod: &Path, result: &Value) -> Answer {
        self.call("CHECK", container, Some(pod), json!({ "prevResult": result }))
    }

    pub(crate) fn gc<'a>(&self, kept: impl IntoIterator<Item = &'a String>) -> Answer {
        let valid = kept.into_iter().map(|container| json!({ "containerID": container, "ifname": IFNAME }));
        let valid: Vec<Value> = valid.collect();
        self.call("GC", "", None, json!({ "cni.dev/valid-attachments": valid }))
    }

    pub(crate) fn status(&self) -> Answer {
        self.call("STATUS", "", None, json!({}))
    }

    /// ADD by a program that is killed before it has printed the result, which only the test sees.
    pub(crate) fn add_unprinted(&self, container: &str, pod: &Path) -> Value {
        let request = request("ADD", container, Some(pod), json!({}));
        let killed = |_: &[u8]| Err(io::ErrorKind::BrokenPipe.into());
        let (outcome, _) = plugin::run_and(&request, &self.socket, killed);
        serde_json::from_slice(&outcome.stdout).unwrap_or(Value::Null)
    }

    fn call(&self, command: &str, container: &str, pod: Option<&Path>, more: Value) -> Answer {
        let outcome = plugin::run(&request(command, container, pod, more), &self.socket);
        let printed = serde_json::from_slice(&outcome.stdout).unwrap_or(Value::Null);
        if outcome.exit_code == 0 { Ok(printed) } else { Err(printed) }
    }
}

fn request(command: &str, container: &str, pod: Option<&Path>, more: Value) -> Request {
    let mut config = json!({ "cniVersion": "1.1.0", "name": "isthmus", "type": "isthmus-cni" });
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    let netns = pod.map(|pod| pod.display().to_string()).unwrap_or_default();
    let arguments = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={container}");
    let variables = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", container),
        ("CNI_IFNAME", IFNAME),
        ("CNI_NETNS", &netns),
        ("CNI_ARGS", &arguments),
    ];
    let env = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Request { env, stdin: config.to_string().into_bytes() }
}

/// The addresses in a result, without their prefix lengths.
pub(crate) fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let bare = |ip: &Value| ip["address"].as_str().and_then(|net| net.split('/').next()).map(str::to_owned);
    ips.filter_map(bare).collect()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
}
