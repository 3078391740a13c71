// SPDX-License-Identifier: Apache-2.0
//! `lab up`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::site::{Site, machine_node_image};
use super::{Record, clusters, daemon, down, ensure_root, exclusive, machine, oci_runtime, status};
use crate::kind_config::Machine;
use crate::node_image::{self, NodeImage, Parts};
use crate::places::Places;
use crate::run::{output, step, succeeds};
use crate::topology::Topology;
use crate::{deps, space, tools};

/// Brings the topology `name` up. Does nothing if it is up and well; starts anew if it is there but not well.
pub fn up(places: &Places, name: &str) -> Result<()> {
    ensure_root()?;
    let topology = Topology::read(&places.topology(name))?;
    let _lock = exclusive(places)?;
    if is_up(places, &topology) {
        eprintln!("{name} is up already");
        return Ok(());
    }
    let site = Site::choose()?;
    ensure_prerequisites()?;
    space::ensure(&places.cache, space::OF_A_LAB, "the lab")?;
    let kind = tools::KIND.build(places)?.join("kind");
    let kubectl = tools::KUBERNETES.build(places)?.join("kubectl");
    let node_image = match site {
        Site::Own => Some(node_image::build(places, &Parts::build(places)?)?),
        Site::Machine => None,
    };
    down::remove(places)?;
    fs::create_dir_all(&places.state).with_context(|| format!("cannot make {}", places.state.display()))?;
    let mut record = Record { name: name.to_owned(), topology, site, complete: false };
    record.write(places)?;
    machine::prepare(places)?;
    site.install_tools(places, &kind, &kubectl)?;
    let image = match &node_image {
        Some(image) => start_own_docker(places, image)?,
        None => machine_node_image(),
    };
    clusters::create_all(
        places,
        &record,
        &image,
        Machine { lacks_sys_resource: oci_runtime::lacks_sys_resource() },
    )?;
    record.complete = true;
    record.write(places)?;
    eprintln!(
        "{name} is up. Try: ./lab exec -- kubectl --context {} get nodes",
        record.topology.clusters[0].name
    );
    Ok(())
}

fn ensure_prerequisites() -> Result<()> {
    let missing = deps::missing_packages();
    ensure!(missing.is_empty(), "the lab needs {}: run `make deps` as root", missing.join(", "));
    Ok(())
}

fn is_up(places: &Places, wanted: &Topology) -> bool {
    let Some(record) = Record::find(places) else { return false };
    record.complete
        && record.topology == *wanted
        && status::observe(places, &record).is_ok_and(|status| status.all_nodes_run())
}

/// Starts the lab's daemon and gives it the node image if it does not hold it yet.
fn start_own_docker(places: &Places, image: &NodeImage) -> Result<String> {
    let site = Site::Own;
    step("starting the lab's Docker daemon", || daemon::start(places))?;
    site.enter()?;
    clear_leftovers(places)?;
    if !succeeds(&mut site.docker(places, ["image", "inspect", &image.reference])) {
        drop_old_node_images(places)?;
        step("loading the node image", || load_archive(places, &image.archive))?;
    }
    Ok(image.reference.clone())
}

fn load_archive(places: &Places, archive: &Path) -> Result<()> {
    let archive = archive.to_str().context("the cache's path is not UTF-8")?;
    output(&mut Site::Own.docker(places, ["load", "--quiet", "--input", archive])).map(drop)
}

/// Removes what a lab that crashed left in the daemon's data.
fn clear_leftovers(places: &Places) -> Result<()> {
    down::remove_containers(places)?;
    output(&mut Site::Own.docker(places, ["network", "prune", "--force"]))?;
    Ok(())
}

fn drop_old_node_images(places: &Places) -> Result<()> {
    let old = output(&mut Site::Own.docker(places, ["image", "ls", "--quiet", "isthmus.dev/kind-node"]))?;
    for id in old.split_whitespace() {
        output(&mut Site::Own.docker(places, ["image", "rm", "--force", id]))?;
    }
    Ok(())
}
