// SPDX-License-Identifier: Apache-2.0
//! The process that works: it carries packets, probes, and listens to agents. What an earlier one had open and remembered comes from that
//! one itself ([`crate::handover`]), or from its parent ([`crate::parent`]), to which it gives what the next one shall have.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use isthmus_model::dataplane::WireGuardMode;
use isthmus_packet_io::inherited;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::board::Board;
use crate::handover::{self, Taken};
use crate::kept::{Kept, KeptName, Parent};
use crate::keys::KeyStore;
use crate::memory::{Memory, Scribe};
use crate::{Options, StartError, WireGuardChoice, control, in_kernel, packets, probe};

/// How long the parent may take to hand over what it has kept.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a worker begins with.
struct Inheritance {
    kept: Kept,
    memory: Option<Memory>,
    parent: Parent,
    /// From a worker that still carries.
    taken: Option<Taken>,
}

/// Works until SIGTERM or SIGINT, until another worker has taken over, or until the parent is gone. `number` is that of the channel
/// to the parent.
pub(crate) fn run(options: &Options, number: &str) -> Result<(), StartError> {
    end_with_any_thread();
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    ending.thread_block().map_err(|errno| StartError::System("block signals", errno.into()))?;
    let inheritance = inherit(&options.socket, number)?;
    work(options, inheritance)?;
    let signal = ending.wait().map_err(|errno| StartError::System("wait for signals", errno.into()))?;
    tracing::debug!(%signal, "worker ends");
    Ok(())
}

/// What a worker that carries hands over, or else what the parent has kept of one that has died.
fn inherit(socket: &Path, number: &str) -> Result<Inheritance, StartError> {
    let (mut kept, parent) =
        from_parent(number).map_err(|error| StartError::System("take over from the parent", error))?;
    let mut taken = Taken::ask(&handover::path(socket))
        .map_err(|error| StartError::System("take over from the worker that carries", error))?;
    if let Some(taken) = &mut taken {
        kept = std::mem::take(&mut taken.kept);
        kept.lasting().for_each(|(name, descriptor)| parent.keep(name.clone(), descriptor));
    }
    let memory = kept.take(&KeptName::memory()).and_then(remembered);
    Ok(Inheritance { kept, memory, parent, taken })
}

fn from_parent(number: &str) -> io::Result<(Kept, Parent)> {
    // Without its parent nobody would end it, and another one could not serve the devices.
    set_pdeathsig(Signal::SIGKILL)?;
    let channel = inherited(number.parse().map_err(io::Error::other)?)?;
    setsockopt(&channel, ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs().cast_signed()))?;
    let kept = Kept::receive(&channel)?;
    Ok((kept, Parent::new(channel)))
}

fn remembered(file: OwnedFd) -> Option<Memory> {
    match Memory::read(file) {
        Ok(memory) => {
            tracing::info!(tunnels = memory.config.tunnels.len(), "goes on with what the worker before ran");
            Some(memory)
        }
        Err(error) => {
            tracing::warn!(%error, "what the worker before remembered cannot be read");
            None
        }
    }
}

/// Starts the threads: first what carries, and once that does, the rest.
fn work(options: &Options, inheritance: Inheritance) -> Result<(), StartError> {
    let Inheritance { mut kept, memory, parent, taken } = inheritance;
    let keys = KeyStore::open(&options.state_dir)?;
    let kernel = kernel_wireguard(choice(options.wireguard, memory.as_ref()))?;
    let mode = if kernel.is_some() { WireGuardMode::Kernel } else { WireGuardMode::Userspace };
    let lanes = if kernel.is_some() { in_kernel::LANES } else { options.lanes.count() };
    let board = Arc::new(Board::new(keys.told(lanes), mode));
    if let Some(memory) = &memory {
        board.post_tunnels(memory.tunnels());
        board.post_probes(memory.probes.clone());
    }
    let (owner, agents) = (kept.take(&KeptName::owner()), kept.take(&KeptName::agents()));
    let (carries, carrying) = channel();
    let tunnels = packets::Start {
        keys,
        lanes,
        board: Arc::clone(&board),
        scribe: Scribe::new(parent.clone()),
        memory: memory.clone(),
        carries: taken.is_some().then_some(carries),
    };
    let packets = match kernel {
        Some(wireguard) => {
            kept.take_rest().into_keys().for_each(|name| parent.forget(name));
            in_kernel::start(wireguard, tunnels)
        }
        None => packets::start(tunnels, packets::Inherited { kept, parent: parent.clone() }),
    };
    let packets = Arc::new(packets.map_err(|error| StartError::System("start the packet thread", error))?);
    let stepped_back = taken.is_some_and(|taken| {
        // Without a sender there was nothing to wait for.
        let _ = carrying.recv();
        taken.carries()
    });
    let probes = probe::start(Arc::clone(&board), memory);
    let probes = Arc::new(probes.map_err(|error| StartError::System("start the probe thread", error))?);
    let parts = control::Parts {
        board,
        packets: Arc::clone(&packets),
        probes: Arc::clone(&probes),
        parent: parent.clone(),
    };
    let control = control::start(&options.socket, control::Inherited { owner, agents }, parts)
        .map_err(|error| StartError::System("serve the agent's socket", error))?;
    let old = handover::Old { packets, probes, control, parent: parent.clone() };
    handover::serve(&handover::path(&options.socket), old, stepped_back)
        .map_err(|error| StartError::System("wait for a worker that takes over", error))?;
    parent.carries();
    tracing::info!(socket = %options.socket.display(), mode = mode.name(), "data plane ready for the agent");
    Ok(())
}

/// Whoever chooses by itself stays with what the worker before had: another mode makes other devices.
fn choice(wanted: WireGuardChoice, memory: Option<&Memory>) -> WireGuardChoice {
    match memory.map(|memory| memory.mode) {
        Some(WireGuardMode::Userspace) if wanted == WireGuardChoice::Auto => WireGuardChoice::Userspace,
        _ => wanted,
    }
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
