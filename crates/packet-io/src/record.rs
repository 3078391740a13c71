// SPDX-License-Identifier: Apache-2.0
//! Unix sockets that keep the bounds of records (SOCK_SEQPACKET, unix(7)), which the standard library has not.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
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
    let listener = open(SockFlag::empty())?;
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
    let connection = open(SockFlag::empty())?;
    connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(connection)
}

/// Whether somebody listens at the path. Never waits: of one that has more callers than it can queue, it is true.
pub fn is_listened_at(path: &Path) -> bool {
    let attempt = || connect(open(SockFlag::SOCK_NONBLOCK)?.as_raw_fd(), &UnixAddr::new(path)?);
    matches!(attempt(), Ok(()) | Err(Errno::EAGAIN))
}

fn open(flags: SockFlag) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | flags, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_also_with_a_full_queue_and_who_does_not_any_more_is_not() {
        let dir = std::env::temp_dir().join(format!("isthmus-record-{}", std::process::id()));
        let _ = std::fs::remove_file(&dir);
        assert!(!is_listened_at(&dir));
        let listener = listen_record(&dir).unwrap();
        assert!((0..100).all(|_| is_listened_at(&dir)));
        assert!(accept_record(&listener).is_ok() && connect_record(&dir).is_ok());
        drop(listener);
        assert!(!is_listened_at(&dir));
        std::fs::remove_file(&dir).unwrap();
    }
}
