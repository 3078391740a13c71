// SPDX-License-Identifier: Apache-2.0
//! The lab: real kind clusters on this machine.

pub mod cgroup;
pub mod clusters;
pub mod daemon;
pub mod down;
pub mod exec;
mod links;
pub mod load;
pub mod logs;
mod machine;
pub mod oci_runtime;
mod primary;
pub mod site;
pub mod status;
pub mod up;

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::places::Places;
use crate::topology::Topology;
use site::Site;

/// What is written down of the running lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The topology's name.
    pub name: String,
    /// The topology as it was when the lab came up.
    pub topology: Topology,
    /// The Docker that it runs on.
    pub site: Site,
    /// Whether `lab up` ran to its end.
    pub complete: bool,
}

impl Record {
    /// The record of the running lab, if there is one.
    pub fn find(places: &Places) -> Option<Self> {
        let text = fs::read(places.state.join("lab.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The record of the running lab, else what to do.
    pub fn read(places: &Places) -> Result<Self> {
        Self::find(places).context("the lab is not up: run `make lab-up`")
    }

    fn write(&self, places: &Places) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        fs::write(places.state.join("lab.json"), text).context("cannot write the lab's record")
    }
}

/// Keeps a second `up`, `down` or `load` out until it is dropped.
fn exclusive(places: &Places) -> Result<File> {
    fs::create_dir_all(&places.cache)?;
    let lock = File::create(places.cache.join("lab.lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("  waiting for another `lab` command to end ...");
        lock.lock().context("cannot lock the lab")?;
    }
    Ok(lock)
}

fn ensure_root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the lab makes namespaces and containers: run this as root");
    Ok(())
}
