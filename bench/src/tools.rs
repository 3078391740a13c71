// SPDX-License-Identifier: Apache-2.0
//! Programs of the machine, and ours.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xtask::run::{command, output};

/// Programs of Debian that the measurements need, and their packages.
const PROGRAMS: [(&str, &str); 6] = [
    ("/usr/sbin/ethtool", "ethtool"),
    ("/usr/bin/iperf3", "iperf3"),
    ("/usr/bin/wg", "wireguard-tools"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("/usr/bin/ping", "iputils-ping"),
    ("/usr/sbin/ip", "iproute2"),
];

/// Fails with the command that installs what is missing.
pub(crate) fn need(packages: &[&str]) -> Result<()> {
    let absent = PROGRAMS.iter().filter(|(path, _)| !Path::new(path).exists());
    let missing: Vec<&str> =
        absent.map(|(_, package)| *package).filter(|package| packages.contains(package)).collect();
    if !missing.is_empty() {
        bail!("programs are missing; install them: apt-get install -y {}", missing.join(" "));
    }
    Ok(())
}

/// A program of ours, built with the same profile as this one.
pub(crate) fn ours(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("where this program lies")?;
    let program = here.with_file_name(name);
    if !program.exists() {
        bail!("{} is missing: run `make bench`, which builds it", program.display());
    }
    Ok(program)
}

/// Debian's version of a package.
pub(crate) fn debian_version(package: &str) -> String {
    output(&mut command("dpkg-query", ["-W", "-f", "${Version}", package]))
        .unwrap_or_else(|_| "of unknown version".to_owned())
}
