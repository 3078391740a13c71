// SPDX-License-Identifier: Apache-2.0
//! `make deps`: what the build and the lab need of the machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::on_node;
use crate::run::{command, output, step, succeeds};

/// A program that must be there, and the Debian package that brings it.
const PROGRAMS: &[(&str, &str)] = &[
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/docker", "docker.io"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/ldd", "libc-bin"),
    ("/usr/bin/ping", "iputils-ping"),
    ("/usr/bin/pkg-config", "pkg-config"),
    ("/usr/bin/strip", "binutils"),
    ("/usr/bin/systemd-socket-activate", "systemd"),
    ("/usr/bin/tcpdump", "tcpdump"),
    ("/usr/bin/wg", "wireguard-tools"),
    ("/usr/include/seccomp.h", "libseccomp-dev"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/usr/sbin/debootstrap", "debootstrap"),
    ("/usr/sbin/ethtool", "ethtool"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/sysctl", "procps"),
];

/// The oldest Go that our go.mod files name.
const GO_AT_LEAST: (u32, u32) = (1, 26);

/// Installs missing packages (as root on Debian; elsewhere names the command) and checks Go and Rust.
pub fn install(repo: &Path) -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        eprintln!("all system packages are there");
    } else {
        install_packages(&missing)?;
    }
    check_go()?;
    let cargo = output(&mut command("cargo", ["--version"])).context("Rust is needed: https://rustup.rs")?;
    eprintln!("{}", cargo.trim());
    on_node::install_target(repo);
    Ok(())
}

/// The Debian packages that are not installed yet.
pub fn missing_packages() -> Vec<&'static str> {
    PROGRAMS.iter().filter(|(path, _)| !Path::new(path).exists()).map(|(_, package)| *package).collect()
}

fn install_packages(missing: &[&str]) -> Result<()> {
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing programs; on Debian they come with `{line}`: install your distribution's equivalents");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("packages are missing; run as root: apt-get update && {line}");
    }
    step("updating the package lists", || output(&mut command("apt-get", ["update"])))?;
    step(&format!("installing {}", missing.join(" ")), || {
        let mut apt = command("apt-get", ["install", "-y", "--no-install-recommends"]);
        // Docker's package would start a daemon on the machine itself; the lab starts its own.
        output(without_service_start(apt.args(missing)))
    })?;
    let still = missing_packages();
    if !still.is_empty() {
        bail!("still missing after `{line}`: {}", still.join(" "));
    }
    Ok(())
}

fn without_service_start(apt: &mut Command) -> &mut Command {
    apt.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1")
}

fn check_go() -> Result<()> {
    let hint = "Go 1.26 or newer is needed for the lab: https://go.dev/dl";
    if !succeeds(&mut command("go", ["version"])) {
        bail!("{hint}");
    }
    let text = output(&mut command("go", ["env", "GOVERSION"]))?;
    match parse_go_version(text.trim()) {
        Some(version) if version >= GO_AT_LEAST => {
            eprintln!("{}", text.trim());
            Ok(())
        }
        _ => bail!("{hint} (this is {})", text.trim()),
    }
}

fn parse_go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_compare_by_their_numbers() {
        assert_eq!(parse_go_version("go1.26.8"), Some((1, 26)));
        assert!(parse_go_version("go1.9.1").unwrap() < GO_AT_LEAST);
        assert_eq!(parse_go_version("devel"), None);
    }
}
