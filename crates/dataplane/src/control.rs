// SPDX-License-Identifier: Apache-2.0
//! The Unix socket for the agent. Only root may speak; each connection has a thread that reads and one that reports.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use isthmus_model::dataplane::{Report, Request};
use isthmus_packet_io::{receive_byte, send_byte};
use nix::sys::socket::sockopt::{AcceptConn, PeerCredentials};
use nix::sys::socket::{UnixAddr, getsockname, getsockopt};

use crate::board::Board;
use crate::kept::{KeptName, Parent};
use crate::owner::OwnerSocket;
use crate::packets::PacketThread;
use crate::probe::ProbeThread;
use crate::wire::{PROTOCOL_VERSION, read_frame, write_frame};

/// How long an agent may take to say hello or to read a report.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a process that is going may take.
const GOING: Duration = Duration::from_secs(2);

/// What a connection acts upon.
pub(crate) struct Parts {
    pub(crate) board: Arc<Board>,
    pub(crate) packets: PacketThread,
    pub(crate) probes: ProbeThread,
    pub(crate) parent: Parent,
}

/// What a worker before this one had.
pub(crate) struct Inherited {
    pub(crate) owner: Option<OwnedFd>,
    /// The socket itself: agents that knock in between are heard.
    pub(crate) agents: Option<OwnedFd>,
}

struct Shared {
    parts: Parts,
    owner: OwnerSocket,
    /// One configuration at a time, whole.
    applying: Mutex<()>,
}

/// Serves the socket in a thread of its own.
///
/// # Errors
/// The path cannot be used, or another data plane process serves it.
pub(crate) fn start(path: &Path, inherited: Inherited, parts: Parts) -> io::Result<()> {
    let listener = match inherited.agents.filter(|socket| serves(socket, path)) {
        Some(kept) => UnixListener::from(kept),
        None => bind(path)?,
    };
    parts.parent.keep(KeptName::agents(), &listener);
    let owner = OwnerSocket::new(inherited.owner);
    let shared = Arc::new(Shared { parts, owner, applying: Mutex::new(()) });
    spawn("accept", move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let shared = Arc::clone(&shared);
            let served = spawn("agent", move || {
                if let Err(error) = serve(&stream, &shared) {
                    tracing::warn!(%error, "connection to the agent ended");
                }
            });
            if let Err(error) = served {
                tracing::error!(%error, "no thread for an agent's connection");
            }
        }
    })
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
    let _ = stream.shutdown(std::net::Shutdown::Both);
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
    fn carry_out(&self, request: Request) -> Vec<String> {
        let _alone = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        match request {
            Request::Configure(config) => {
                let failures = self.parts.packets.configure(&config);
                self.parts.probes.configure(config);
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
    write_frame(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner), &line)
}
