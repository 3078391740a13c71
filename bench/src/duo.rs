// SPDX-License-Identifier: Apache-2.0
//! On the lab `duo`, as it runs: how long an export takes to be a name in the other cluster, and what our processes keep in memory.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::places::Places;
use xtask::run::output;

use crate::report::table;
use crate::stats::{median, percentile, shown};

const NAMESPACE: &str = "shop";
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two queries for a name that is not there yet.
const BETWEEN_QUERIES: Duration = Duration::from_millis(50);
const NODES: [&str; 6] = [
    "east/control-plane",
    "east/worker",
    "east/worker2",
    "west/control-plane",
    "west/worker",
    "west/worker2",
];
/// Our processes, by the 15 letters of a name that the kernel keeps.
const PROCESSES: [(&str, &str, f64); 3] = [
    ("isthmus-agent", "agent", 40.0),
    ("isthmus-dataplan", "data plane process", f64::NAN),
    ("isthmus-operator", "operator", 60.0),
];

/// Measures what the lab allows, and says what it does not.
///
/// # Errors
/// The lab is up and peered, but an export never arrives.
pub(crate) fn measure(places: &Places, rounds: usize) -> Result<String> {
    let duo = Duo { wrapper: places.repo.join("lab") };
    if !places.kubeconfig().exists() {
        return Ok("Lab not up: `make demo` brings it up, then `make bench` measures here.\n".to_owned());
    }
    let imports = match duo.peered() {
        Ok(()) => duo.imports(rounds)?,
        Err(error) => {
            format!("Import latency not measured: the clusters of the lab are not peered ({error:#}).\n")
        }
    };
    Ok(format!("{imports}\n{}", duo.memory()))
}

struct Duo {
    wrapper: PathBuf,
}

impl Duo {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.wrapper);
        command.arg("exec").arg("--").args(words);
        command
    }

    fn kubectl(&self, cluster: &str, words: &[&str]) -> Result<String> {
        let line = ["kubectl", "--context", cluster, "--namespace", NAMESPACE];
        output(&mut self.command(&[&line[..], words].concat()))
    }

    fn peered(&self) -> Result<()> {
        for cluster in ["east", "west"] {
            let list: Value =
                serde_json::from_str(&self.kubectl(cluster, &["get", "clusterpeerings", "-o", "json"])?)?;
            let conditions = list["items"][0]["status"]["conditions"].as_array();
            let ready = conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            ensure!(ready, "no ClusterPeering of {cluster} is Ready");
        }
        Ok(())
    }

    /// Exports a Service of west and asks for its name in east, again and again.
    fn imports(&self, rounds: usize) -> Result<String> {
        let mut arrived = Vec::new();
        let mut answered = Vec::new();
        let mut shell = Shell::start(self.command(&[
            "kubectl",
            "--context",
            "east",
            "--namespace",
            NAMESPACE,
            "exec",
            "-i",
            "client",
            "--",
            "sh",
        ]))?;
        for round in 0..rounds {
            let name = format!("bench-{}-{round}", std::process::id() % 100_000);
            eprintln!("  duo: import {} of {rounds}", round + 1);
            self.kubectl("west", &["create", "service", "clusterip", &name, "--tcp=80:8080"])?;
            let taken = self.import(&name, &mut shell);
            // Also when it failed: nothing of ours stays behind.
            let deleted = self.kubectl("west", &["delete", "serviceexport,service", &name, "--wait=false"]);
            let (import, answer) = taken?;
            deleted?;
            arrived.push(import);
            answered.push(answer);
        }
        let row = |what: &str, seconds: &[f64]| {
            vec![what.to_owned(), shown(median(seconds) * 1e3), shown(percentile(seconds, 1.0) * 1e3)]
        };
        let rows = [
            row("the ServiceImport is in east", &arrived),
            row("east's CoreDNS answers `<name>.shop.svc.clusterset.local`", &answered),
        ];
        Ok(format!(
            "From the moment a ServiceExport is seen in west (a watch on its API server), {rounds} exports one after the other. \
             The name is asked for from a pod of east, first when the ServiceImport is seen there, as CoreDNS keeps a denial for seconds.\n\n{}",
            table(&["until", "median, ms", "largest, ms"], &rows)
        ))
    }

    fn import(&self, name: &str, shell: &mut Shell) -> Result<(f64, f64)> {
        let exports = self.watch("west", "serviceexports.multicluster.x-k8s.io", name)?;
        let imports = self.watch("east", "serviceimports.multicluster.x-k8s.io", name)?;
        let export = format!(
            "{{\"apiVersion\":\"multicluster.x-k8s.io/v1beta1\",\"kind\":\"ServiceExport\",\"metadata\":{{\"name\":\"{name}\"}}}}"
        );
        let mut create =
            self.command(&["kubectl", "--context", "west", "--namespace", NAMESPACE, "create", "-f", "-"]);
        let mut create = create.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        create.stdin.take().context("stdin")?.write_all(export.as_bytes())?;
        let exported = exports.seen("the export in west")?;
        let imported = imports.seen("the import in east")?;
        ensure!(create.wait()?.success(), "the ServiceExport {name} cannot be created");
        let deadline = Instant::now() + PATIENCE;
        let question = format!("dig +short +time=1 +tries=1 {name}.{NAMESPACE}.svc.clusterset.local A");
        while shell.ask(&question)?.is_empty() {
            if Instant::now() > deadline {
                bail!("{name}: imported, but its name has no answer in east within {PATIENCE:?}");
            }
            std::thread::sleep(BETWEEN_QUERIES);
        }
        let answered = Instant::now();
        // Two watches see at almost the same time what is almost at the same time.
        let since = |at: Instant| at.saturating_duration_since(exported).as_secs_f64();
        Ok((since(imported), since(answered)))
    }

    /// A watch that is established: it has listed already.
    fn watch(&self, cluster: &str, kind: &str, name: &str) -> Result<Watch> {
        let list: Value = serde_json::from_str(&self.kubectl(cluster, &["get", kind, "-o", "json"])?)?;
        let (plural, group) = kind.split_once('.').context("a kind with a group")?;
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let path = format!(
            "/apis/{group}/v1beta1/namespaces/{NAMESPACE}/{plural}?watch=true&resourceVersion={version}&fieldSelector=metadata.name={name}",
        );
        let mut child = self
            .command(&["kubectl", "--context", cluster, "get", "--raw", &path])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let (sender, seen) = channel();
        std::thread::spawn(move || {
            for _ in lines.map_while(Result::ok) {
                if sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Ok(Watch { child, seen })
    }

    fn memory(&self) -> String {
        let mut found: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
        for node in NODES {
            let script = "for p in /proc/[0-9]*; do read -r name < $p/comm && case $name in isthmus-*) \
                          echo $name $(grep VmRSS $p/status | tr -dc 0-9) $(stat -Lc %s $p/exe);; esac; done 2>/dev/null; true";
            let mut command = Command::new(&self.wrapper);
            // A node that is not there has nothing in memory.
            let printed = output(command.args(["exec", node, "--", "sh", "-c", script])).unwrap_or_default();
            for line in printed.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [name, resident, size] = words[..] else { continue };
                let which = PROCESSES.iter().position(|(full, ..)| full.starts_with(name));
                let (Some(which), Ok(resident), Ok(size)) =
                    (which, resident.parse::<f64>(), size.parse::<f64>())
                else {
                    continue;
                };
                found.entry(which).or_default().push((resident / 1e3, size / 1e6));
            }
        }
        if found.is_empty() {
            return "Memory not measured: Isthmus does not run in the lab.\n".to_owned();
        }
        let rows: Vec<_> = found
            .iter()
            .map(|(which, processes)| {
                let (_, what, aim) = PROCESSES[*which];
                let resident: Vec<f64> = processes.iter().map(|(resident, _)| *resident).collect();
                vec![
                    what.to_owned(),
                    processes.len().to_string(),
                    shown(median(&resident)),
                    shown(percentile(&resident, 1.0)),
                    if aim.is_nan() { "–".to_owned() } else { format!("{aim:.0}") },
                    shown(processes[0].1),
                ]
            })
            .collect();
        format!(
            "Resident memory (VmRSS) of our processes on all nodes of both clusters, as they ran; the binaries are those that were loaded \
             into the lab (`make lab-load PROFILE=release` loads release builds).\n\n{}",
            table(&["process", "how many", "median, MB", "largest, MB", "aim, MB", "binary, MB"], &rows)
        )
    }
}

/// A running watch, ended with it.
struct Watch {
    child: Child,
    seen: Receiver<Instant>,
}

impl Watch {
    fn seen(&self, what: &str) -> Result<Instant> {
        self.seen.recv_timeout(PATIENCE).with_context(|| format!("{what} was not seen within {PATIENCE:?}"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell that answers line by line: starting a program for each query would take longer than what is measured.
struct Shell {
    child: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Shell {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let asked = child.stdin.take().context("stdin")?;
        let answers = BufReader::new(child.stdout.take().context("stdout")?);
        let mut shell = Self { child, asked, answers };
        shell.ask("true").context("pod client of namespace shop in east, which asks for the names")?;
        Ok(shell)
    }

    /// Runs a line and returns what it printed.
    fn ask(&mut self, line: &str) -> Result<String> {
        const END: &str = "-- end of answer --";
        writeln!(self.asked, "{line}; echo '{END}'")?;
        let mut answer = String::new();
        loop {
            let mut line = String::new();
            ensure!(self.answers.read_line(&mut line)? > 0, "the shell has ended");
            if line.trim_end() == END {
                return Ok(answer.trim().to_owned());
            }
            answer += &line;
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
