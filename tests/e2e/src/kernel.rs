// SPDX-License-Identifier: Apache-2.0
//! Doing harm to nodes, and undoing it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use isthmus_testkit::within;

use crate::lab::{exec, on_node};

/// Kills every process of this name on a node, hard.
///
/// # Errors
/// If there is none.
pub fn processes_killed(node: &str, name: &str) -> Result<()> {
    // The kernel keeps 15 characters of a name.
    on_node(node, "pkill -KILL -x \"${1:0:15}\"", &[name])
        .map(drop)
        .with_context(|| format!("no process {name}"))
}

/// Lets no packet of a node through the lab's network any more; the node itself notices nothing of it.
///
/// # Errors
/// If the port of the node is not found.
pub fn cut_off(node: &str) -> Result<()> {
    port_state(node, "0")
}

/// Undoes [`cut_off`], and waits until the node is reached again.
#[track_caller]
pub fn reconnect(node: &str) {
    port_state(node, "3").unwrap_or_else(|error| panic!("{error:#}"));
    within(Duration::from_secs(10), || {
        let address = on_node(node, "ip -4 -o address show dev eth0 | awk '{print $4}' | cut -d/ -f1", &[])
            .map_err(|error| format!("{error:#}"))?;
        exec(&["ping", "-c", "1", "-W", "1", address.lines().next().unwrap_or_default()])
            .map_err(|error| format!("{error:#}"))
    });
}

/// Sets the state of the bridge port behind a node's eth0: 0 is disabled, 3 forwarding (IEEE 802.1D).
fn port_state(node: &str, state: &str) -> Result<()> {
    let index = on_node(node, "cat /sys/class/net/eth0/iflink", &[])?;
    let links = exec(&["ip", "-o", "link", "show"])?;
    let prefix = format!("{}: ", index.trim());
    let Some(line) = links.lines().find(|line| line.starts_with(&prefix)) else {
        bail!("the lab's network has no link {}: {links}", index.trim());
    };
    let link = line[prefix.len()..].split(['@', ':']).next().unwrap_or_default();
    exec(&["bridge", "link", "set", "dev", link, "state", state]).map(drop)
}
