// SPDX-License-Identifier: Apache-2.0
//! The agent's end of the socket.

use std::io::{self, BufReader};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isthmus_model::dataplane::{DataplaneConfig, Report, Request};
use isthmus_packet_io::{receive_byte, send_byte};

use crate::wire::{PROTOCOL_VERSION, read_frame, write_frame};

/// How long the other side may take to say hello or to read a request.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the data plane process cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It does not answer on its socket.
    #[error("the data plane process does not answer on {}: {error}; does a pod of DaemonSet isthmus-dataplane run on this node?", socket.display())]
    Unreachable {
        /// Which socket.
        socket: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// It speaks another version.
    #[error("the data plane process speaks protocol {0}, this agent 1; run both from one image")]
    Version(u8),
    /// It passed no netlink socket on.
    #[error("the data plane process handed over no netlink socket; see its log")]
    NoSocket,
    /// The connection broke.
    #[error("the data plane process cannot be told: {0}")]
    Broken(#[from] io::Error),
}

/// What comes from the data plane process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A report.
    Report(Report),
    /// The connection is over, and why; the last event.
    Closed(String),
}

/// A connection to the data plane process.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

/// Connects and agrees on the netlink socket that owns the nftables table. `offered` is the one that the agent uses already, after the
/// data plane process was started anew; what comes back is the one to use.
///
/// # Errors
/// [`ClientError`]; try again later.
pub fn connect(socket: &Path, offered: Option<BorrowedFd<'_>>) -> Result<(Client, OwnedFd), ClientError> {
    let greet = || -> io::Result<(UnixStream, u8, Option<OwnedFd>)> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        send_byte(&stream, PROTOCOL_VERSION, offered)?;
        let (version, owner) = receive_byte(&stream)?;
        stream.set_read_timeout(None)?;
        Ok((stream, version, owner))
    };
    let (stream, version, owner) =
        greet().map_err(|error| ClientError::Unreachable { socket: socket.to_owned(), error })?;
    if version != PROTOCOL_VERSION {
        return Err(ClientError::Version(version));
    }
    Ok((Client { stream }, owner.ok_or(ClientError::NoSocket)?))
}

impl Client {
    /// Starts a thread that calls `on_event` with everything that comes, until [`Event::Closed`]. To be called once.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn listen(&self, mut on_event: impl FnMut(Event) + Send + 'static) -> Result<(), ClientError> {
        let mut reader = BufReader::new(self.stream.try_clone()?);
        let listener = std::thread::Builder::new().name("dataplane".into());
        listener.spawn(move || {
            let reason = loop {
                match read_frame(&mut reader) {
                    Ok(Some(line)) => match serde_json::from_slice(&line) {
                        Ok(report) => on_event(Event::Report(report)),
                        Err(error) => break format!("a report that cannot be read: {error}"),
                    },
                    Ok(None) => break "the data plane process closed the connection".to_owned(),
                    Err(error) => break error.to_string(),
                }
            };
            on_event(Event::Closed(reason));
        })?;
        Ok(())
    }

    /// Sends a request. What becomes of it arrives as an event.
    ///
    /// # Errors
    /// [`ClientError::Broken`]; connect again.
    pub fn request(&mut self, request: &Request) -> Result<(), ClientError> {
        let line = serde_json::to_string(request).map_err(io::Error::other)?;
        Ok(write_frame(&mut self.stream, &line)?)
    }

    /// Has the process run exactly this.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn configure(&mut self, config: &DataplaneConfig) -> Result<(), ClientError> {
        self.request(&Request::Configure(config.clone()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The listener holds a copy of the stream: without this it would never see the end.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
