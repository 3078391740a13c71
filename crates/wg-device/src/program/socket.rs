// SPDX-License-Identifier: Apache-2.0
//! The socket by which `wg(8)` configures the interface. Each connection has a thread; what it asks for is done by the thread that
//! carries packets.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use isthmus_wg_uapi::{Errno, Reader, Request, SetRequest, answer_to_set};
use zeroize::Zeroizing;

use crate::Bell;

/// Where the sockets of all userspace implementations lie.
const DIRECTORY: &str = "/var/run/wireguard";
/// How long a connection may take with its next bytes.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections at the same time.
const CONNECTIONS: usize = 16;
const STACK_BYTES: usize = 256 << 10;

/// What a connection, or the end of the process, asks for.
pub(super) enum Asking {
    Get(Sender<Zeroizing<String>>),
    Set(Box<SetRequest>, Sender<Result<(), Errno>>),
    End,
}

/// The socket of the interface.
pub(super) fn path_of(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{interface}.sock"))
}

/// The socket's file, which goes when this is dropped.
pub(super) struct Socket {
    path: PathBuf,
}

impl Socket {
    /// Serves the socket in a thread of its own. Only root may connect.
    ///
    /// # Errors
    /// The path cannot be used, or another process serves it.
    pub(super) fn serve(path: PathBuf, asking: Sender<Asking>, bell: Arc<Bell>) -> io::Result<Self> {
        let listener = bind(&path)?;
        let connections = Arc::new(AtomicUsize::new(0));
        let accept = move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    // No descriptor is left: one that ends gives one back.
                    std::thread::sleep(PAUSE);
                    continue;
                };
                if connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
                    connections.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (asking, bell, open) = (asking.clone(), Arc::clone(&bell), Arc::clone(&connections));
                let serve = move || {
                    // Whoever is gone needs no answer.
                    let _ = converse(&stream, &asking, &bell);
                    open.fetch_sub(1, Ordering::Relaxed);
                };
                if spawn("connection", serve).is_err() {
                    connections.fetch_sub(1, Ordering::Relaxed);
                }
            }
        };
        spawn("accept", accept)?;
        Ok(Self { path })
    }

    /// Whether the file is still there.
    pub(super) fn is_there(&self) -> bool {
        self.path.exists()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run).map(drop)
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it"));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Nobody else may connect in the moment between bind and chmod.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn converse(mut stream: &UnixStream, asking: &Sender<Asking>, bell: &Bell) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let mut reader = Reader::default();
    let mut piece = Zeroizing::new([0; 4096]);
    loop {
        let length = stream.read(piece.as_mut_slice())?;
        if length == 0 {
            return Ok(());
        }
        reader.push(&piece[..length]);
        while let Some(request) = reader.next_request() {
            match request {
                Ok(Request::Get) => {
                    let (answer, answered) = channel();
                    asking.send(Asking::Get(answer)).map_err(|_| gone())?;
                    bell.ring();
                    stream.write_all(answered.recv().map_err(|_| gone())?.as_bytes())?;
                }
                Ok(Request::Set(request)) => {
                    let (answer, answered) = channel();
                    asking.send(Asking::Set(Box::new(request), answer)).map_err(|_| gone())?;
                    bell.ring();
                    let result = answered.recv().map_err(|_| gone())?;
                    stream.write_all(answer_to_set(result).as_bytes())?;
                }
                Err(refusal) => {
                    eprintln!("isthmus-wg: a request was refused: {refusal}");
                    stream.write_all(refusal.answer().as_bytes())?;
                }
            }
        }
        if reader.is_over() {
            return Ok(());
        }
    }
}
