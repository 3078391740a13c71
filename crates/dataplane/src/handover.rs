// SPDX-License-Identifier: Apache-2.0
//! How one worker takes over from another, of the same parent or of another one, while packets flow.
//!
//! The new one connects to the old one's socket and says hello. The old one retires: it begins no sessions any more, hands over everything
//! that it has open and what it knows, and from then on whatever it receives for the new one's sessions. It goes on carrying. The new one
//! asks each peer for a session; once it has one wherever the old one has, it carries itself, and says so. The old one hangs up on agents,
//! ends its probes, says that it has, and opens what still comes under its sessions until there is nothing more.
//!
//! When the new one is gone before it carries, the old one goes on as if nothing had been.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_model::ids::LinkName;
use isthmus_packet_io::{accept_record, connect_record, is_listened_at, listen_record};
use nix::sys::socket::sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout};
use nix::sys::socket::{getsockopt, setsockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::control::Control;
use crate::kept::{Kept, Parent, Word};
use crate::packets::PacketThread;
use crate::probe::ProbeThread;

/// What is said first. Everything after it may have more to it one day, and nothing less: a newer program takes over from an older one.
pub(crate) const VERSION: u8 = b'1';
/// How long either side waits for the other's next word, but for the one below.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a worker that has been killed may take to go.
const GOING: Duration = Duration::from_secs(2);
/// How long the old one waits for the new one to carry: longer than that takes at most ([`TAKE_OVER_AT_MOST`]).
const PATIENCE_TO_CARRY: Duration = Duration::from_secs(25);
/// A peer that has answered nothing for so long, two repetitions of a handshake included, holds up the others no longer.
const TAKE_OVER_AT_MOST: Duration = Duration::from_secs(12);
/// Nothing is on its way to the old one any more when it has got nothing for so long.
const SILENT_FOR: Duration = Duration::from_secs(2);
/// No session is older (WireGuard paper, 6.1: REJECT-AFTER-TIME).
const DRAIN_AT_MOST: Duration = Duration::from_secs(180);

/// Whether the new one can carry: it has a session wherever the old one had.
pub(crate) fn may_take_over(old: &BTreeSet<LinkName>, new: &BTreeSet<LinkName>, since: Duration) -> bool {
    old.is_subset(new) || since >= TAKE_OVER_AT_MOST
}

/// Whether nobody sends to the old one any more: for so long it has got nothing, and for so long it has not carried.
pub(crate) fn is_drained(silent: Duration, since: Duration) -> bool {
    silent >= SILENT_FOR || since >= DRAIN_AT_MOST
}

/// Where the worker that carries waits for one that takes over, beside the agents' socket.
pub(crate) fn path(agents: &Path) -> PathBuf {
    agents.with_file_name("handover.sock")
}

/// Whether a worker waits there.
pub(crate) fn answers(path: &Path) -> bool {
    is_listened_at(path)
}

/// What was handed over, and the connection to who did.
pub(crate) struct Taken {
    pub(crate) kept: Kept,
    connection: OwnedFd,
}

impl Taken {
    /// Asks the worker that carries, if there is one.
    ///
    /// # Errors
    /// There is one, and it does not hand over.
    pub(crate) fn ask(path: &Path) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + GOING;
        loop {
            match Self::try_to_ask(path) {
                // It hung up: if because it has ended, nobody answers next time.
                Err(error) if has_hung_up(&error) && Instant::now() < deadline => {
                    std::thread::park_timeout(GOING / 100);
                }
                outcome => return outcome,
            }
        }
    }

    fn try_to_ask(path: &Path) -> io::Result<Option<Self>> {
        let Ok(connection) = connect_record(path) else { return Ok(None) };
        be_patient(&connection, PATIENCE)?;
        Word::Hello(VERSION).send(&connection, None)?;
        let kept = Kept::receive(&connection)?;
        Ok(Some(Self { kept, connection }))
    }

    /// Says that this one carries. Whether the other one has stepped back: it listens to agents and sends probes no more. Without an
    /// answer it is taken for dead.
    pub(crate) fn carries(&self) -> bool {
        let said = Word::Carrying.send(&self.connection, None);
        match said.and_then(|()| Word::receive(&self.connection)) {
            Ok((word, _)) => word == Some(Word::SteppedBack),
            Err(error) => {
                tracing::warn!(%error, "the worker before has ended early");
                false
            }
        }
    }
}

/// What a worker needs for handing over.
pub(crate) struct Old {
    pub(crate) packets: Arc<PacketThread>,
    pub(crate) probes: Arc<ProbeThread>,
    pub(crate) control: Control,
    pub(crate) parent: Parent,
}

/// Waits, in a thread of its own, for a worker that takes over. When one has, the process ends. Whoever waits there already is in the
/// way, unless it has stepped back.
///
/// # Errors
/// The path cannot be used, or another worker carries by now: one that takes over from that has to be started.
pub(crate) fn serve(path: &Path, old: Old, has_stepped_back: bool) -> io::Result<()> {
    if !has_stepped_back && answers(path) {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another worker carries by now"));
    }
    // Whole and at once in place of what a worker before has left.
    let beside = path.with_extension("new");
    let _ = fs::remove_file(&beside);
    let listener = listen_record(&beside)?;
    fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
    fs::rename(&beside, path)?;
    let wait = move || loop {
        match accept_record(&listener).and_then(|connection| old.hand_over(&connection)) {
            Ok(true) => std::process::exit(0),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "no other worker takes over; this one goes on"),
        }
    };
    std::thread::Builder::new().name("handover".into()).spawn(wait).map(|_| ())
}

impl Old {
    /// True once everything is handed over and nothing is left to be done; false when it was only looked whether somebody is here.
    fn hand_over(&self, connection: &OwnedFd) -> io::Result<bool> {
        be_patient(connection, PATIENCE)?;
        if getsockopt(connection, PeerCredentials)?.uid() != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "only root may take over"));
        }
        match Word::receive(connection) {
            Ok((Some(Word::Hello(VERSION)), _)) => {}
            Ok(other) => return Err(io::Error::other(format!("{:?} is no greeting of a worker", other.0))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
        tracing::info!("another worker takes over");
        let given = self.give(connection);
        if let Err(error) = given {
            self.packets.resume();
            self.control.hang_up();
            return Err(error);
        }
        self.step_back(connection);
        Ok(true)
    }

    fn give(&self, connection: &OwnedFd) -> io::Result<()> {
        let mut kept = self.packets.retire()?;
        self.control.add_to(&mut kept)?;
        kept.send(connection)?;
        drop(kept);
        be_patient(connection, PATIENCE_TO_CARRY)?;
        match Word::receive(connection)?.0 {
            Some(Word::Carrying) => Ok(()),
            other => Err(io::Error::other(format!("{other:?} instead of word that it carries"))),
        }
    }

    /// The other one carries.
    fn step_back(&self, connection: &OwnedFd) {
        let drained = self.packets.step_back();
        self.control.stop();
        self.probes.stop();
        self.parent.hands_over();
        if let Err(error) = Word::SteppedBack.send(connection, None) {
            tracing::warn!(%error, "the worker that took over has ended");
        }
        tracing::info!("another worker carries; this one opens what is still on its way to it");
        // Nothing is ever sent; it fails when the last lane has dropped its sender.
        let _ = drained.recv();
        tracing::info!("nothing is on its way any more; this worker ends");
    }
}

fn has_hung_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Bounds how long sending and receiving on a connection between our processes may wait.
pub(crate) fn be_patient(connection: &OwnedFd, patience: Duration) -> io::Result<()> {
    let patience = TimeVal::seconds(patience.as_secs().cast_signed());
    setsockopt(connection, ReceiveTimeout, &patience)?;
    Ok(setsockopt(connection, SendTimeout, &patience)?)
}
