// SPDX-License-Identifier: Apache-2.0
//! `lab logs`.

use std::path::Path;

use anyhow::Result;

use super::Record;
use crate::places::Places;
use crate::run::{output, step};

/// Writes the logs of every node of every cluster under `folder`, one folder a cluster.
pub fn export(places: &Places, folder: &Path) -> Result<()> {
    let record = Record::read(places)?;
    record.site.enter()?;
    for cluster in &record.topology.clusters {
        let mut kind = record.site.kind(places);
        kind.args(["export", "logs", "--name", &cluster.name]).arg(folder.join(&cluster.name));
        step(&format!("collecting the logs of {}", cluster.name), || output(&mut kind).map(drop))?;
    }
    Ok(())
}
