// SPDX-License-Identifier: Apache-2.0
//! Two engines that serve one port for a while, in two processes: whichever receives a datagram hands what is the other's on to it.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use isthmus_packet_io::record_pair;
use isthmus_wg::{Addressee, Half, addressee};
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{MsgFlags, recv, sendmsg, setsockopt};

/// Before each datagram: where it came from (address, port, zone).
const HEADER_BYTES: usize = 16 + 2 + 4;
/// What is on its way at most, in the kernel. Beyond it datagrams are lost, as beyond the port's own buffer.
const QUEUE_BYTES: usize = 4 << 20;

/// The connection to the other engine's process.
pub struct Relay {
    socket: OwnedFd,
    theirs: Half,
    /// First messages of handshakes are the other's too.
    begins: Begins,
    buffer: Vec<u8>,
}

/// Which of the two answers peers that begin a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// This one.
    We,
    /// The other.
    They,
}

impl Relay {
    /// The two ends.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn ends() -> io::Result<(OwnedFd, OwnedFd)> {
        let ends = record_pair()?;
        for end in [&ends.0, &ends.1] {
            // Without the privilege the queue is shorter.
            let _ = setsockopt(end, SndBufForce, &QUEUE_BYTES);
        }
        Ok(ends)
    }

    /// Hands over, at this end, what is for the engine with that half of the indices.
    pub fn new(socket: OwnedFd, theirs: Half, begins: Begins) -> Self {
        Self { socket, theirs, begins, buffer: vec![0; HEADER_BYTES + 65536] }
    }

    /// Whether the other is to have it.
    pub fn is_theirs(&self, datagram: &[u8]) -> bool {
        match addressee(datagram) {
            Some(Addressee::Session(half)) => half == self.theirs,
            Some(Addressee::Anyone) => self.begins == Begins::They,
            None => false,
        }
    }

    /// Hands it over; false if it is lost.
    pub fn send(&self, from: SocketAddr, datagram: &[u8]) -> bool {
        let header = header(from);
        let parts = [IoSlice::new(&header), IoSlice::new(datagram)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], flags, None).is_ok()
    }

    /// Takes the next one that was handed over; none if there is none now.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other is gone.
    pub fn receive(&mut self) -> io::Result<Option<(SocketAddr, &[u8])>> {
        let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let (header, datagram) =
            self.buffer[..length].split_first_chunk().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((source(header), datagram)))
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn header(from: SocketAddr) -> [u8; HEADER_BYTES] {
    let (address, zone) = match from {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    let mut header = [0; HEADER_BYTES];
    header[..16].copy_from_slice(&address.octets());
    header[16..18].copy_from_slice(&from.port().to_be_bytes());
    header[18..].copy_from_slice(&zone.to_be_bytes());
    header
}

fn source(header: &[u8; HEADER_BYTES]) -> SocketAddr {
    let address = Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|at| header[at]));
    let port = u16::from_be_bytes([header[16], header[17]]);
    let zone = u32::from_be_bytes(std::array::from_fn(|at| header[18 + at]));
    match address.to_ipv4_mapped() {
        Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
        None => SocketAddr::V6(SocketAddrV6::new(address, port, 0, zone)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(half: Half) -> Vec<u8> {
        let mut datagram = vec![4, 0, 0, 0, 0, 0, 0, if half == Half::Upper { 0x80 } else { 0 }];
        datagram.resize(64, 9);
        datagram
    }

    #[test]
    fn each_hands_over_what_is_the_others_and_one_of_them_answers_whoever_begins() {
        let (old, new) = Relay::ends().unwrap();
        let old = Relay::new(old, Half::Upper, Begins::They);
        let new = Relay::new(new, Half::Lower, Begins::We);
        let initiation = [1, 0, 0, 0, 7, 7, 7, 7];
        assert!(old.is_theirs(&data(Half::Upper)) && !old.is_theirs(&data(Half::Lower)));
        assert!(new.is_theirs(&data(Half::Lower)) && !new.is_theirs(&data(Half::Upper)));
        assert!(old.is_theirs(&initiation) && !new.is_theirs(&initiation));
        assert!(!old.is_theirs(b"rubbish") && !new.is_theirs(b"rubbish"), "whoever has it drops it");
    }

    #[test]
    fn what_is_handed_over_comes_with_its_source_until_the_queue_is_full_and_nobody_waits() {
        let (here, there) = Relay::ends().unwrap();
        let here = Relay::new(here, Half::Upper, Begins::They);
        let mut there = Relay::new(there, Half::Lower, Begins::We);
        for from in ["192.0.2.1:51820", "[2001:db8::1]:7", "[fe80::1%3]:51820"] {
            let from = from.parse().unwrap();
            assert!(here.send(from, &data(Half::Upper)));
            assert_eq!(there.receive().unwrap(), Some((from, &data(Half::Upper)[..])));
        }
        assert_eq!(there.receive().unwrap(), None);
        let from = "192.0.2.1:1".parse().unwrap();
        let sent = (0..1_000_000).take_while(|_| here.send(from, &[0; 1452])).count();
        assert!((100..1_000_000).contains(&sent), "{sent} fit");
        drop(here);
        for _ in 0..sent {
            assert!(there.receive().unwrap().is_some());
        }
        assert_eq!(there.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
