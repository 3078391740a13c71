// SPDX-License-Identifier: Apache-2.0
//! The process that works: it carries packets, probes, and listens to agents. What an earlier one had open and remembered comes from its
//! parent ([`crate::parent`]), to which it gives what the next one shall have.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::dataplane::WireGuardMode;
use isthmus_packet_io::inherited;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::board::Board;
use crate::kept::{Kept, KeptName, Parent};
use crate::keys::KeyStore;
use crate::memory::{Memory, Scribe};
use crate::{Options, StartError, WireGuardChoice, control, in_kernel, packets, probe};

/// How long the parent may take to hand over what it has kept.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a worker begins with.
pub(crate) struct Inheritance {
    pub(crate) kept: Kept,
    pub(crate) memory: Option<Memory>,
    pub(crate) parent: Parent,
}

/// Works until SIGTERM or SIGINT, or until the parent is gone. `number` is that of the channel to the parent.
pub(crate) fn run(options: &Options, number: &str) -> Result<(), StartError> {
    let inheritance =
        inherit(number).map_err(|error| StartError::System("take over from the parent", error))?;
    end_with_any_thread();
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    ending.thread_block().map_err(|errno| StartError::System("block signals", errno.into()))?;
    work(options, inheritance)?;
    let signal = ending.wait().map_err(|errno| StartError::System("wait for signals", errno.into()))?;
    tracing::debug!(%signal, "worker ends");
    Ok(())
}

fn inherit(number: &str) -> io::Result<Inheritance> {
    // Without its parent nobody would end it, and another one could not serve the devices.
    set_pdeathsig(Signal::SIGKILL)?;
    let channel = inherited(number.parse().map_err(io::Error::other)?)?;
    setsockopt(&channel, ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs().cast_signed()))?;
    let mut kept = Kept::receive(&channel)?;
    let memory = kept.take(&KeptName::memory()).and_then(remembered);
    Ok(Inheritance { kept, memory, parent: Parent::new(channel) })
}

fn remembered(file: OwnedFd) -> Option<Memory> {
    match Memory::read(file) {
        Ok(memory) => {
            tracing::warn!(
                tunnels = memory.config.tunnels.len(),
                "a worker before this one has ended; going on with what it ran"
            );
            Some(memory)
        }
        Err(error) => {
            tracing::warn!(%error, "what the worker before remembered cannot be read");
            None
        }
    }
}

/// Starts the threads.
fn work(options: &Options, inheritance: Inheritance) -> Result<(), StartError> {
    let Inheritance { mut kept, memory, parent } = inheritance;
    let keys = KeyStore::open(&options.state_dir)?;
    let kernel = kernel_wireguard(options.wireguard)?;
    let mode = if kernel.is_some() { WireGuardMode::Kernel } else { WireGuardMode::Userspace };
    let board = Arc::new(Board::new(keys.told(), mode));
    if let Some(memory) = &memory {
        board.post_tunnels(memory.tunnels());
        board.post_probes(memory.probes.clone());
    }
    let (owner, agents) = (kept.take(&KeptName::owner()), kept.take(&KeptName::agents()));
    let scribe = Scribe::new(parent.clone());
    let tunnels = packets::Start { keys, board: Arc::clone(&board), scribe, memory: memory.clone() };
    let packets = match kernel {
        Some(wireguard) => {
            kept.take_rest().into_keys().for_each(|name| parent.forget(name));
            in_kernel::start(wireguard, tunnels)
        }
        None => packets::start(tunnels, packets::Inherited { kept, parent: parent.clone() }),
    };
    let packets = packets.map_err(|error| StartError::System("start the packet thread", error))?;
    let probes = probe::start(Arc::clone(&board), memory)
        .map_err(|error| StartError::System("start the probe thread", error))?;
    let parts = control::Parts { board, packets, probes, parent: parent.clone() };
    control::start(&options.socket, control::Inherited { owner, agents }, parts)
        .map_err(|error| StartError::System("serve the agent's socket", error))?;
    parent.carries();
    tracing::info!(socket = %options.socket.display(), mode = mode.name(), "data plane ready for the agent");
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
