// SPDX-License-Identifier: Apache-2.0
//! One UDP port for both address families, sent and received in batches with segmentation offload where the kernel has it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::sockopt::{
    self, Ipv6V6Only, Mark, RcvBufForce, SendTimeout, SndBufForce, UdpGroSegment,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, getsockname, getsockopt, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::address::{from_kernel, to_kernel};

/// Bytes of one place in a [`SendBatch`]: a jumbo frame and the overhead of a tunnel.
pub const SLOT_BYTES: usize = 9216;
/// Places in a [`SendBatch`]: two reads of a device with 64 KiB of TCP each, so that they leave in few full sends.
const SEND_SLOTS: usize = 128;
/// Datagrams that one segmented send holds at most; 64 is the limit of kernels before 6.9.
const SEGMENTS: usize = 64;
/// Bytes that one segmented send holds at most: what IPv4 carries (RFC 791), less IPv6 and UDP headers.
const SEGMENTED_BYTES: usize = 65535 - 48;
/// Buffers in a [`ReceiveBatch`], each for a whole coalesced datagram.
const RECEIVE_SLOTS: usize = 16;
const RECEIVE_BYTES: usize = 65536;
/// Kernel buffer for each direction.
const KERNEL_BUFFER_BYTES: usize = 4 << 20;
/// Space for one control message that carries a segment size, with room to spare.
const CONTROL_BYTES: usize = 32;

/// A UDP port. Receiving never blocks, sending waits at most 50 ms for room.
#[derive(Debug)]
pub struct UdpPort {
    socket: OwnedFd,
}

impl UdpPort {
    /// Opens the port on all addresses of both families. Port 0 takes any. What is sent is never fragmented; sizes that routers
    /// claim in ICMP messages are not believed, as anybody can forge them.
    ///
    /// # Errors
    /// The port is in use, or the kernel has no IPv6 at all.
    pub fn open(port: u16) -> io::Result<Self> {
        let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, Ipv6V6Only, &false)?;
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(50))?;
        // Larger buffers and coalescing make it faster, not right: a kernel or container without them will do.
        let _ = setsockopt(&socket, RcvBufForce, &KERNEL_BUFFER_BYTES);
        let _ = setsockopt(&socket, SndBufForce, &KERNEL_BUFFER_BYTES);
        let _ = setsockopt(&socket, UdpGroSegment, &true);
        bind(socket.as_raw_fd(), &SockaddrIn6::from(std::net::SocketAddrV6::new([0; 8].into(), port, 0, 0)))?;
        Ok(Self { socket })
    }

    /// Goes on with a port that another process has opened and handed over.
    ///
    /// # Errors
    /// It is no UDP socket of this port.
    pub fn adopt(socket: OwnedFd, port: u16) -> io::Result<Self> {
        let adopted = Self { socket };
        if getsockopt(&adopted.socket, sockopt::SockType)? != SockType::Datagram || adopted.port()? != port {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is not UDP port {port}")));
        }
        Ok(adopted)
    }

    /// Marks what is sent, for policy routing (SO_MARK); 0 for no mark.
    ///
    /// # Errors
    /// The process has not the privilege.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        Ok(setsockopt(&self.socket, Mark, &mark)?)
    }

    /// The port's number.
    ///
    /// # Errors
    /// As of getsockname(2).
    pub fn port(&self) -> io::Result<u16> {
        Ok(getsockname::<SockaddrIn6>(self.socket.as_raw_fd())?.port())
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Datagrams that it did not: too large, no route, no room.
    pub failed: u64,
}

/// Datagrams to be sent together.
#[derive(Debug)]
pub struct SendBatch {
    bytes: Vec<u8>,
    filled: Vec<(SocketAddr, usize)>,
    segmentation: bool,
}

impl Default for SendBatch {
    fn default() -> Self {
        let filled = Vec::with_capacity(SEND_SLOTS);
        Self { bytes: vec![0; SEND_SLOTS * SLOT_BYTES], filled, segmentation: true }
    }
}

impl SendBatch {
    /// Whether the next datagram needs a [`Self::flush`] first.
    pub fn is_full(&self) -> bool {
        self.filled.len() == SEND_SLOTS
    }

    /// Whether there is nothing to flush.
    pub fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// Room for the next datagram, [`SLOT_BYTES`] long. What is written there counts with [`Self::commit`] only.
    ///
    /// # Panics
    /// When the batch is full.
    pub fn slot(&mut self) -> &mut [u8] {
        assert!(!self.is_full(), "flush a full batch first");
        let at = self.filled.len() * SLOT_BYTES;
        &mut self.bytes[at..at + SLOT_BYTES]
    }

    /// Adds the first `length` bytes of [`Self::slot`] to the batch.
    pub fn commit(&mut self, to: SocketAddr, length: usize) {
        debug_assert!(!self.is_full() && length <= SLOT_BYTES);
        self.filled.push((to, length));
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.filled.clear();
    }

    /// Sends all, in order.
    pub fn flush(&mut self, port: &UdpPort) -> Sent {
        let mut result = Sent::default();
        let mut at = 0;
        while at < self.filled.len() {
            let groups = self.groups_from(at);
            let (sent, failed_group) = self.send_groups(port, at, &groups);
            result.sent += sent as u64;
            at += sent;
            if let Some((size, error)) = failed_group {
                if size == 1 {
                    result.failed += 1;
                } else {
                    // The driver cannot segment (EIO), or not this size on this route: one by one, then.
                    self.segmentation &= error != libc::EIO;
                    let (alone, lost) = self.send_singly(port, at, size);
                    result.sent += alone;
                    result.failed += lost;
                }
                at += size;
            }
        }
        self.filled.clear();
        result
    }

    /// Numbers of neighbouring datagrams that can leave as one segmented send: same receiver, same size, the last may be shorter.
    fn groups_from(&self, at: usize) -> Vec<usize> {
        let mut groups = Vec::new();
        let mut rest = &self.filled[at..];
        while let Some((to, size)) = rest.first().copied() {
            let mut count = 1;
            while self.segmentation
                && count < rest.len().min(SEGMENTS)
                && (count + 1) * size <= SEGMENTED_BYTES
            {
                let (next_to, next_size) = rest[count];
                if next_to != to || next_size > size || rest[count - 1].1 != size {
                    break;
                }
                count += 1;
            }
            groups.push(count);
            rest = &rest[count..];
        }
        groups
    }

    fn send_singly(&self, port: &UdpPort, at: usize, count: usize) -> (u64, u64) {
        let mut lost = 0;
        for index in at..at + count {
            if self.send_groups(port, index, &[1]).1.is_some() {
                lost += 1;
            }
        }
        (count as u64 - lost, lost)
    }

    /// Sends the groups that begin at datagram `at`. Returns how many datagrams were taken, and size and error number of the group
    /// that was refused, if one was.
    fn send_groups(&self, port: &UdpPort, at: usize, groups: &[usize]) -> (usize, Option<(usize, i32)>) {
        let mut addresses = [to_kernel(([0, 0, 0, 0], 0).into()); SEND_SLOTS];
        let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SEND_SLOTS];
        let mut controls = [Control([0; CONTROL_BYTES]); SEND_SLOTS];
        // SAFETY: `mmsghdr` is plain data of the kernel's; all zero bytes are a valid value (an empty message).
        let mut messages: [libc::mmsghdr; SEND_SLOTS] = unsafe { std::mem::zeroed() };
        let mut next = at;
        for (group, size) in groups.iter().copied().enumerate() {
            let first = next - at;
            for (slice, index) in slices[first..].iter_mut().zip(next..next + size) {
                slice.iov_base = self.bytes[index * SLOT_BYTES..].as_ptr().cast_mut().cast();
                slice.iov_len = self.filled[index].1;
            }
            addresses[group] = to_kernel(self.filled[next].0);
            let header = &mut messages[group].msg_hdr;
            header.msg_name = (&raw mut addresses[group]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            header.msg_iov = &raw mut slices[first];
            header.msg_iovlen = size as _;
            if size > 1 {
                controls[group].write_segment_size(header, self.filled[next].1 as u16);
            }
            next += size;
        }
        // SAFETY: each of the first `groups.len()` headers points to an address, slices and a control message in the arrays above
        // and, through the slices, into `self.bytes`, within the slot and only to be read; all of them outlive the call.
        let taken = unsafe {
            libc::sendmmsg(port.socket.as_raw_fd(), messages.as_mut_ptr(), groups.len() as libc::c_uint, 0)
        };
        if taken < 0 {
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            return (0, groups.first().map(|size| (*size, error)));
        }
        let taken = taken as usize;
        // A batch that was cut short is called for again: the error shows with the first message then.
        (groups[..taken].iter().sum(), None)
    }
}

/// Datagrams that were received together.
#[derive(Debug)]
pub struct ReceiveBatch {
    bytes: Vec<u8>,
    /// Sender, slot, and place and length within the slot.
    filled: Vec<(SocketAddr, usize, usize)>,
}

impl Default for ReceiveBatch {
    fn default() -> Self {
        Self { bytes: vec![0; RECEIVE_SLOTS * RECEIVE_BYTES], filled: Vec::with_capacity(RECEIVE_SLOTS * 8) }
    }
}

impl ReceiveBatch {
    /// Takes what has arrived, in place of what was there. True if there may be more.
    ///
    /// # Errors
    /// As of recvmmsg(2), but not `WouldBlock`: then the batch is empty.
    pub fn fill(&mut self, port: &UdpPort) -> io::Result<bool> {
        self.filled.clear();
        let mut addresses = [to_kernel(([0, 0, 0, 0], 0).into()); RECEIVE_SLOTS];
        let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; RECEIVE_SLOTS];
        let mut controls = [Control([0; CONTROL_BYTES]); RECEIVE_SLOTS];
        // SAFETY: `mmsghdr` is plain data of the kernel's; all zero bytes are a valid value (an empty message).
        let mut messages: [libc::mmsghdr; RECEIVE_SLOTS] = unsafe { std::mem::zeroed() };
        for (index, chunk) in self.bytes.chunks_exact_mut(RECEIVE_BYTES).enumerate() {
            slices[index] = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: RECEIVE_BYTES };
            let header = &mut messages[index].msg_hdr;
            header.msg_name = (&raw mut addresses[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            header.msg_iov = &raw mut slices[index];
            header.msg_iovlen = 1;
            header.msg_control = controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES as _;
        }
        // SAFETY: each header points to an address, a slice and control space in the arrays above and, through the slice, to a chunk
        // of `self.bytes` of its own with `RECEIVE_BYTES`; all of them outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                port.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                RECEIVE_SLOTS as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) };
        }
        for (index, message) in messages.iter().take(count as usize).enumerate() {
            let length = (message.msg_len as usize).min(RECEIVE_BYTES);
            let size = segment_size(&message.msg_hdr).filter(|size| *size > 0).unwrap_or(length.max(1));
            let from = from_kernel(&addresses[index]);
            let starts = (0..length).step_by(size);
            self.filled.extend(starts.map(|at| (from, index * RECEIVE_BYTES + at, size.min(length - at))));
        }
        Ok(count as usize == RECEIVE_SLOTS)
    }

    /// What arrived, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.filled.iter().map(|(from, at, length)| (*from, &self.bytes[*at..*at + *length]))
    }
}

/// Control messages must be aligned as `cmsghdr` is.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Control {
    fn write_segment_size(&mut self, header: &mut libc::msghdr, size: u16) {
        header.msg_control = self.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN compute with their argument only.
        let (space, length) = unsafe { (libc::CMSG_SPACE(2), libc::CMSG_LEN(2)) };
        header.msg_controllen = space as _;
        // SAFETY: `header` names control space of `CMSG_SPACE(2)` (at most 32) bytes, aligned for `cmsghdr`, so the first header is
        // inside it and its two bytes of data too.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(header);
            (*control).cmsg_level = libc::SOL_UDP;
            (*control).cmsg_type = libc::UDP_SEGMENT;
            (*control).cmsg_len = length as _;
            libc::CMSG_DATA(control).cast::<u16>().write_unaligned(size);
        }
    }
}

/// The size of the datagrams that the kernel coalesced (UDP_GRO), if it did.
fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: `header` was filled by recvmmsg and its control space is alive and at most `CONTROL_BYTES` long; CMSG_FIRSTHDR and
    // CMSG_NXTHDR stay inside it, and a UDP_GRO message holds an int.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(size).ok();
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}

/// Sets a socket option that is an int.
pub(crate) fn set_option(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is an int that outlives the call, and its length is given with it.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn receive(port: &UdpPort, wanted: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut batch = ReceiveBatch::default();
        let mut all = Vec::new();
        while all.len() < wanted {
            let mut polled = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
            assert_eq!(
                poll(&mut polled, PollTimeout::from(2000u16)),
                Ok(1),
                "{} of {wanted} came",
                all.len()
            );
            batch.fill(port).unwrap();
            all.extend(batch.datagrams().map(|(from, datagram)| (from, datagram.to_vec())));
        }
        all
    }

    #[test]
    fn a_batch_of_mixed_sizes_and_receivers_arrives_whole_and_in_order() {
        let (a, b) = (UdpPort::open(0).unwrap(), UdpPort::open(0).unwrap());
        let port = b.port().unwrap();
        let receivers: [SocketAddr; 2] =
            [([127, 0, 0, 1], port).into(), ([0, 0, 0, 0, 0, 0, 0, 1], port).into()];
        let sizes = [1452, 1452, 1452, 300, 1452, 80, 80, 9000, 9000, 1];
        let mut batch = SendBatch::default();
        for (number, size) in sizes.iter().enumerate() {
            batch.slot()[..*size].fill(number as u8);
            batch.commit(receivers[number / 7], *size);
        }
        assert_eq!(batch.flush(&a), Sent { sent: 10, failed: 0 });
        assert!(batch.is_empty());
        let received = receive(&b, sizes.len());
        let got: Vec<(usize, u8)> = received.iter().map(|(_, bytes)| (bytes.len(), bytes[0])).collect();
        let want: Vec<(usize, u8)> =
            sizes.iter().enumerate().map(|(number, size)| (*size, number as u8)).collect();
        assert_eq!(got, want);
        assert!(received[0].0.is_ipv4() && received[9].0.is_ipv6());
    }

    #[test]
    fn one_that_cannot_be_sent_does_not_hold_up_the_others() {
        let (a, b) = (UdpPort::open(0).unwrap(), UdpPort::open(0).unwrap());
        let reachable: SocketAddr = ([127, 0, 0, 1], b.port().unwrap()).into();
        let mut batch = SendBatch::default();
        for to in [reachable, "127.0.0.1:0".parse().unwrap(), reachable] {
            batch.slot()[..5].fill(9);
            batch.commit(to, 5);
        }
        assert_eq!(batch.flush(&a), Sent { sent: 2, failed: 1 });
        assert_eq!(receive(&b, 2).len(), 2);
    }

    #[test]
    fn neighbours_of_one_size_leave_together() {
        let mut batch = SendBatch::default();
        let to: SocketAddr = ([127, 0, 0, 1], 9).into();
        for size in [1452, 1452, 700, 1452, 1452, 1452, 1453] {
            batch.commit(to, size);
        }
        assert_eq!(batch.groups_from(0), [3, 3, 1]);
        batch.segmentation = false;
        assert_eq!(batch.groups_from(0), [1; 7]);
    }

    #[test]
    fn a_port_is_adopted_with_what_has_arrived_and_nothing_else_is() {
        let (a, b) = (UdpPort::open(0).unwrap(), UdpPort::open(0).unwrap());
        let port = b.port().unwrap();
        let mut batch = SendBatch::default();
        batch.slot()[..5].copy_from_slice(b"early");
        batch.commit(([127, 0, 0, 1], port).into(), 5);
        batch.flush(&a);
        let copy = |port: &UdpPort| port.as_fd().try_clone_to_owned().unwrap();
        assert!(UdpPort::adopt(copy(&a), port).is_err());
        assert!(UdpPort::adopt(std::fs::File::open("/dev/null").unwrap().into(), port).is_err());
        let adopted = UdpPort::adopt(copy(&b), port).unwrap();
        drop(b);
        assert_eq!(receive(&adopted, 1)[0].1, b"early");
    }
}
