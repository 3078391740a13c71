// SPDX-License-Identifier: Apache-2.0
//! Network namespaces of a test.
//!
//! A namespace is held by a thread and a descriptor of the test's process, never by a mount: when the test ends, or is
//! killed, nothing is left. Programs that a test starts inside end with the namespace's thread.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};

/// The namespaces of one test.
pub struct Lab {
    name: &'static str,
}

impl Lab {
    /// A lab, or none where the test does not run as root: then it says so, past the test harness' capture.
    pub fn new(name: &'static str) -> Option<Self> {
        if nix::unistd::geteuid().is_root() {
            return Some(Self { name });
        }
        let _ = writeln!(std::io::stderr(), "{name}: skipped: needs root");
        None
    }

    /// A new namespace with its loopback up.
    ///
    /// # Panics
    /// Where the kernel gives none.
    pub fn namespace(&self, name: &str) -> Namespace {
        let full_name = format!("{}/{name}", self.name);
        let namespace =
            Namespace::new(&full_name).unwrap_or_else(|error| panic!("namespace {full_name}: {error:#}"));
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Joins two namespaces by a cable. Each end: namespace, link name, addresses with prefix length.
    pub fn cable(&self, one: (&Namespace, &str, &[&str]), other: (&Namespace, &str, &[&str])) {
        let ((a, a_link, a_addresses), (b, b_link, b_addresses)) = (one, other);
        // `ip` takes a namespace by name or process: the thread that holds it is a process to the kernel.
        a.sh(&format!("ip link add {a_link} type veth peer name {b_link} netns {}", b.holder()));
        for (namespace, link, addresses) in [(a, a_link, a_addresses), (b, b_link, b_addresses)] {
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                namespace.sh(&format!("ip addr add {address} dev {link} {nodad}"));
            }
            namespace.sh(&format!("ip link set {link} up"));
        }
    }
}

/// A network namespace.
pub struct Namespace {
    name: String,
    file: File,
    holder: i32,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Namespace {
    fn new(name: &str) -> Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (opened, ready) = mpsc::channel();
        let thread = thread::Builder::new().spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET)
                .map_err(std::io::Error::from)
                .and_then(|()| File::open("/proc/thread-self/ns/net"))
                .map(|file| (file, nix::unistd::gettid().as_raw()));
            let _ = opened.send(made);
            work.iter().for_each(|job| job());
        })?;
        let (file, holder) = ready.recv()?.context("unshare")?;
        Ok(Self { name: name.to_owned(), file, holder, jobs: Some(jobs), thread: Some(thread) })
    }

    /// A path by which any process of the machine can enter the namespace while the test runs.
    pub fn path(&self) -> PathBuf {
        Path::new("/proc")
            .join(std::process::id().to_string())
            .join("fd")
            .join(self.file.as_raw_fd().to_string())
    }

    /// The thread that holds the namespace, by its kernel id.
    pub fn holder(&self) -> i32 {
        self.holder
    }

    /// Runs the closure inside the namespace, on the thread that holds it.
    ///
    /// # Panics
    /// Where the closure does.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let value = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let _ = done.send(value);
        });
        let jobs = self.jobs.as_ref().expect("present until drop");
        jobs.send(job).expect("the thread lives as long as the namespace");
        match result.recv().expect("each job answers") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a shell script inside and returns what it printed.
    ///
    /// # Panics
    /// Where the script fails, with all that it printed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.try_sh(script).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs a shell script inside: what it printed, or how it failed.
    pub fn try_sh(&self, script: &str) -> Result<String> {
        let owned = script.to_owned();
        let output: Output =
            self.run(move || Command::new("sh").args(["-ec", &owned]).stdin(Stdio::null()).output())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{}: `{script}` failed ({}): {text}{errors}", self.name, output.status);
        }
        Ok(text)
    }

    /// Starts a program inside that ends with the namespace at the latest.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Result<Child> {
        let mut line = vec!["--pdeathsig".to_owned(), "KILL".to_owned(), program.to_owned()];
        line.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let spawned = self.run(move || {
            Command::new("setpriv")
                .args(line)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
        });
        spawned.with_context(|| format!("{}: {program}", self.name))
    }

    /// Sends one echo request and waits at most a second for the answer.
    pub fn ping(&self, target: &str) -> Result<()> {
        let output = self.try_sh(&format!("ping -n -c 1 -W 1 {target}"))?;
        ensure!(output.contains(" 0% packet loss"), "{output}");
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
