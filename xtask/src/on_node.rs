// SPDX-License-Identifier: Apache-2.0
//! Programs that leave the image: the agent copies them onto its node, whose C library may be older than the image's, or another one.
//!
//! So they are static where Rust's musl target is installed, as `make deps` does. They start faster, too, and a container runtime starts one for each call.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::places::Places;
use crate::run::{command, output, step, succeeds};

/// The cargo profile of these programs: small.
const PROFILE: &str = "shim";

/// A program for nodes.
pub struct OnNode {
    /// Where it lies.
    pub program: PathBuf,
    /// It needs no library.
    pub is_static: bool,
}

/// Builds the program of this name, which is its package's too; nothing is done where it is up to date.
///
/// # Errors
/// It cannot be built.
pub fn build(places: &Places, name: &str) -> Result<OnNode> {
    let target = target();
    let is_static = is_installed(&places.repo, &target);
    let mut cargo = command("cargo", ["build", "--profile", PROFILE, "--package", name, "--bin", name]);
    if is_static {
        cargo.args(["--target", &target]);
    } else {
        eprintln!(
            "  {name} will need a C library as new as this machine's: `rustup target add {target}` makes it static"
        );
    }
    step(&format!("building {name} for nodes"), || output(cargo.current_dir(&places.repo)))?;
    let folder = places.repo.join("target");
    let folder = if is_static { folder.join(target) } else { folder };
    Ok(OnNode { program: folder.join(PROFILE).join(name), is_static })
}

/// Installs what it takes to make them static, where `rustup` is there and can.
pub fn install_target(repo: &Path) {
    let target = target();
    if is_installed(repo, &target) {
        eprintln!("programs for nodes become static ({target})");
        return;
    }
    if !succeeds(command("rustup", ["target", "add", &target]).current_dir(repo)) {
        eprintln!("programs for nodes will not be static: `rustup target add {target}` failed");
    }
}

fn target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

fn is_installed(repo: &Path, target: &str) -> bool {
    let mut rustc = command("rustc", ["--print", "target-libdir", "--target", target]);
    output(rustc.current_dir(repo)).is_ok_and(|folder| Path::new(folder.trim()).is_dir())
}
