// SPDX-License-Identifier: Apache-2.0
//! Running other programs, and telling a person how far we are.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a running step says that it still runs.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How much of a failed program's output an error repeats.
const TAIL_LINES: usize = 30;

/// Does `work` while saying on stderr what is being done, every ten seconds how long it has taken, and
/// at its end how it went.
pub fn step<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    eprintln!("  {label} ...");
    let (done, waiting) = channel::<()>();
    let name = label.to_owned();
    let heart = std::thread::spawn(move || {
        while waiting.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("  {name} ... {} s", started.elapsed().as_secs());
        }
    });
    let result = work();
    drop(done);
    // The heart only prints; that it ended badly would be no news of the work.
    let _ = heart.join();
    let seconds = started.elapsed().as_secs_f32();
    match &result {
        Ok(_) => eprintln!("  {label}: done in {seconds:.1} s"),
        Err(_) => eprintln!("  {label}: FAILED after {seconds:.1} s"),
    }
    result
}

/// Builds a command of a program and its arguments.
pub fn command<I, S>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs to the end and returns what it printed on stdout. Fails with the end of its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = describe(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {shown}"))?;
    if !out.status.success() {
        bail!("{shown} failed ({})\n{}", out.status, tail(&String::from_utf8_lossy(&out.stderr)));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs to the end and says whether it succeeded; its output is of no interest.
pub fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Runs to the end with everything it prints in the file `log`. Fails with the end of that file.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let shown = describe(command);
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        bail!("{shown} failed ({status}); all of its output is in {}\n{}", log.display(), tail(&text));
    }
    Ok(())
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
