// SPDX-License-Identifier: Apache-2.0
//! The few things that the lab must change on the machine itself, and how it puts them back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::places::Places;

/// Every node runs a systemd, a containerd and a kubelet, each with many watches.
const LIMITS: &[(&str, u64)] =
    &[("/proc/sys/fs/inotify/max_user_instances", 8192), ("/proc/sys/fs/inotify/max_user_watches", 524_288)];
/// kind mounts it into every node; Docker would make it and leave it.
const MODULES: &str = "/lib/modules";

/// What was changed.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Changes {
    limits: BTreeMap<String, u64>,
    folders: Vec<PathBuf>,
}

/// Makes the machine fit for the lab; what is changed is written down first.
pub(super) fn prepare(places: &Places) -> Result<()> {
    let mut changes = Changes::default();
    for (path, wanted) in LIMITS {
        let now: u64 =
            fs::read_to_string(path)?.trim().parse().with_context(|| format!("{path} is no number"))?;
        if now < *wanted {
            changes.limits.insert((*path).to_owned(), now);
        }
    }
    if !Path::new(MODULES).exists() {
        changes.folders.push(MODULES.into());
    }
    fs::write(record(places), serde_json::to_vec_pretty(&changes)?)?;
    for (path, wanted) in LIMITS.iter().filter(|(path, _)| changes.limits.contains_key(*path)) {
        fs::write(path, wanted.to_string()).with_context(|| format!("cannot raise {path}"))?;
    }
    changes.folders.iter().try_for_each(|folder| Ok(fs::create_dir_all(folder)?))
}

/// Puts back what [`prepare`] changed, if it ran.
pub(super) fn restore(places: &Places) -> Result<()> {
    let Ok(text) = fs::read(record(places)) else { return Ok(()) };
    let changes: Changes = serde_json::from_slice(&text).unwrap_or_default();
    for (path, before) in &changes.limits {
        fs::write(path, before.to_string()).with_context(|| format!("cannot put back {path}"))?;
    }
    for folder in &changes.folders {
        // Someone may have filled it meanwhile: then it is theirs.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

fn record(places: &Places) -> PathBuf {
    places.state.join("machine.json")
}
