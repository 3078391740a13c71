// SPDX-License-Identifier: Apache-2.0
//! File descriptors that pass from process to process: attached to a byte or a record over a Unix socket (SCM_RIGHTS, unix(7)), or
//! inherited.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Descriptors that the kernel attaches to one message at most (SCM_MAX_FD): with room for all, none is ever cut off and left open.
const MOST_ATTACHED: usize = 253;

/// Sends the byte, with a copy of the descriptor if there is one.
///
/// # Errors
/// The other end is gone, or the stream's write timeout is over.
pub fn send_byte(stream: &UnixStream, byte: u8, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_record(stream, &[byte], descriptor)
}

/// Receives the byte, with the descriptor if one is attached.
///
/// # Errors
/// `UnexpectedEof` when the other end is gone; the stream's read timeout.
pub fn receive_byte(stream: &UnixStream) -> io::Result<(u8, Option<OwnedFd>)> {
    let mut data = [0];
    let (_, descriptor) = receive_record(stream, &mut data)?;
    Ok((data[0], descriptor))
}

/// Sends the record, which has one byte at least, with a copy of the descriptor if there is one.
///
/// # Errors
/// The other end is gone, or takes nothing for as long as the socket's timeout.
pub fn send_record(socket: &impl AsFd, record: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let attached: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let socket = socket.as_fd().as_raw_fd();
    sendmsg::<()>(socket, &[IoSlice::new(record)], attached, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives the next record into the buffer: its length, and the first of the descriptors that are attached. Others are closed.
///
/// # Errors
/// `UnexpectedEof` when the other end is gone; the socket's timeout.
pub fn receive_record(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MOST_ATTACHED]);
    let mut slices = [IoSliceMut::new(buffer)];
    let socket = socket.as_fd().as_raw_fd();
    let message = recvmsg::<()>(socket, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for attached in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = attached {
            // SAFETY: the kernel has just made these descriptors for this process; nobody else knows them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((message.bytes, descriptors.into_iter().next()))
}

/// The next process that is started inherits the descriptor, under this number.
///
/// # Errors
/// As of fcntl(2).
pub fn bequeath(descriptor: &OwnedFd) -> io::Result<RawFd> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(descriptor.as_raw_fd())
}

/// A copy of a descriptor that the process was started with. It goes to no further process.
///
/// # Errors
/// There is none of this number.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is lent to two calls of fcntl(2), which refuse one under which nothing is open; nothing is closed.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    descriptor.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record_pair;
    use std::io::{Read, Write};

    #[test]
    fn a_descriptor_arrives_as_a_working_copy() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        send_byte(&here, 7, Some(near.as_fd())).unwrap();
        let (byte, passed) = receive_byte(&there).unwrap();
        assert_eq!(byte, 7);
        drop(near);
        UnixStream::from(passed.unwrap()).write_all(b"through").unwrap();
        let mut text = [0; 7];
        far.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"through");
    }

    #[test]
    fn a_byte_alone_arrives_alone_and_the_end_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        send_byte(&here, 1, None).unwrap();
        drop(here);
        let (byte, passed) = receive_byte(&there).unwrap();
        assert!(byte == 1 && passed.is_none());
        assert_eq!(receive_byte(&there).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn records_keep_their_bounds_and_of_many_descriptors_the_first_is_taken() {
        let (here, there) = record_pair().unwrap();
        send_record(&here, b"first", None).unwrap();
        send_record(&here, b"second", Some(there.as_fd())).unwrap();
        let mut buffer = [0; 16];
        let (length, passed) = receive_record(&there, &mut buffer).unwrap();
        assert!(&buffer[..length] == b"first" && passed.is_none());
        let (length, passed) = receive_record(&there, &mut buffer).unwrap();
        assert!(&buffer[..length] == b"second" && passed.is_some());
        let many = [there.as_raw_fd(); MOST_ATTACHED];
        let rights = [ControlMessage::ScmRights(&many)];
        sendmsg::<()>(here.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        assert!(receive_record(&there, &mut buffer).unwrap().1.is_some());
        assert!(open() < before + 100, "{before} descriptors were open, {} are", open());
    }
}
