// SPDX-License-Identifier: Apache-2.0
//! Netlink as far as WireGuard devices need it (netlink(7)): one request at a time, its answers, attributes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use zeroize::Zeroizing;

const HEADER_BYTES: usize = 16;
/// NLMSG_ERROR and NLMSG_DONE.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
/// NLM_F_DUMP.
pub(crate) const DUMP: u16 = 0x300;
/// NLM_F_CREATE and NLM_F_EXCL.
pub(crate) const CREATE_NEW: u16 = 0x600;
/// NLA_F_NESTED; the kernel demands it of families that check strictly.
const NESTED: u16 = 0x8000;
const ATTRIBUTE_KIND: u16 = 0x3fff;
/// The kernel answers while it takes the request; this only bounds how long a lost answer holds us.
const PATIENCE_S: i64 = 5;
const RECEIVE_BYTES: usize = 64 * 1024;

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A message from the kernel, without its header.
#[derive(Debug)]
struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Netlink {
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_S))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and returns the bodies of its answers, without acknowledgements.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let acknowledge = if flags & DUMP == DUMP { 0 } else { FLAG_ACK };
        // What is sent can hold a private key.
        let mut message = Zeroizing::new(Vec::with_capacity(HEADER_BYTES + body.len()));
        message.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | FLAG_REQUEST | acknowledge).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = Zeroizing::new(vec![0; RECEIVE_BYTES]);
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in messages(&buffer[..length]).filter(|m| m.sequence == self.sequence) {
                match message.kind {
                    DONE => return Ok(answers),
                    ERROR => return verdict(message.body).map(|()| answers),
                    _ => answers.push(message.body.to_vec()),
                }
            }
        }
    }
}

fn verdict(body: &[u8]) -> io::Result<()> {
    match body.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER_BYTES>()?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(0) as usize;
        let (kind, sequence) = (u16::from_ne_bytes([header[4], header[5]]), word(8));
        let body = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, body })
    })
}

/// The attributes in a byte string, kinds without their flags. Ends at the first malformed one.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & ATTRIBUTE_KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Appends an attribute.
pub(crate) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds attributes.
pub(crate) fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(out, kind | NESTED, &inner);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_were_put_are_read_back_and_nested_ones_without_their_flag() {
        let mut out = Vec::new();
        put(&mut out, 6, &51820_u16.to_ne_bytes());
        nest(&mut out, 8, |out| put(out, 1, &[7; 5]));
        let read: Vec<(u16, &[u8])> = attributes(&out).collect();
        assert_eq!(read[0], (6, &51820_u16.to_ne_bytes()[..]));
        assert_eq!(read[1].0, 8);
        assert_eq!(attributes(read[1].1).collect::<Vec<_>>(), [(1, &[7; 5][..])]);
    }

    #[test]
    fn what_is_cut_off_ends_the_reading_and_what_is_no_length_too() {
        let mut out = Vec::new();
        put(&mut out, 1, &[1; 9]);
        assert_eq!(attributes(&out[..8]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(messages(&[16, 0, 0, 0]).count(), 0);
        assert!(verdict(&[1]).is_err());
        assert_eq!(verdict(&(-17_i32).to_ne_bytes()).unwrap_err().raw_os_error(), Some(17));
    }
}
