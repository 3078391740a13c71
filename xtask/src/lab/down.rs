// SPDX-License-Identifier: Apache-2.0
//! `lab down`: after it nothing of the lab runs, and nothing of it is left but the cache.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::site::Site;
use super::{Record, cgroup, daemon, ensure_root, exclusive, links, machine};
use crate::places::Places;
use crate::run::{command, output, step};

/// Takes the lab down, whatever state it is in, and checks that nothing is left.
pub fn down(places: &Places) -> Result<()> {
    ensure_root()?;
    let _lock = exclusive(places)?;
    remove(places)?;
    let left = leftovers(places)?;
    if !left.is_empty() {
        bail!("the lab left something behind:\n{}", left.join("\n"));
    }
    eprintln!("the lab is down");
    Ok(())
}

/// Removes whatever there is of a lab; nothing to do is fine.
pub(super) fn remove(places: &Places) -> Result<()> {
    let record = Record::find(places);
    if record.is_none() && leftovers(places)?.is_empty() {
        return Ok(());
    }
    step("taking the lab down", || {
        match record {
            Some(record) if record.site == Site::Machine => delete_clusters(places, &record)?,
            // A daemon that does not answer any more is ended all the same.
            _ if daemon::answers(places) => remove_containers(places)?,
            _ => {}
        }
        daemon::stop(places)?;
        machine::restore(places)?;
        match fs::remove_dir_all(&places.state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", places.state.display()))
            }
            _ => Ok(()),
        }
    })
}

/// Removes all containers and volumes of the lab's own daemon.
pub(super) fn remove_containers(places: &Places) -> Result<()> {
    let ids = output(&mut daemon::docker(places, ["ps", "--all", "--quiet"]))?;
    // Each takes seconds, for it deletes a node's files: all at once.
    std::thread::scope(|scope| {
        let running: Vec<_> = ids
            .split_whitespace()
            .map(|id| {
                scope.spawn(move || output(&mut daemon::docker(places, ["rm", "--force", "--volumes", id])))
            })
            .collect();
        let mut results =
            running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("removing panicked")));
        results.try_for_each(|result| result.map(drop))
    })?;
    output(&mut daemon::docker(places, ["volume", "prune", "--force"]))?;
    Ok(())
}

fn delete_clusters(places: &Places, record: &Record) -> Result<()> {
    for cluster in &record.topology.clusters {
        let mut kind = record.site.kind(places);
        output(kind.args(["delete", "cluster", "--name", &cluster.name]))?;
    }
    links::remove_networks(places, record.site)
}

/// Everything of a lab that this machine still holds, each as a line for a person.
pub fn leftovers(places: &Places) -> Result<Vec<String>> {
    let mut left: Vec<String> = cgroup::processes().iter().map(|pid| format!("process {pid}")).collect();
    left.extend(cgroup::remaining().iter().map(|group| format!("control group {}", group.display())));
    if Path::new("/run/netns").join(daemon::NAMESPACE).exists() {
        left.push(format!("network namespace {}", daemon::NAMESPACE));
    }
    if places.state.exists() {
        left.push(format!("folder {}", places.state.display()));
    }
    let ours = [places.state.display().to_string(), places.docker_data().display().to_string()];
    let mounts = output(&mut command("cat", ["/proc/self/mounts"]))?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    left.extend(
        points.filter(|point| ours.iter().any(|our| point.starts_with(our))).map(|p| format!("mount {p}")),
    );
    Ok(left)
}
