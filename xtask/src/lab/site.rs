// SPDX-License-Identifier: Apache-2.0
//! Which Docker the lab runs on, and programs run where they reach it.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::daemon;
use crate::places::Places;
use crate::run::{command, output, step, succeeds};

/// kind's own node image for its default Kubernetes, pinned (kind v0.33.0, pkg/apis/config/defaults).
const KIND_NODE_IMAGE: &str =
    "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5";

/// The node image on the machine's own Docker: kind's, or what `ISTHMUS_NODE_IMAGE` names, such as a mirror's.
pub fn machine_node_image() -> String {
    let named = std::env::var("ISTHMUS_NODE_IMAGE").ok().filter(|name| !name.is_empty());
    named.unwrap_or_else(|| KIND_NODE_IMAGE.to_owned())
}

/// A Docker to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Site {
    /// The lab's own daemon in a namespace of its own.
    Own,
    /// The daemon that this machine runs anyway.
    Machine,
}

impl Site {
    /// Takes what `ISTHMUS_LAB_DOCKER` says (`own`, `machine`); else the machine's daemon if one answers and
    /// kind's node image is there or can be pulled.
    pub fn choose() -> Result<Self> {
        match std::env::var("ISTHMUS_LAB_DOCKER").as_deref() {
            Ok("own") => Ok(Self::Own),
            Ok("machine") => {
                pull_node_image().context("say ISTHMUS_LAB_DOCKER=own to run without a registry")?;
                Ok(Self::Machine)
            }
            Ok(other) if other != "auto" && !other.is_empty() => {
                bail!("ISTHMUS_LAB_DOCKER={other}: say own, machine or auto")
            }
            _ if succeeds(&mut command("docker", ["info"])) && pull_node_image().is_ok() => Ok(Self::Machine),
            _ => Ok(Self::Own),
        }
    }

    /// Makes the programs that follow run where they reach the nodes: moves this process there.
    pub fn enter(self) -> Result<()> {
        match self {
            Self::Own => daemon::enter_network(),
            Self::Machine => Ok(()),
        }
    }

    /// A program, with the lab's tools first in PATH, its Docker and its kubeconfig in the environment.
    pub fn command(self, places: &Places, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let mut path = OsString::from(places.lab_bin());
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path).env("KUBECONFIG", places.kubeconfig());
        if self == Self::Own {
            command.env("DOCKER_HOST", format!("unix://{}", daemon::socket(places).display()));
        }
        command
    }

    /// A call of the Docker client.
    pub fn docker<'a>(self, places: &Places, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut docker = self.command(places, places.lab_bin().join("docker"));
        docker.args(arguments);
        docker
    }

    /// A call of kind. It ends when this process does: one that outlived us would go on with nodes of the same
    /// name that the next `lab up` makes.
    pub fn kind(self, places: &Places) -> Command {
        let mut kind = self.command(places, "setpriv");
        kind.args(["--pdeathsig", "KILL"]).arg(places.lab_bin().join("kind"));
        kind
    }

    /// Links the tools into the folder that [`Site::command`] puts first in PATH.
    pub fn install_tools(self, places: &Places, kind: &Path, kubectl: &Path) -> Result<()> {
        let folder = places.lab_bin();
        std::fs::create_dir_all(&folder)?;
        let docker = match self {
            Self::Own => PathBuf::from("/usr/bin/docker"),
            Self::Machine => find_in_path("docker").context("no docker in PATH")?,
        };
        for (name, target) in [("kind", kind), ("kubectl", kubectl), ("docker", &docker)] {
            let link = folder.join(name);
            // Left by a run that did not end well.
            let _ = std::fs::remove_file(&link);
            symlink(target, &link).with_context(|| format!("cannot link {}", link.display()))?;
        }
        Ok(())
    }
}

fn pull_node_image() -> Result<()> {
    let image = machine_node_image();
    if succeeds(&mut command("docker", ["image", "inspect", &image])) {
        return Ok(());
    }
    step(&format!("pulling {image}"), || output(&mut command("docker", ["pull", "--quiet", &image])))
        .map(drop)
}

fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}
