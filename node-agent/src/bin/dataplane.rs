// SPDX-License-Identifier: Apache-2.0
//! `isthmus-dataplane`: tunnels and probes of a node, in a process that does not stop when the agent does.

use std::path::PathBuf;

use clap::Parser;
use isthmus_dataplane::{LaneChoice, Options, Wiping, WireGuardChoice};
use isthmus_model::ownership::{DATAPLANE_SOCKET, STATE_DIR};
use isthmus_node_agent::logs;

/// `boringtun` and `ring` keep keys of sessions, and a pre-shared key, that they do not wipe.
#[global_allocator]
static ALLOCATOR: Wiping = Wiping::new();

/// Tunnels and probes of a node. The agent configures it through the socket.
#[derive(Parser)]
#[command(name = "isthmus-dataplane", version)]
struct Arguments {
    /// Unix socket for the agent.
    #[arg(long, default_value = DATAPLANE_SOCKET)]
    socket: PathBuf,
    /// Directory of this node's state; the key is in keys/wireguard.key below it.
    #[arg(long, default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Who encrypts: `auto` (the kernel if it has WireGuard, else this process), `kernel` or `userspace`.
    #[arg(long, env = "ISTHMUS_WIREGUARD", default_value = "auto")]
    wireguard: WireGuardChoice,
    /// How many lanes a gateway has where this process encrypts: threads that encrypt beside one another, each with a UDP port (51820, then
    /// from 51822 on) and tunnels of its own. A number from 1 to 8, or `cores`.
    #[arg(long, env = "ISTHMUS_LANES", default_value = "cores")]
    lanes: LaneChoice,
    /// What is logged: a level, or levels by module.
    #[arg(long, env = "ISTHMUS_LOG", default_value = "info")]
    log: String,
}

fn main() -> anyhow::Result<()> {
    let Arguments { socket, state_dir, wireguard, lanes, log } = Arguments::parse();
    // Of sessions that begin and end we speak ourselves, with the tunnel's name.
    logs::start(&format!("boringtun=off,{log}"))?;
    Ok(isthmus_dataplane::run(&Options { socket, state_dir, wireguard, lanes })?)
}
