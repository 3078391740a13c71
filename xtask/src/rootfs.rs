// SPDX-License-Identifier: Apache-2.0
//! The Debian system that the node image is made from, and that the other images take programs from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::places::Places;
use crate::run::{command, logged, step};

const SUITE: &str = "bookworm";

/// What kind's own base image installs, and what the test image and a person on a node want.
const PACKAGES: &[&str] = &[
    "bash",
    "bind9-dnsutils",
    "bridge-utils",
    "ca-certificates",
    "conntrack",
    "containernetworking-plugins",
    "curl",
    "dbus",
    "e2fsprogs",
    "ethtool",
    "iperf",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "kmod",
    "libseccomp2",
    "mount",
    "netcat-openbsd",
    "nftables",
    "pigz",
    "procps",
    "socat",
    "systemd",
    "systemd-sysv",
    "tcpdump",
    "util-linux",
    "wget",
];

/// What no node reads.
const UNREAD: &[&str] = &[
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
];

/// The cache key of the system.
pub fn key() -> Key {
    Key::of("rootfs", 1).with("suite", SUITE).with("packages", PACKAGES.join(",")).finish()
}

/// The folder with the installed system.
pub fn build(places: &Places) -> Result<PathBuf> {
    let entry = Cache::at(&places.cache).entry("rootfs", &key(), |folder| {
        step("installing a Debian system for the nodes", || install(places, &folder.join("root")))
    })?;
    Ok(entry.join("root"))
}

fn install(places: &Places, root: &Path) -> Result<()> {
    let mut debootstrap = command("debootstrap", ["--variant=minbase"]);
    debootstrap.arg(format!("--include={}", PACKAGES.join(","))).arg(SUITE).arg(root);
    logged(&mut debootstrap, &places.log("debootstrap"))?;
    for folder in UNREAD {
        let folder = root.join(folder);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder)?;
    }
    Ok(())
}
