// SPDX-License-Identifier: Apache-2.0
//! `lab load`: our image, and where the nodes do not bring it the test image, onto every node.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::site::Site;
use super::{Record, ensure_root, exclusive};
use crate::images::{AGNHOST, ISTHMUS, agnhost_archive, write_isthmus};
use crate::node_image::Parts;
use crate::places::Places;
use crate::run::{logged, step};

/// Builds the images and loads what a cluster does not hold yet.
pub fn load(places: &Places, profile: &str) -> Result<()> {
    ensure_root()?;
    let record = Record::read(places)?;
    let _lock = exclusive(places)?;
    let (archive, id) = isthmus_archive(places, profile)?;
    let mut wanted = vec![(ISTHMUS, id, archive)];
    if record.site == Site::Machine {
        let parts = Parts::build(places)?;
        let archive = agnhost_archive(places, &parts.programs, &parts.root)?;
        wanted.push((AGNHOST, archive.display().to_string(), archive));
    }
    record.site.enter()?;
    for (reference, id, archive) in wanted {
        load_everywhere(places, &record, reference, &id, &archive)?;
    }
    Ok(())
}

/// Writes the Isthmus image; returns the archive and the image's ID.
pub fn isthmus_archive(places: &Places, profile: &str) -> Result<(PathBuf, String)> {
    let folder = places.cache.join("isthmus-image");
    fs::create_dir_all(&folder)?;
    let archive = folder.join("image.tar");
    let id = write_isthmus(places, profile, &archive)?;
    Ok((archive, id))
}

fn load_everywhere(
    places: &Places,
    record: &Record,
    reference: &str,
    id: &str,
    archive: &Path,
) -> Result<()> {
    let ledger = places.state.join("loaded.json");
    let mut loaded: BTreeMap<String, String> =
        fs::read(&ledger).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let slot = |cluster: &str| format!("{cluster} {reference}");
    let missing: Vec<&str> = record
        .topology
        .clusters
        .iter()
        .map(|cluster| cluster.name.as_str())
        .filter(|name| loaded.get(&slot(name)).is_none_or(|held| held != id))
        .collect();
    if missing.is_empty() {
        eprintln!("  all nodes hold this {reference} already");
        return Ok(());
    }
    step(&format!("loading {reference} into {}", missing.join(" and ")), || {
        std::thread::scope(|scope| {
            let running: Vec<_> = missing
                .iter()
                .map(|name| scope.spawn(|| load_into(places, record.site, name, archive)))
                .collect();
            let joined =
                running.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("loading panicked"))));
            joined.collect::<Result<()>>()
        })
    })?;
    loaded.extend(missing.iter().map(|name| (slot(name), id.to_owned())));
    fs::write(&ledger, serde_json::to_vec_pretty(&loaded)?).context("cannot note what is loaded")
}

fn load_into(places: &Places, site: Site, cluster: &str, archive: &Path) -> Result<()> {
    let mut kind = site.kind(places);
    kind.args(["load", "image-archive", "--name", cluster]).arg(archive);
    logged(&mut kind, &places.log(&format!("kind-load-{cluster}")))
}
