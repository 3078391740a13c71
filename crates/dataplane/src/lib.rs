// SPDX-License-Identifier: Apache-2.0
//! The data plane process: it owns the tunnel devices, the WireGuard port, the sessions and the probes, and keeps them while the
//! agent is exchanged. The agent configures it through a Unix socket ([`client`]), and it holds, on the agent's behalf, the netlink
//! socket that owns our nftables table.
//!
//! Three kinds of threads: one carries packets and owns the engine, so that no packet takes a lock; one runs the probes; and each
//! connection of an agent has a pair. They meet on the board ([`board`]), where what was measured is posted.

mod board;
pub mod client;
mod control;
mod in_kernel;
mod keys;
mod owner;
mod packets;
mod probe;
mod rotation;
mod wire;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};

use isthmus_model::dataplane::WireGuardMode;

pub use keys::KeyError;

/// Where the process finds what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Unix socket for the agent; its directory is made with mode 0700.
    pub socket: PathBuf,
    /// The key is kept in `keys/` below it.
    pub state_dir: PathBuf,
    /// Who shall encrypt.
    pub wireguard: WireGuardChoice,
}

/// Who shall encrypt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WireGuardChoice {
    /// The kernel if it has WireGuard, else this process.
    #[default]
    Auto,
    /// The kernel, or the process does not start.
    Kernel,
    /// This process.
    Userspace,
}

/// A word that is none of the choices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of auto, kernel and userspace")]
pub struct UnknownChoice(String);

impl FromStr for WireGuardChoice {
    type Err = UnknownChoice;
    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "userspace" => Ok(Self::Userspace),
            _ => Err(UnknownChoice(text.to_owned())),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            socket: isthmus_model::ownership::DATAPLANE_SOCKET.into(),
            state_dir: isthmus_model::ownership::STATE_DIR.into(),
            wireguard: WireGuardChoice::default(),
        }
    }
}

/// Why the process cannot run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The key cannot be read or made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The kernel was asked for and cannot.
    #[error("the kernel has no WireGuard ({0}): load its module `wireguard`, or start with --wireguard auto")]
    NoKernelWireGuard(std::io::Error),
    /// A system call failed.
    #[error("cannot {0}: {1}")]
    System(&'static str, std::io::Error),
}

/// Serves until SIGTERM or SIGINT. Devices, routes and the nftables table stay when it ends.
///
/// # Errors
/// [`StartError`], before anything was changed on the node.
pub fn run(options: &Options) -> Result<(), StartError> {
    end_with_any_thread();
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    ending.thread_block().map_err(|errno| StartError::System("block signals", errno.into()))?;

    let keys = keys::KeyStore::open(&options.state_dir)?;
    let kernel = kernel_wireguard(options.wireguard)?;
    let mode = if kernel.is_some() { WireGuardMode::Kernel } else { WireGuardMode::Userspace };
    let board = Arc::new(board::Board::new(keys.told(), mode));
    let packets = match kernel {
        Some(wireguard) => in_kernel::start(wireguard, keys, Arc::clone(&board)),
        None => packets::start(keys, Arc::clone(&board)),
    };
    let packets = packets.map_err(|error| StartError::System("start the packet thread", error))?;
    let probes = probe::start(Arc::clone(&board))
        .map_err(|error| StartError::System("start the probe thread", error))?;
    control::start(&options.socket, control::Parts { board, packets, probes })
        .map_err(|error| StartError::System("serve the agent's socket", error))?;
    tracing::info!(socket = %options.socket.display(), mode = mode.name(), "data plane ready, waiting for the agent");
    let signal = ending.wait().map_err(|errno| StartError::System("wait for signals", errno.into()))?;
    tracing::info!(%signal, "data plane ends; devices and routes stay");
    Ok(())
}

fn kernel_wireguard(choice: WireGuardChoice) -> Result<Option<isthmus_wg_kernel::WireGuard>, StartError> {
    if choice == WireGuardChoice::Userspace {
        return Ok(None);
    }
    match isthmus_wg_kernel::WireGuard::open() {
        Ok(wireguard) => Ok(Some(wireguard)),
        Err(error) if choice == WireGuardChoice::Kernel => Err(StartError::NoKernelWireGuard(error)),
        Err(error) => {
            tracing::info!(%error, "the kernel has no WireGuard for us; this process encrypts");
            Ok(None)
        }
    }
}

/// A thread that panicked would leave a process that looks alive and carries nothing: end it, so that it is started again.
fn end_with_any_thread() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}
