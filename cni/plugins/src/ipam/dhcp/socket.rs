// SPDX-License-Identifier: Apache-2.0
//! Messages on an interface that may have no address yet, in the calling thread's network namespace.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recv, send, socket,
};

use super::client::Outgoing;
use super::wire::{self, CLIENT_PORT, Mac, Message, SERVER_PORT};

/// No server sends more: a client says how much it takes.
const FRAME_LEN: usize = 2048;
/// How long a last message may wait for the server's Ethernet address.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);
const LEAVE_PAUSE: Duration = Duration::from_millis(1);

nix::ioctl_read_bad!(unsent_bytes, libc::TIOCOUTQ, libc::c_int);

/// `tcpdump -dd 'udp dst port 68'` for Ethernet and IPv4, without fragments: what else the pod receives does not fill the queue.
const FILTER: [(u16, u8, u8, u32); 11] = [
    (0x28, 0, 0, 12),
    (0x15, 0, 8, 0x0800),
    (0x30, 0, 0, 23),
    (0x15, 0, 6, 17),
    (0x28, 0, 0, 20),
    (0x45, 4, 0, 0x1fff),
    (0xb1, 0, 0, 14),
    (0x48, 0, 0, 16),
    (0x15, 0, 1, CLIENT_PORT as u32),
    (0x06, 0, 0, u32::MAX),
    (0x06, 0, 0, 0),
];

/// An open exchange.
pub(crate) struct Wire {
    raw: OwnedFd,
    mac: Mac,
    /// Bound to the client's address, while there is one that the kernel can send from.
    own: Option<UdpSocket>,
}

impl Wire {
    /// Opens an exchange on the link of the index.
    ///
    /// # Errors
    /// Those of the system: it needs CAP_NET_RAW.
    pub(crate) fn open(index: u32, mac: Mac) -> io::Result<Self> {
        // Of no protocol, so that nothing comes before the filter is there.
        let raw = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        attach_filter(&raw)?;
        bind(raw.as_raw_fd(), &link_address(index)?)?;
        Ok(Self { raw, mac, own: None })
    }

    /// Sends to the server by the kernel's own way where that can be, else to everybody on the link.
    pub(crate) fn send(&mut self, outgoing: &Outgoing) -> io::Result<()> {
        let (own, payload) = (outgoing.message.ciaddr, outgoing.message.encode());
        if let Some(server) = outgoing.to {
            self.own = UdpSocket::bind((own, CLIENT_PORT)).ok();
            if let Some(socket) = &self.own
                && socket.send_to(&payload, (server, SERVER_PORT)).is_ok()
            {
                return Ok(());
            }
        }
        self.send_raw(own, outgoing.to.unwrap_or(Ipv4Addr::BROADCAST), &payload)
    }

    /// Sends a message that has to be out before the link goes.
    pub(crate) fn send_last(&mut self, outgoing: &Outgoing) -> io::Result<()> {
        self.send(outgoing)?;
        let Some(socket) = &self.own else { return Ok(()) };
        let deadline = Instant::now() + LEAVE_PATIENCE;
        while unsent(socket)? > 0 {
            if Instant::now() >= deadline {
                let server = outgoing.to.unwrap_or(Ipv4Addr::BROADCAST);
                return self.send_raw(outgoing.message.ciaddr, server, &outgoing.message.encode());
            }
            std::thread::park_timeout(LEAVE_PAUSE);
        }
        Ok(())
    }

    fn send_raw(&self, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> io::Result<()> {
        send(self.raw.as_raw_fd(), &wire::frame((self.mac, from), to, payload), MsgFlags::empty())?;
        Ok(())
    }

    /// The next message, or none until the deadline. What is no message is passed over.
    pub(crate) fn receive(&self, deadline: Instant) -> io::Result<Option<Message>> {
        let mut frame = [0; FRAME_LEN];
        loop {
            match recv(self.raw.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => {
                    let payload = frame.get(..length).and_then(wire::payload);
                    if let Some(message) = payload.and_then(Message::parse) {
                        return Ok(Some(message));
                    }
                    // Others may send without end.
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    // A part of a millisecond is waited for as a whole one.
                    let left =
                        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
                    match poll(&mut [PollFd::new(self.raw.as_fd(), PollFlags::POLLIN)], left) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Bytes that wait in the kernel, such as for the next hop's Ethernet address.
#[expect(unsafe_code, reason = "no library has this ioctl")]
fn unsent(socket: &UdpSocket) -> io::Result<libc::c_int> {
    let mut bytes = 0;
    // SAFETY: the kernel writes one int to the pointer.
    unsafe { unsent_bytes(socket.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

#[expect(unsafe_code, reason = "no library sets this option")]
fn attach_filter(socket: &OwnedFd) -> io::Result<()> {
    let mut filter = FILTER.map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the kernel reads a `struct sock_fprog` and the instructions that it points to; both live until the end of this function.
    let done = unsafe {
        let pointer = (&raw const program).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, pointer, length)
    };
    Errno::result(done)?;
    Ok(())
}

#[expect(unsafe_code, reason = "the library makes such addresses from the system's structure only")]
fn link_address(index: u32) -> io::Result<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: it is a whole address of its family.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::socketpair;

    use super::*;

    #[test]
    fn frames_that_are_no_messages_do_not_hold_a_listener_beyond_its_deadline() {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (raw, far) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags).unwrap();
        for _ in 0..3 {
            send(far.as_raw_fd(), b"no message", MsgFlags::empty()).unwrap();
        }
        let wire = Wire { raw, mac: Mac::default(), own: None };
        assert_eq!(wire.receive(Instant::now()).unwrap(), None);
        let mut frame = [0; FRAME_LEN];
        assert_eq!(recv(wire.raw.as_raw_fd(), &mut frame, MsgFlags::empty()), Ok(10), "it read on");
    }
}
