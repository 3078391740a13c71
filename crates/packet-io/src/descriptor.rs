// SPDX-License-Identifier: Apache-2.0
//! One byte over a Unix socket, with a file descriptor attached (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends the byte, with a copy of the descriptor if there is one.
///
/// # Errors
/// The other end is gone, or the stream's write timeout is over.
pub fn send_byte(stream: &UnixStream, byte: u8, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let data = [byte];
    let raw: Vec<i32> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let attached: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&data)], attached, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives the byte, with the descriptor if one is attached.
///
/// # Errors
/// `UnexpectedEof` when the other end is gone; the stream's read timeout.
pub fn receive_byte(stream: &UnixStream) -> io::Result<(u8, Option<OwnedFd>)> {
    let mut data = [0];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut slices = [IoSliceMut::new(&mut data)];
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
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
    Ok((data[0], descriptors.into_iter().next()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

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
}
