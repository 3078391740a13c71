// SPDX-License-Identifier: Apache-2.0
//! The Unix socket for the agent. Only root may speak; each connection has a thread that reads and one that reports.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufReader};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_model::dataplane::{Report, Request};
use isthmus_packet_io::{receive_byte, send_byte};
use isthmus_wg_device::{Bell, Ear, bell};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{AcceptConn, PeerCredentials};
use nix::sys::socket::{UnixAddr, getsockname, getsockopt};

use crate::board::Board;
use crate::kept::{Kept, KeptName, Parent};
use crate::owner::OwnerSocket;
use crate::packets::{BEING_REPLACED, PacketThread};
use crate::probe::ProbeThread;
use crate::wire::{PROTOCOL_VERSION, read_frame, write_frame};

/// How long an agent may take to say hello or to read a report.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a process that is going may take.
const GOING: Duration = Duration::from_secs(2);

/// What a connection acts upon.
pub(crate) struct Parts {
    pub(crate) board: Arc<Board>,
    pub(crate) packets: Arc<PacketThread>,
    pub(crate) probes: Arc<ProbeThread>,
    pub(crate) parent: Parent,
}

/// What a worker before this one had.
pub(crate) struct Inherited {
    pub(crate) owner: Option<OwnedFd>,
    /// The socket itself: agents that knock in between are heard.
    pub(crate) agents: Option<OwnedFd>,
}

/// Those who serve agents, for whoever ends that.
#[derive(Clone)]
pub(crate) struct Control(Arc<Shared>);

struct Shared {
    parts: Parts,
    owner: OwnerSocket,
    /// One configuration at a time, whole.
    applying: Mutex<()>,
    listener: UnixListener,
    /// Another process listens, or is about to.
    stopped: AtomicBool,
    bell: Bell,
    /// Of agents that are connected.
    streams: Mutex<BTreeMap<i32, UnixStream>>,
}

/// Serves the socket in a thread of its own.
///
/// # Errors
/// The path cannot be used, or another data plane process serves it.
pub(crate) fn start(path: &Path, inherited: Inherited, parts: Parts) -> io::Result<Control> {
    let listener = match inherited.agents.filter(|socket| serves(socket, path)) {
        Some(kept) => UnixListener::from(kept),
        None => bind(path)?,
    };
    listener.set_nonblocking(true)?;
    parts.parent.keep(KeptName::agents(), &listener);
    let (bell, ear) = bell()?;
    let shared = Arc::new(Shared {
        parts,
        owner: OwnerSocket::new(inherited.owner),
        applying: Mutex::new(()),
        listener,
        stopped: AtomicBool::new(false),
        bell,
        streams: Mutex::default(),
    });
    let accepting = Arc::clone(&shared);
    spawn("accept", move || accept(&accepting, &ear))?;
    Ok(Control(shared))
}

impl Control {
    /// What another process needs to serve agents.
    pub(crate) fn add_to(&self, kept: &mut Kept) -> io::Result<()> {
        kept.put(KeptName::agents(), self.0.listener.as_fd().try_clone_to_owned()?);
        if let Some(owner) = self.0.owner.held() {
            kept.put(KeptName::owner(), owner);
        }
        Ok(())
    }

    /// Has agents connect anew, and configure what they could not while another worker was about to take over.
    pub(crate) fn hang_up(&self) {
        let streams = std::mem::take(&mut *lock(&self.0.streams));
        for stream in streams.into_values() {
            // One that has hung up itself is none.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Listens no more. Agents that knock are heard by whoever else has the socket.
    pub(crate) fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.bell.ring();
        self.hang_up();
    }
}

fn accept(shared: &Arc<Shared>, ear: &Ear) {
    while !shared.stopped.load(Ordering::Acquire) {
        let mut polled = [
            PollFd::new(shared.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(ear.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut polled, PollTimeout::NONE).is_err() {
            continue;
        }
        // Another process that has the socket may have been faster.
        let Ok((stream, _)) = shared.listener.accept() else { continue };
        let shared = Arc::clone(shared);
        let served = spawn("agent", move || {
            if let Err(error) = shared.attend(&stream) {
                tracing::warn!(%error, "connection to the agent ended");
            }
        });
        if let Err(error) = served {
            tracing::error!(%error, "no thread for an agent's connection");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(|_| ())
}

/// Whether it is the socket that the path leads to, and not one that was there before.
fn serves(socket: &OwnedFd, path: &Path) -> bool {
    let bound = getsockname::<UnixAddr>(socket.as_raw_fd());
    let listens = getsockopt(socket, AcceptConn).unwrap_or(false);
    bound.is_ok_and(|bound| bound.path() == Some(path)) && listens && path.exists()
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    }
    // One whose parent has just been killed still takes a moment to go.
    let deadline = Instant::now() + GOING;
    while UnixStream::connect(path).is_ok() {
        if Instant::now() >= deadline {
            let text = format!("another data plane process serves {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        std::thread::park_timeout(GOING / 100);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn serve(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    if peer.uid() != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "only root may configure the data plane",
        ));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (version, offered) = receive_byte(stream)?;
    if version != PROTOCOL_VERSION {
        send_byte(stream, PROTOCOL_VERSION, None)?;
        return Err(io::Error::other(format!("the agent speaks protocol {version}, this process 1")));
    }
    let owner = shared.owner.agree(offered)?;
    shared.parts.parent.keep(KeptName::owner(), &owner);
    send_byte(stream, PROTOCOL_VERSION, Some(owner.as_fd()))?;
    drop(owner);
    stream.set_read_timeout(None)?;
    tracing::info!(pid = peer.pid(), "agent connected");

    let writer = Arc::new(Mutex::new(stream.try_clone()?));
    let over = Arc::new(AtomicBool::new(false));
    let reporter = (Arc::clone(&shared.parts.board), Arc::clone(&writer), Arc::clone(&over));
    spawn("report", move || report(&reporter.0, &reporter.1, &reporter.2))?;
    let result = obey(stream, shared, &writer);
    over.store(true, Ordering::Release);
    // The reporter may sit in a write to an agent that reads no more.
    let _ = stream.shutdown(Shutdown::Both);
    result
}

/// Carries out requests until the agent hangs up. What runs stays as it is then.
fn obey(stream: &UnixStream, shared: &Shared, writer: &Mutex<UnixStream>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(line) = read_frame(&mut reader)? {
        let failures = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => shared.carry_out(request),
            Err(error) => vec![format!("a request that cannot be read: {error}")],
        };
        if !failures.is_empty() {
            tell(writer, &Report::Failed(failures.join("; ")))?;
        }
        shared.parts.board.ask_for_report();
    }
    Ok(())
}

impl Shared {
    /// Serves the connection, unless this process serves no more.
    fn attend(&self, stream: &UnixStream) -> io::Result<()> {
        let number = stream.as_raw_fd();
        let copy = stream.try_clone()?;
        lock(&self.streams).insert(number, copy);
        // Whoever stops says so first, and hangs up on those that are named then.
        let outcome = if self.stopped.load(Ordering::Acquire) { Ok(()) } else { serve(stream, self) };
        lock(&self.streams).remove(&number);
        outcome
    }

    fn carry_out(&self, request: Request) -> Vec<String> {
        let _alone = lock(&self.applying);
        match request {
            Request::Configure(config) => {
                let failures = self.parts.packets.configure(&config);
                if failures != [BEING_REPLACED] {
                    self.parts.probes.configure(config);
                }
                failures
            }
            Request::RotateKey => self.parts.packets.rotate_key(),
        }
    }
}

fn report(board: &Board, writer: &Mutex<UnixStream>, over: &AtomicBool) {
    let mut told = None;
    while !over.load(Ordering::Acquire) {
        let Some((state, now_told)) = board.wait(told) else { continue };
        told = Some(now_told);
        if tell(writer, &Report::State(state)).is_err() {
            return;
        }
    }
}

fn tell(writer: &Mutex<UnixStream>, report: &Report) -> io::Result<()> {
    let line = serde_json::to_string(report).map_err(io::Error::other)?;
    write_frame(&mut *lock(writer), &line)
}
