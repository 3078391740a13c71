// SPDX-License-Identifier: Apache-2.0
//! Latency of ADD and DEL: each plugin is started as a container runtime starts it, with the same pods' namespaces.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use isthmus_kernel::netns;
use isthmus_testkit::{Lab, Namespace};
use serde_json::json;
use tempfile::TempDir;
use xtask::on_node;
use xtask::places::Places;

use crate::agent::{CNI_SOCKET, DATAPLANE_SOCKET, NODE_ADDRESS};
use crate::report::table;
use crate::stats::{in_turn, median, percentile, shown};
use crate::tools;

/// Pods added and deleted in one turn.
const PODS: usize = 32;
/// Rounds at least, for 512 calls of each kind: what the slowest of a hundred takes cannot be told from fewer.
const ROUNDS_LEAST: usize = 16;
/// Calls under way at once.
const CONCURRENCY: [usize; 3] = [1, 8, 32];
const DEBIAN_PLUGINS: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(20);

/// A plugin, with a node of its own to work on.
struct Contender {
    name: &'static str,
    node: Namespace,
    program: PathBuf,
    /// Where it finds the plugin for addresses.
    path: PathBuf,
    config: String,
    socket: PathBuf,
    directory: TempDir,
    processes: Vec<Child>,
}

/// Seconds that each call took.
#[derive(Clone, Default)]
struct Samples {
    adds: Vec<f64>,
    dels: Vec<f64>,
    /// ADD and DEL of a pod, so many a second, in each turn; until nothing of the pods is left.
    pairs_per_s: Vec<f64>,
}

/// Measures and returns the tables.
///
/// # Errors
/// A plugin fails, or Debian's are not installed.
pub(crate) fn measure(lab: &Lab, places: &Places, rounds: usize) -> Result<String> {
    tools::need(&["containernetworking-plugins", "iproute2"])?;
    let rounds = rounds.max(ROUNDS_LEAST);
    let (debian, ours) = (PathBuf::from(DEBIAN_PLUGINS), linked_plugins(places)?);
    let shim = on_node::build(places, "isthmus-cni")?.program;
    let bridge = json!({ "bridge": "bench0", "isGateway": true });
    let contenders = [
        Contender::isthmus(lab, "isthmus-cni", &shim, false)?,
        Contender::isthmus(lab, "isthmus-cni, IPv4 and IPv6", &shim, true)?,
        Contender::plugin(lab, "ptp", &debian, "ptp", json!({}))?,
        Contender::plugin(lab, "bridge", &debian, "bridge", bridge.clone())?,
        Contender::plugin(lab, "isthmus-plugins, ptp", ours.path(), "ptp", json!({}))?,
        Contender::plugin(lab, "isthmus-plugins, bridge", ours.path(), "bridge", bridge)?,
    ];
    let pods: Vec<Namespace> = (0..PODS).map(|_| lab.namespace("pod")).collect();
    for contender in &contenders {
        // The first call makes what later ones find: a bridge, a directory, pages in memory.
        contender.turn(&pods[..1], 1, "warm")?;
    }
    let mut text = format!(
        "Debian's plugins {} with host-local, IPv4 only, and isthmus-plugins with the same configuration; isthmus-cni with \
         anti-spoofing and masquerading, against an agent without Kubernetes. {} calls of each kind for every row. Ratios are to \
         Debian's ptp.\n",
        tools::debian_version("containernetworking-plugins"),
        rounds * PODS,
    );
    for concurrency in CONCURRENCY {
        let mut samples = vec![Samples::default(); contenders.len()];
        for round in 0..rounds {
            for turn in 0..contenders.len() {
                let index = in_turn(round, turn, contenders.len());
                eprintln!("  cni: {concurrency} at once, round {}, {}", round + 1, contenders[index].name);
                let taken = contenders[index].turn(&pods, concurrency, &format!("r{round}c{concurrency}"))?;
                samples[index].adds.extend(taken.adds);
                samples[index].dels.extend(taken.dels);
                samples[index].pairs_per_s.extend(taken.pairs_per_s);
            }
        }
        text += &format!("\n{concurrency} at once:\n\n{}", rows(&contenders, &samples));
    }
    Ok(text)
}

fn rows(contenders: &[Contender], samples: &[Samples]) -> String {
    let of = |name: &str| contenders.iter().position(|contender| contender.name == name);
    let ptp = of("ptp")
        .map_or((f64::NAN, f64::NAN), |index| (median(&samples[index].adds), median(&samples[index].dels)));
    let ms = |values: &[f64], share: f64| shown(percentile(values, share) * 1e3);
    let rows = contenders.iter().zip(samples).map(|(contender, taken)| {
        vec![
            contender.name.to_owned(),
            ms(&taken.adds, 0.5),
            ms(&taken.adds, 0.99),
            ms(&taken.dels, 0.5),
            ms(&taken.dels, 0.99),
            format!("{}x", shown(median(&taken.adds) / ptp.0)),
            format!("{}x", shown(median(&taken.dels) / ptp.1)),
            shown(median(&taken.pairs_per_s)),
        ]
    });
    let rows: Vec<_> = rows.collect();
    table(
        &[
            "plugin",
            "ADD p50, ms",
            "ADD p99, ms",
            "DEL p50, ms",
            "DEL p99, ms",
            "ADD : ptp",
            "DEL : ptp",
            "ADD and DEL, pods/s",
        ],
        &rows,
    )
}

/// A directory with a link for each plugin of ours.
fn linked_plugins(places: &Places) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    let program = on_node::build(places, "isthmus-plugins")?.program;
    for plugin in ["bridge", "ptp", "host-local"] {
        std::os::unix::fs::symlink(&program, directory.path().join(plugin))?;
    }
    Ok(directory)
}

impl Contender {
    fn isthmus(lab: &Lab, name: &'static str, shim: &Path, dual_stack: bool) -> Result<Self> {
        let (node, outside) = (lab.namespace("node"), lab.namespace("outside"));
        let address = format!("{NODE_ADDRESS}/24");
        lab.cable((&node, "eth0", &[&address]), (&outside, "eth0", &["172.18.0.254/24"]));
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name).display().to_string();
        let dataplane = tools::ours("isthmus-dataplane")?.display().to_string();
        let here = std::env::current_exe()?.display().to_string();
        let root = directory.path().display().to_string();
        let mut line = vec!["agent", &root];
        line.extend(dual_stack.then_some("--dual-stack"));
        let processes = vec![
            node.spawn(&dataplane, &["--socket", &path(DATAPLANE_SOCKET), "--state-dir", &root])?,
            node.spawn(&here, &line)?,
        ];
        let contender = Self {
            name,
            node,
            program: shim.to_owned(),
            path: PathBuf::new(),
            config: json!({ "cniVersion": "1.1.0", "name": "isthmus", "type": "isthmus-cni" }).to_string(),
            socket: directory.path().join(CNI_SOCKET),
            directory,
            processes,
        };
        contender.until_ready()?;
        Ok(contender)
    }

    /// A plugin in the directory, with host-local of the same.
    fn plugin(
        lab: &Lab,
        name: &'static str,
        path: &Path,
        plugin: &str,
        options: serde_json::Value,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut config = json!({
            "cniVersion": "1.0.0",
            "name": format!("bench-{plugin}"),
            "type": plugin,
            "ipam": {
                "type": "host-local",
                "dataDir": directory.path().join("ipam"),
                "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        if let (Some(to), Some(from)) = (config.as_object_mut(), options.as_object()) {
            to.extend(from.clone());
        }
        Ok(Self {
            name,
            node: lab.namespace("node"),
            program: path.join(plugin),
            path: path.to_owned(),
            config: config.to_string(),
            socket: PathBuf::new(),
            directory,
            processes: Vec::new(),
        })
    }

    /// Adds all pods, then deletes them, each call timed by itself.
    fn turn(&self, pods: &[Namespace], concurrency: usize, prefix: &str) -> Result<Samples> {
        let started = Instant::now();
        let adds = self.calls("ADD", pods, concurrency, prefix)?;
        let dels = self.calls("DEL", pods, concurrency, prefix)?;
        // What a plugin leaves to be done after its answer is not to be in another's way.
        self.until_no_links()?;
        let pairs_per_s = vec![pods.len() as f64 / started.elapsed().as_secs_f64()];
        Ok(Samples { adds, dels, pairs_per_s })
    }

    fn calls(&self, command: &str, pods: &[Namespace], concurrency: usize, prefix: &str) -> Result<Vec<f64>> {
        let next = AtomicUsize::new(0);
        let taken = Mutex::new(Vec::new());
        let node = self.node.path();
        let work = || -> Result<()> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(pod) = pods.get(index) else { return Ok(()) };
                let seconds = self.call(command, &format!("{prefix}-{index}"), Some(pod))?;
                taken.lock().unwrap_or_else(PoisonError::into_inner).push(seconds);
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..concurrency).map(|_| scope.spawn(|| netns::run(&node, work))).collect();
            for worker in workers {
                worker.join().map_err(|_| anyhow!("a worker panicked"))???;
            }
            anyhow::Ok(())
        })?;
        Ok(taken.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// One call, in the calling thread's namespace: seconds from the start of the process to its end.
    fn call(&self, command: &str, container: &str, pod: Option<&Namespace>) -> Result<f64> {
        let netns = pod.map(Namespace::path).unwrap_or_default();
        let started = Instant::now();
        let mut child = Command::new(&self.program)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={container}"))
            .env("CNI_PATH", &self.path)
            .env("ISTHMUS_CNI_SOCKET", &self.socket)
            // Debian's bridge and ptp plugins look for iptables here, not for masquerading only.
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        child.stdin.take().context("stdin")?.write_all(self.config.as_bytes())?;
        let output = child.wait_with_output()?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(
            output.status.success(),
            "{}: {command} {container}: {}{}",
            self.name,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(seconds)
    }

    fn until_ready(&self) -> Result<()> {
        let node = self.node.path();
        until(|| netns::run(&node, || self.call("STATUS", "", None))?.map(drop))
    }

    fn until_no_links(&self) -> Result<()> {
        until(|| {
            let links = self.node.try_sh("ip -o link show type veth")?;
            let left = links.lines().filter(|line| !line.contains(": eth0")).count();
            if left > 0 {
                bail!("{}: {left} links of deleted pods are still there", self.name)
            }
            Ok(())
        })
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // Ended already is fine.
            let _ = process.kill();
            let _ = process.wait();
        }
        // Named, so that it is clear what lives as long as the processes that use it.
        let _ = &self.directory;
    }
}

/// Tries until it succeeds, or for [`PATIENCE`].
pub(crate) fn until(attempt: impl FnMut() -> Result<()>) -> Result<()> {
    until_within(PATIENCE, attempt)
}

/// Tries until it succeeds, or for that long.
pub(crate) fn until_within(patience: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
