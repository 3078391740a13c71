// SPDX-License-Identifier: Apache-2.0
//! The process that outlives its workers. It starts one, keeps copies of the descriptors that must not be closed (the tunnel devices, the
//! WireGuard port, the owner socket, the agents' socket) and a memory that it cannot read, and hands them to the next one when a worker has
//! died. It reads no packet, no file and no request: there is next to nothing that could end it.

mod family;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use isthmus_packet_io::{bequeath, record_pair};
use isthmus_wg_device::sleep_until;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::StartError;
use crate::handover;
use crate::kept::{Kept, Word};
use family::{Birth, Family, WorkerId};

/// Names the worker's end of the channel to its parent, in the worker's environment.
pub(crate) const CHANNEL: &str = "ISTHMUS_DATAPLANE_CHANNEL";
/// How long a worker may take for what it is told.
const PATIENCE: Duration = Duration::from_secs(4);

/// How often it is looked whether the worker of another parent is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);

struct Worker {
    process: Child,
    channel: OwnedFd,
    born: Instant,
}

struct ParentProcess {
    /// Where whoever carries waits for one that takes over.
    handover: PathBuf,
    /// The program, as it was started.
    program: PathBuf,
    signals: SignalFd,
    family: Family,
    workers: BTreeMap<WorkerId, Worker>,
    kept: Kept,
}

/// Runs workers until SIGTERM or SIGINT; SIGHUP asks for one that takes over from the one that carries. `socket` is that of agents.
///
/// # Errors
/// The first worker could not start.
pub(crate) fn run(socket: &Path) -> Result<(), StartError> {
    let mut heard = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        heard.add(signal);
    }
    heard.thread_block().map_err(|errno| StartError::System("block signals", errno.into()))?;
    let signals = SignalFd::with_flags(&heard, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|errno| StartError::System("wait for signals", errno.into()))?;
    let program = std::env::current_exe().map_err(|error| StartError::System("find the program", error))?;
    let family = Family::new(Instant::now());
    let handover = handover::path(socket);
    let (workers, kept) = (BTreeMap::new(), Kept::default());
    ParentProcess { handover, program, signals, family, workers, kept }.run()
}

impl ParentProcess {
    fn run(mut self) -> Result<(), StartError> {
        loop {
            if let Some(birth) = self.family.birth(Instant::now())
                && let Err(error) = self.start(birth)
            {
                tracing::error!(%error, program = %self.program.display(), "no worker can be started");
                self.family.ended(birth.id, Duration::ZERO, None, Instant::now());
            }
            let (signalled, spoke) = self.wait();
            spoke.into_iter().for_each(|id| _ = self.listen(id));
            if self.family.stands_by() {
                self.family.looked(handover::answers(&self.handover), Instant::now());
            }
            if signalled && self.is_to_end() {
                self.end();
                return Ok(());
            }
            if let Some(code) = self.bury() {
                self.end();
                return Err(StartError::Worker(code));
            }
        }
    }

    /// Waits for a signal, a word, or the time to start a worker. Whether there is a signal, and who has spoken.
    fn wait(&self) -> (bool, Vec<WorkerId>) {
        let timeout = match self.family.due() {
            Some(due) => sleep_until(due, Instant::now()),
            None if self.family.stands_by() => LOOK_EVERY.try_into().unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut polled = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        polled.extend(self.workers.values().map(|w| PollFd::new(w.channel.as_fd(), PollFlags::POLLIN)));
        if poll(&mut polled, timeout).unwrap_or(0) == 0 {
            return (false, Vec::new());
        }
        let mut ready = polled.iter().map(|descriptor| descriptor.any().unwrap_or(false));
        let signalled = ready.next().unwrap_or(false);
        (signalled, self.workers.keys().filter(|_| ready.next().unwrap_or(false)).copied().collect())
    }

    /// Starts a worker, and hands over what is kept.
    fn start(&mut self, birth: Birth) -> io::Result<()> {
        if birth.bare {
            tracing::error!("workers end again and again; the next one waits for the agent");
            self.kept = Kept::default();
        }
        let (channel, theirs) = record_pair()?;
        handover::be_patient(&channel, PATIENCE)?;
        // The file may have another name by now, as after an update of the program without a container.
        let there = self.program.exists();
        let program = if there { self.program.clone() } else { "/proc/self/exe".into() };
        let process = Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(CHANNEL, bequeath(&theirs)?.to_string())
            .spawn()?;
        drop(theirs);
        tracing::debug!(pid = process.id(), "worker started");
        let handed = self.kept.send(&channel);
        self.workers.insert(birth.id, Worker { process, channel, born: Instant::now() });
        if let Err(error) = handed {
            tracing::error!(%error, "the worker takes nothing; it is ended");
            self.kill(birth.id, Signal::SIGKILL);
        }
        Ok(())
    }

    /// Takes one word of a worker; false at the end of what it has to say.
    fn listen(&mut self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get(&id) else { return false };
        match Word::receive(&worker.channel) {
            Ok((Some(Word::Keep(name)), Some(descriptor))) => {
                if !self.kept.put(name.clone(), descriptor) {
                    tracing::warn!(?name, "not kept: there are too many already");
                }
            }
            Ok((Some(Word::Forget(name)), _)) => drop(self.kept.take(&name)),
            Ok((Some(Word::Carrying), _)) => self.family.carries(id),
            Ok((Some(Word::HandedOver), _)) => {
                self.family.hands_over(id);
                if self.family.stands_by() {
                    // Devices are served by one process alone: what is kept here would be in the way of the other one.
                    tracing::info!("a worker of another parent carries; this one stands by");
                    self.kept = Kept::default();
                }
            }
            Ok((word, _)) => tracing::warn!(?word, "a worker said something that makes no sense"),
            Err(_) => return false,
        }
        true
    }

    /// Looks who has ended. The code to end with, if that is all.
    fn bury(&mut self) -> Option<i32> {
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in ids {
            let ended = self.workers.get_mut(&id).map(|worker| worker.process.try_wait());
            let Some(Ok(Some(status))) = ended else { continue };
            // What it said before counts.
            while self.listen(id) {}
            let Some(worker) = self.workers.remove(&id) else { continue };
            let (lived, now) = (worker.born.elapsed(), Instant::now());
            let (code, signal) = (status.code(), status.signal());
            if status.success() {
                tracing::info!(pid = worker.process.id(), ?lived, "the worker has handed over and ended");
            } else {
                tracing::error!(pid = worker.process.id(), ?code, ?signal, ?lived, "the worker has ended");
            }
            let ends = self.family.ended(id, lived, code, now);
            if ends.is_some() {
                return ends;
            }
        }
        None
    }

    fn is_to_end(&mut self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo.cast_signed()) {
                Ok(Signal::SIGCHLD) => {}
                Ok(Signal::SIGHUP) => self.family.replace(Instant::now()),
                signal => {
                    tracing::info!(?signal, "data plane ends; devices and routes stay");
                    return true;
                }
            }
        }
        false
    }

    /// Ends the workers, and waits for them.
    fn end(&mut self) {
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        ids.iter().for_each(|id| self.kill(*id, Signal::SIGTERM));
        let deadline = Instant::now() + PATIENCE;
        while !self.workers.is_empty() {
            let mut polled = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, sleep_until(deadline, Instant::now())).unwrap_or(0) == 0 {
                ids.iter().for_each(|id| self.kill(*id, Signal::SIGKILL));
            }
            while let Ok(Some(_)) = self.signals.read_signal() {}
            self.workers.retain(|_, worker| !matches!(worker.process.try_wait(), Ok(Some(_))));
        }
    }

    fn kill(&self, id: WorkerId, signal: Signal) {
        if let Some(worker) = self.workers.get(&id) {
            // One that has ended is not waited for yet: its number is still its own.
            let _ = kill(Pid::from_raw(worker.process.id().cast_signed()), signal);
        }
    }
}
