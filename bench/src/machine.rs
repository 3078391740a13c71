// SPDX-License-Identifier: Apache-2.0
//! What the figures were measured on: without it they mean nothing.

use anyhow::{Context, Result};
use jiff::Zoned;

/// Date, commit, cores, CPU, kernel and how busy the machine was, as one line.
pub(crate) fn describe() -> Result<String> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let info = read("/proc/cpuinfo")?;
    let value = |line: &str| line.split(':').nth(1).unwrap_or_default().trim().to_owned();
    let model = info.lines().find(|line| line.starts_with("model name")).map(value);
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let load = read("/proc/loadavg")?;
    let cores = std::thread::available_parallelism()?;
    let commit = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    Ok(format!(
        "Measured {} at commit {commit}: {cores} cores, {}, Linux {}; load average of the last minute at the end {} (this run included).",
        Zoned::now().strftime("%Y-%m-%d %H:%M %Z"),
        model.unwrap_or_else(|| "an unnamed CPU".to_owned()),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
    ))
}
