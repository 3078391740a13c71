// SPDX-License-Identifier: Apache-2.0
//! Finding a plugin's program and running it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::config::MAX_BYTES;
use crate::error::{Error, code};
use crate::names::check_plugin_type;

const PAUSE: Duration = Duration::from_millis(5);
/// A program that is still being written is tried again, as the Go library does.
const BUSY_TRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// One call of a plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The plugin's type, the name of its program.
    pub plugin: String,
    /// The variables of CNI.
    pub env: BTreeMap<String, String>,
    /// For standard input.
    pub stdin: Vec<u8>,
}

/// Something that runs plugins.
pub trait Exec {
    /// Runs one plugin. Returns what it printed, or why it failed.
    fn run(&self, call: &Call) -> Result<Vec<u8>, Error>;
}

/// Runs programs from a list of directories.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Where to look, in this order.
    pub path: Vec<PathBuf>,
    /// Longest time that one call may take; then the plugin and what it started are killed.
    pub deadline: Duration,
}

/// Runs programs from the directories that each call has in `CNI_PATH`: what a plugin needs to delegate.
#[derive(Clone, Copy, Debug)]
pub struct CniPath {
    /// Longest time that one call may take; then the plugin and what it started are killed.
    pub deadline: Duration,
}

impl Default for CniPath {
    /// With a deadline of a minute.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(60) }
    }
}

impl Exec for CniPath {
    fn run(&self, call: &Call) -> Result<Vec<u8>, Error> {
        let dirs = call.env.get("CNI_PATH").map(String::as_str).unwrap_or_default();
        let path = std::env::split_paths(dirs).filter(|dir| !dir.as_os_str().is_empty()).collect();
        Programs { path, deadline: self.deadline }.run(call)
    }
}

/// The program of a plugin: the first executable file of this name. Code 7 for a type that is no file's name or is
/// not found.
pub fn find(plugin: &str, path: &[PathBuf]) -> Result<PathBuf, Error> {
    check_plugin_type(plugin)?;
    let runs = |file: &PathBuf| {
        file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    path.iter().map(|dir| dir.join(plugin)).find(runs).ok_or_else(|| {
        let dirs: Vec<_> = path.iter().map(|dir| dir.display().to_string()).collect();
        Error::new(code::INVALID_CONFIG, format!("plugin {plugin:?} is not in {}", dirs.join(":")))
    })
}

fn failed(plugin: &str, what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(code::IO, format!("plugin {plugin}: {what}")).with_details(error.to_string())
}

fn spawn(program: &Path, call: &Call) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("CNI_")) {
        command.env_remove(key);
    }
    command.envs(&call.env).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tries = 1;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                thread::park_timeout(BUSY_PAUSE);
            }
            other => return other,
        }
    }
}

/// Reads in a thread of its own: a plugin that fills one pipe while we read the other would stand still.
fn collect(from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before the failure is all there is.
        let _ = from.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes);
        sender.send(bytes)
    });
    receiver
}

fn wait(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => thread::park_timeout(PAUSE),
            _ => return None,
        }
    }
}

/// The plugin leads a process group: what it started goes with it.
fn kill(child: &mut Child) {
    if let Ok(id) = i32::try_from(child.id()) {
        // It may have ended by itself.
        let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// How a plugin ended, and all that it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code 0.
    pub success: bool,
    /// Results and error objects.
    pub stdout: Vec<u8>,
    /// For people.
    pub stderr: Vec<u8>,
}

impl Programs {
    /// Runs one plugin to its end, whatever that is.
    ///
    /// # Errors
    /// Code 7 for a plugin that is not found, code 5 for one that cannot be started or was killed.
    pub fn output(&self, call: &Call) -> Result<Output, Error> {
        let program = find(&call.plugin, &self.path)?;
        let until = Instant::now() + self.deadline;
        let mut child =
            spawn(&program, call).map_err(|error| failed(&call.plugin, "cannot be started", error))?;
        if let Some(mut stdin) = child.stdin.take() {
            let input = call.stdin.clone();
            // A plugin need not read what it does not want.
            thread::spawn(move || stdin.write_all(&input));
        }
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let read = |from: Option<Receiver<Vec<u8>>>| {
            let left = until.saturating_duration_since(Instant::now());
            from.and_then(|from| from.recv_timeout(left).ok())
        };
        let Some(stdout) = read(stdout) else {
            kill(&mut child);
            return Err(failed(&call.plugin, "killed", format!("no end after {:?}", self.deadline)));
        };
        if stdout.len() > MAX_BYTES {
            kill(&mut child);
            return Err(failed(&call.plugin, "killed", format!("it printed more than {MAX_BYTES} bytes")));
        }
        let Some(status) = wait(&mut child, until) else {
            kill(&mut child);
            return Err(failed(&call.plugin, "killed", format!("no end after {:?}", self.deadline)));
        };
        let success = status.success();
        // What a plugin left running may hold it open; of a success nobody reads it.
        let stderr = if success { Vec::new() } else { read(stderr).unwrap_or_default() };
        Ok(Output { success, stdout, stderr })
    }
}

impl Exec for Programs {
    fn run(&self, call: &Call) -> Result<Vec<u8>, Error> {
        let output = self.output(call)?;
        if output.success { Ok(output.stdout) } else { Err(Error::of_output(&output.stdout, &output.stderr)) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn run(script: &str, deadline: Duration) -> Result<Vec<u8>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plug");
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let programs = Programs { path: vec!["/nonexistent".into(), dir.path().into()], deadline };
        let env = [("CNI_COMMAND".to_owned(), "ADD".to_owned())].into();
        programs.run(&Call { plugin: "plug".to_owned(), env, stdin: b"{\"a\":1}".to_vec() })
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn p1_a_real_program_gets_environment_and_input_and_its_output_comes_back() {
        let printed = run("printf '%s ' \"$CNI_COMMAND\"; cat", LONG).unwrap();
        assert_eq!(String::from_utf8(printed).unwrap(), "ADD {\"a\":1}");
    }

    #[test]
    fn p14_a_plugin_to_delegate_to_is_looked_for_in_the_directories_of_the_call() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ipam");
        fs::write(&file, "#!/bin/sh\necho \"$CNI_PATH\"\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let call = |path: &str| Call {
            plugin: "ipam".to_owned(),
            env: [("CNI_PATH".to_owned(), path.to_owned())].into(),
            stdin: Vec::new(),
        };
        let path = format!("/nonexistent:{}", dir.path().display());
        assert_eq!(CniPath::default().run(&call(&path)), Ok(format!("{path}\n").into_bytes()));
        assert_eq!(CniPath::default().run(&call("")).map_err(|error| error.code), Err(7));
    }

    #[test]
    fn p2_a_real_program_that_fails_tells_why_on_stdout_or_on_stderr() {
        assert_eq!(run("echo '{\"code\":11,\"msg\":\"busy\"}'; exit 1", LONG), Err(Error::new(11, "busy")));
        assert_eq!(run("echo broken >&2; exit 3", LONG).unwrap_err().details, "broken");
    }

    #[test]
    fn r11_a_program_that_does_not_end_is_given_up_at_the_deadline() {
        let start = Instant::now();
        let error = run("sleep 600 & wait", Duration::from_millis(200)).unwrap_err();
        assert!(error.msg.contains("killed"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn r11_a_program_that_prints_without_end_is_stopped() {
        let error = run("exec cat /dev/zero", LONG).unwrap_err();
        assert!(error.details.contains("more than"), "{error}");
    }

    #[test]
    fn p14_a_type_that_is_a_path_or_is_not_there_is_not_run() {
        for bad in ["../sh", "/bin/sh", ".", "..", "", "no-such-plugin"] {
            assert_eq!(find(bad, &["/bin".into()]).map_err(|error| error.code), Err(7), "{bad:?}");
        }
        assert!(find("sh", &["/bin".into()]).is_ok());
    }
}
