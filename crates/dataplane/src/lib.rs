// SPDX-License-Identifier: Apache-2.0
//! The data plane process: it owns the tunnel devices, the WireGuard port, the sessions and the probes, and keeps them while the
//! agent is exchanged. The agent configures it through a Unix socket ([`client`]), and it holds, on the agent's behalf, the netlink
//! socket that owns our nftables table.
//!
//! The process that is started ([`parent`]) does nothing but keep what must survive: descriptors, and what its worker remembered. All work is
//! done by the worker ([`worker`]), which is started again whenever it ends.
//!
//! A worker has these threads: each lane has one that carries packets and owns an engine, so that no packet takes a lock; one is for all
//! lanes; one runs the probes; and each connection of an agent has a pair. They meet on the board ([`board`]), where what was measured is posted.

mod board;
pub mod client;
mod control;
mod handover;
mod in_kernel;
mod kept;
mod keys;
mod memory;
mod owner;
mod packets;
mod parent;
mod probe;
mod rotation;
mod wire;
mod worker;

use std::path::PathBuf;
use std::str::FromStr;

use isthmus_model::ownership::LANES_MAX;

pub use isthmus_packet_io::Wiping;
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
    /// How many lanes there are where this process encrypts.
    pub lanes: LaneChoice,
}

/// How many lanes a gateway has where the data plane process encrypts: threads that encrypt beside one another, each with a key, a port and
/// tunnels of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaneChoice {
    /// One for each core that the process may use.
    #[default]
    Cores,
    /// So many.
    Exactly(u8),
}

impl LaneChoice {
    /// From 1 to [`LANES_MAX`].
    pub fn count(self) -> u8 {
        match self {
            Self::Cores => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                u8::try_from(cores).map_or(LANES_MAX, |cores| cores.clamp(1, LANES_MAX))
            }
            Self::Exactly(count) => count.clamp(1, LANES_MAX),
        }
    }
}

/// A word that is no number of lanes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither `cores` nor a number from 1 to {LANES_MAX}")]
pub struct NoLanes(String);

impl FromStr for LaneChoice {
    type Err = NoLanes;
    fn from_str(text: &str) -> Result<Self, NoLanes> {
        match text.parse() {
            _ if text == "cores" => Ok(Self::Cores),
            Ok(count) if (1..=LANES_MAX).contains(&count) => Ok(Self::Exactly(count)),
            _ => Err(NoLanes(text.to_owned())),
        }
    }
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
            lanes: LaneChoice::default(),
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
    /// The worker ended before it carried anything.
    #[error("the worker process ended with code {0} before it could start; it has said why")]
    Worker(i32),
    /// A system call failed.
    #[error("cannot {0}: {1}")]
    System(&'static str, std::io::Error),
}

/// Serves until SIGTERM or SIGINT. Devices, routes and the nftables table stay when it ends.
///
/// The process that calls it starts itself again, with the same arguments, as its worker: what is called before has to come to
/// the same there.
///
/// # Errors
/// [`StartError`], before anything was changed on the node.
pub fn run(options: &Options) -> Result<(), StartError> {
    match std::env::var(parent::CHANNEL) {
        Ok(number) => worker::run(options, &number),
        Err(_) => parent::run(&options.socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_lanes_is_a_small_number_or_that_of_the_cores() {
        for (text, count) in [("1", 1), ("8", 8), ("3", 3)] {
            assert_eq!(text.parse::<LaneChoice>().unwrap().count(), count);
        }
        assert!((1..=LANES_MAX).contains(&"cores".parse::<LaneChoice>().unwrap().count()));
        for text in ["0", "9", "-1", "", "two", "1000"] {
            assert!(text.parse::<LaneChoice>().is_err(), "{text:?}");
        }
    }
}
