// SPDX-License-Identifier: Apache-2.0
//! The lab's control groups. Everything that the lab starts is in one, whatever becomes of its parents; so
//! what is in it is ours to end, and nothing else ever is: no recorded process number can be recycled.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The group's name in every hierarchy; Docker's `cgroup-parent`.
pub const GROUP: &str = "isthmus-lab";
const ROOT: &str = "/sys/fs/cgroup";
const END_DEADLINE: Duration = Duration::from_secs(20);

/// Moves this process, and so what it starts, into the lab's group.
pub fn enter() -> Result<()> {
    let group = tracking_hierarchy().join(GROUP).join("daemon");
    fs::create_dir_all(&group)
        .with_context(|| format!("cannot make the control group {}", group.display()))?;
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
        .context("cannot enter the control group")
}

/// The processes of the lab.
pub fn processes() -> Vec<Pid> {
    let mut found = Vec::new();
    collect(&tracking_hierarchy().join(GROUP), &mut found);
    found
}

/// Ends every process of the lab and removes its groups from all hierarchies.
pub fn end_all() -> Result<()> {
    let deadline = Instant::now() + END_DEADLINE;
    loop {
        let left = processes();
        if left.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            bail!("processes of the lab do not end: {left:?}; run `lab down` again");
        }
        for pid in left {
            // It may have ended by itself meanwhile.
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for hierarchy in hierarchies() {
        remove_tree(&hierarchy.join(GROUP), deadline)?;
    }
    Ok(())
}

/// Which groups of the lab exist.
pub fn remaining() -> Vec<PathBuf> {
    hierarchies().into_iter().map(|hierarchy| hierarchy.join(GROUP)).filter(|group| group.exists()).collect()
}

/// The one hierarchy in which processes are looked for: cgroup v2's, or on v1 the one that counts processes.
fn tracking_hierarchy() -> PathBuf {
    let root = PathBuf::from(ROOT);
    if root.join("cgroup.controllers").exists() { root } else { root.join("pids") }
}

fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root];
    }
    let entries = fs::read_dir(&root).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    entries.unwrap_or_default()
}

fn collect(group: &Path, found: &mut Vec<Pid>) {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw));
    for child in subgroups(group) {
        collect(&child, found);
    }
}

fn subgroups(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn remove_tree(group: &Path, deadline: Instant) -> Result<()> {
    for child in subgroups(group) {
        remove_tree(&child, deadline)?;
    }
    // A group stays busy for a moment after its last process ended.
    while group.exists() && fs::remove_dir(group).is_err() {
        if Instant::now() > deadline {
            bail!("the control group {} stays busy", group.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
