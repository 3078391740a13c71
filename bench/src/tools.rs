// SPDX-License-Identifier: Apache-2.0
//! The others: built once into the cache, or found on the machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xtask::cache::{Cache, Key};
use xtask::places::Places;
use xtask::run::{command, logged, output, step};

const BORINGTUN_VERSION: &str = "0.7.1";
/// Programs of Debian that the measurements need, and their packages.
const PROGRAMS: [(&str, &str); 5] = [
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

/// boringtun-cli as it is published.
pub(crate) fn boringtun_cli(places: &Places) -> Result<PathBuf> {
    let key = Key::of("boringtun-cli", 1).with("version", BORINGTUN_VERSION).finish();
    let folder = Cache::at(&places.cache).entry("boringtun-cli", &key, |folder| {
        step("building boringtun-cli", || {
            let root = folder.display().to_string();
            let mut cargo = command(
                "cargo",
                ["install", "--locked", "--root", &root, "boringtun-cli", "--version", BORINGTUN_VERSION],
            );
            cargo.env("CARGO_TARGET_DIR", folder.join("target"));
            logged(&mut cargo, &places.log("build-boringtun-cli"))?;
            Ok(std::fs::remove_dir_all(folder.join("target"))?)
        })
    })?;
    Ok(folder.join("bin/boringtun-cli"))
}

/// wireguard-go, pinned by the go.mod and go.sum below `bench/tools`.
pub(crate) fn wireguard_go(places: &Places) -> Result<PathBuf> {
    let module = places.repo.join("bench/tools/wireguard-go");
    let go = output(command("go", ["version"]).current_dir(&module))
        .context("Go builds wireguard-go, which is measured beside us: https://go.dev/dl")?;
    let key = Key::of("wireguard-go", 1)
        .with_file(&module.join("go.mod"))?
        .with_file(&module.join("go.sum"))?
        .with("go", go)
        .finish();
    let folder = Cache::at(&places.cache).entry("wireguard-go", &key, |folder| {
        step("building wireguard-go", || {
            let target = folder.join("wireguard-go").display().to_string();
            let mut go = command("go", ["build", "-trimpath", "-o", &target, "golang.zx2c4.com/wireguard"]);
            go.current_dir(&module).env("CGO_ENABLED", "0");
            logged(&mut go, &places.log("build-wireguard-go"))
        })
    })?;
    Ok(folder.join("wireguard-go"))
}

/// The version of wireguard-go that the go.mod names.
pub(crate) fn wireguard_go_version(places: &Places) -> Result<String> {
    let module = std::fs::read_to_string(places.repo.join("bench/tools/wireguard-go/go.mod"))?;
    let line = module.lines().find(|line| line.contains("golang.zx2c4.com/wireguard v"));
    let version = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(version.context("bench/tools/wireguard-go/go.mod names no version")?.to_owned())
}

/// Debian's version of a package.
pub(crate) fn debian_version(package: &str) -> String {
    output(&mut command("dpkg-query", ["-W", "-f", "${Version}", package]))
        .unwrap_or_else(|_| "of unknown version".to_owned())
}

/// The version of boringtun-cli.
pub(crate) fn boringtun_version() -> &'static str {
    BORINGTUN_VERSION
}
