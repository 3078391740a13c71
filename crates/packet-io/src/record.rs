// SPDX-License-Identifier: Apache-2.0
//! Unix sockets that keep the bounds of records (SOCK_SEQPACKET, unix(7)), which the standard library has not.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket, socketpair,
};

/// Two ends of a connection. Neither is inherited.
///
/// # Errors
/// No descriptors left.
pub fn record_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Listens at the path.
///
/// # Errors
/// The path is too long, is there already, or its directory may not be written.
pub fn listen_record(path: &Path) -> io::Result<OwnedFd> {
    let listener = open()?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}

/// The next connection.
///
/// # Errors
/// No descriptors left.
pub fn accept_record(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just made this descriptor for this process; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

/// Connects to whoever listens at the path.
///
/// # Errors
/// Nobody does, any more or yet.
pub fn connect_record(path: &Path) -> io::Result<OwnedFd> {
    let connection = open()?;
    connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(connection)
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}
