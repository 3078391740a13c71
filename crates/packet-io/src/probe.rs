// SPDX-License-Identifier: Apache-2.0
//! UDP sockets for probes: bound to a device, answering through the device that a packet came from, never fragmented.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::sockopt::{BindToDevice, IpFreebind, Ipv4PacketInfo, Ipv6RecvPacketInfo, Ipv6V6Only};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
    recvmsg, sendmsg, setsockopt, socket,
};

use crate::udp::set_option;

/// What a probe socket is bound to.
#[derive(Clone, Copy, Debug)]
pub struct ProbeSocketOptions<'a> {
    /// Local address; port 0 for any.
    pub bind: SocketAddr,
    /// Device through which packets leave and arrive, and no other.
    pub device: Option<&'a str>,
    /// Bind although the address is not there yet (IP_FREEBIND).
    pub early: bool,
}

/// Where a datagram came from and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Length in bytes.
    pub length: usize,
    /// Sender.
    pub from: SocketAddr,
    /// Index of the device that it arrived on.
    pub device_index: Option<u32>,
}

/// A datagram socket that never fragments and never blocks.
#[derive(Debug)]
pub struct ProbeSocket {
    socket: OwnedFd,
}

impl ProbeSocket {
    /// Opens and binds.
    ///
    /// # Errors
    /// The device is not there (ENODEV), the address is not there (EADDRNOTAVAIL) or in use (EADDRINUSE).
    pub fn open(options: ProbeSocketOptions<'_>) -> io::Result<Self> {
        let v6 = options.bind.is_ipv6();
        let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Datagram, flags, None)?;
        if let Some(device) = options.device {
            setsockopt(&socket, BindToDevice, &device.into())?;
        }
        if v6 {
            setsockopt(&socket, Ipv6V6Only, &true)?;
            setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
            if options.early {
                set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1)?;
            }
        } else {
            setsockopt(&socket, Ipv4PacketInfo, &true)?;
            set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
            if options.early {
                setsockopt(&socket, IpFreebind, &true)?;
            }
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(options.bind))?;
        Ok(Self { socket })
    }

    /// Takes the next datagram; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// As of recvmsg(2), among them errors that ICMP brought.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let device_index = message.cmsgs()?.find_map(|attached| match attached {
            ControlMessageOwned::Ipv4PacketInfo(info) => u32::try_from(info.ipi_ifindex).ok(),
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_ifindex),
            _ => None,
        });
        let from = message.address.as_ref().and_then(socket_address);
        let from = from.ok_or_else(|| io::Error::other("a datagram without a sender's address"))?;
        Ok(Arrival { length: message.bytes, from, device_index })
    }

    /// Sends one datagram, from `source` and through the device of this index if they are given.
    ///
    /// # Errors
    /// EMSGSIZE when it is larger than the device's MTU; no route; the device is gone.
    pub fn send(&self, to: SocketAddr, datagram: &[u8], device_index: Option<u32>) -> io::Result<()> {
        let slices = [IoSlice::new(datagram)];
        let v4 = libc::in_pktinfo {
            ipi_ifindex: device_index.unwrap_or(0).cast_signed(),
            ipi_spec_dst: libc::in_addr { s_addr: 0 },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let v6 = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: Ipv6Addr::UNSPECIFIED.octets() },
            ipi6_ifindex: device_index.unwrap_or(0),
        };
        let info = match to.ip() {
            IpAddr::V4(_) => ControlMessage::Ipv4PacketInfo(&v4),
            IpAddr::V6(_) => ControlMessage::Ipv6PacketInfo(&v6),
        };
        let attached = [info];
        let attached: &[ControlMessage<'_>] = if device_index.is_some() { &attached } else { &[] };
        let to = SockaddrStorage::from(to);
        sendmsg(self.socket.as_raw_fd(), &slices, attached, MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }

    /// Sends datagrams of `length` bytes each, which lie one after the other, at once (UDP_SEGMENT); one by one where the kernel or
    /// the device cannot.
    ///
    /// # Errors
    /// As of [`Self::send`].
    pub fn send_together(&self, to: SocketAddr, datagrams: &[u8], length: usize) -> io::Result<()> {
        let segment = u16::try_from(length).map_err(io::Error::other)?;
        let (address, slices) = (SockaddrStorage::from(to), [IoSlice::new(datagrams)]);
        let attached = [ControlMessage::UdpGsoSegments(&segment)];
        let descriptor = self.socket.as_raw_fd();
        match sendmsg(descriptor, &slices, &attached, MsgFlags::MSG_DONTWAIT, Some(&address)) {
            Ok(_) => Ok(()),
            Err(_) => datagrams.chunks(length).try_for_each(|datagram| self.send(to, datagram, None)),
        }
    }
}

impl AsFd for ProbeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn wait(socket: &ProbeSocket) {
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut polled, PollTimeout::from(2000u16)), Ok(1), "nothing arrived within 2 s");
    }

    #[test]
    fn a_datagram_names_its_sender_and_its_device_and_can_be_answered_through_it() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let bind: SocketAddr = any.parse().unwrap();
            let open = || ProbeSocket::open(ProbeSocketOptions { bind, device: None, early: false }).unwrap();
            let (asks, answers) = (open(), open());
            let to = std::net::UdpSocket::from(answers.socket.try_clone().unwrap()).local_addr().unwrap();
            asks.send(to, b"hello", None).unwrap();
            wait(&answers);
            let mut buffer = [0; 64];
            let arrival = answers.receive(&mut buffer).unwrap();
            assert_eq!(&buffer[..arrival.length], b"hello");
            let index = nix::net::if_::if_nametoindex("lo").unwrap();
            assert_eq!(arrival.device_index, Some(index));
            answers.send(arrival.from, b"hi", Some(index)).unwrap();
            wait(&asks);
            assert_eq!(asks.receive(&mut buffer).unwrap().length, 2);
            assert_eq!(asks.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn an_address_that_is_not_there_yet_can_be_bound_early() {
        for text in ["192.0.2.77:0", "[2001:db8::77]:0"] {
            let bind: SocketAddr = text.parse().unwrap();
            assert!(ProbeSocket::open(ProbeSocketOptions { bind, device: None, early: true }).is_ok());
            assert!(ProbeSocket::open(ProbeSocketOptions { bind, device: None, early: false }).is_err());
        }
    }
}
