// SPDX-License-Identifier: Apache-2.0
//! One UDP port for both address families, sent and received in batches with segmentation offload where the kernel has it.

mod control;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::sockopt::{
    self, Ipv6V6Only, Mark, RcvBufForce, SendTimeout, SndBufForce, UdpGroSegment,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, getsockname, getsockopt, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::address::{from_kernel, to_kernel};
use crate::feature::{Feature, Features};
use crate::sources::Sources;
use control::{CONTROL_BYTES, Control, read_controls};

/// What the longest datagram of a [`SendBatch`] takes: a jumbo frame and the overhead of a tunnel.
pub const SLOT_BYTES: usize = 9216;
/// Datagrams in a [`SendBatch`], at most.
const SEND_SLOTS: usize = 128;
/// Their bytes, one after the other: two reads of a device with 64 KiB of TCP each, so that they leave in few full sends.
const SEND_BYTES: usize = 144 << 10;
/// Datagrams that one segmented send holds at most; 64 is the limit of kernels before 6.9.
const SEGMENTS: usize = 64;
/// What leaves of one or two streams in one call is no more than so many segmented sends.
const FEW_GROUPS: usize = 8;
/// Bytes that one segmented send holds at most: what IPv4 carries (RFC 791), less IPv6 and UDP headers.
const SEGMENTED_BYTES: usize = 65535 - 48;
/// Buffers in a [`ReceiveBatch`], each for a whole coalesced datagram.
const RECEIVE_SLOTS: usize = 8;
const RECEIVE_BYTES: usize = 65536;
/// Kernel buffer for each direction.
const KERNEL_BUFFER_BYTES: usize = 4 << 20;

/// A UDP port. Receiving never blocks, sending waits at most 50 ms for room.
#[derive(Debug)]
pub struct UdpPort {
    socket: OwnedFd,
    features: Features,
}

impl UdpPort {
    /// Opens the port on all addresses of both families. Port 0 takes any. What is sent is never fragmented; sizes that routers
    /// claim in ICMP messages are not believed, as anybody can forge them.
    ///
    /// # Errors
    /// The port is in use, or the kernel has no IPv6 at all.
    pub fn open(port: u16) -> io::Result<Self> {
        Self::open_with(port, &Feature::all())
    }

    /// As [`Self::open`], using of the kernel's features only these.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub fn open_with(port: u16, allowed: &Features) -> io::Result<Self> {
        let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, Ipv6V6Only, &false)?;
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(50))?;
        // Larger buffers and coalescing make it faster, not right: a kernel or container without them will do.
        let _ = setsockopt(&socket, RcvBufForce, &KERNEL_BUFFER_BYTES);
        let _ = setsockopt(&socket, SndBufForce, &KERNEL_BUFFER_BYTES);
        let features = features_of(&socket, allowed);
        bind(socket.as_raw_fd(), &SockaddrIn6::from(std::net::SocketAddrV6::new([0; 8].into(), port, 0, 0)))?;
        Ok(Self { socket, features })
    }

    /// What of the kernel's features is used, as far as it is not found out to fail when it is.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Goes on with a port that another process has opened and handed over.
    ///
    /// # Errors
    /// It is no UDP socket of this port.
    pub fn adopt(socket: OwnedFd, port: u16) -> io::Result<Self> {
        let features = features_of(&socket, &Feature::all());
        let adopted = Self { socket, features };
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

/// Has the socket use of these features what the kernel knows.
fn features_of(socket: &OwnedFd, allowed: &Features) -> Features {
    // On such a socket it is told of IPv4, too, as a mapped address. Without it the kernel chooses from where peers are answered.
    let _ = set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1);
    let mut features = allowed & &[Feature::ReceiveMany, Feature::SendMany].into();
    if allowed.contains(&Feature::UdpReceive) && setsockopt(socket, UdpGroSegment, &true).is_ok() {
        features.insert(Feature::UdpReceive);
    }
    // A kernel that does not know it would take what is to be cut for one datagram.
    if allowed.contains(&Feature::UdpSegment)
        && set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
    {
        features.insert(Feature::UdpSegment);
    }
    features
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
    /// Up to where they are used.
    used: usize,
    filled: Vec<Filled>,
    sources: Sources,
    /// Who gets datagrams one by one.
    singly: BTreeSet<SocketAddr>,
    /// What failed when it was used.
    failed: Features,
}

/// A datagram in its place.
#[derive(Clone, Copy, Debug)]
struct Filled {
    to: SocketAddr,
    at: usize,
    length: usize,
    /// From which of our addresses, if not from where the receiver has asked.
    source: Option<IpAddr>,
}

impl Default for SendBatch {
    fn default() -> Self {
        let filled = Vec::with_capacity(SEND_SLOTS);
        let sources = Sources::default();
        let (singly, failed) = (BTreeSet::new(), Features::new());
        Self { bytes: vec![0; SEND_BYTES], used: 0, filled, sources, singly, failed }
    }
}

impl SendBatch {
    /// Whether the next datagram needs a [`Self::flush`] first.
    pub fn is_full(&self) -> bool {
        self.filled.len() == SEND_SLOTS || self.used + SLOT_BYTES > SEND_BYTES
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
        &mut self.bytes[self.used..self.used + SLOT_BYTES]
    }

    /// Adds the first `length` bytes of [`Self::slot`] to the batch. They leave from where `to` has asked last, if it has.
    pub fn commit(&mut self, to: SocketAddr, length: usize) {
        self.commit_from(None, to, length);
    }

    /// As [`Self::commit`], from this address of ours: the answer to one who need not be a peer.
    pub fn commit_from(&mut self, source: Option<IpAddr>, to: SocketAddr, length: usize) {
        debug_assert!(!self.is_full() && length <= SLOT_BYTES);
        self.filled.push(Filled { to, at: self.used, length, source });
        self.used += length;
    }

    /// A peer has asked at this address of ours, and is answered from it from now on: until it asks elsewhere, or nothing can be
    /// sent from there any more.
    pub fn asked_at(&mut self, peer: SocketAddr, own: IpAddr) {
        self.sources.remember(peer, own);
    }

    /// Sends nothing segmented to these from now on: it would not arrive.
    pub fn send_singly(&mut self, to: BTreeSet<SocketAddr>) {
        self.singly = to;
    }

    /// What failed when it was used, and is not used any more.
    pub fn failed(&self) -> &Features {
        &self.failed
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.filled.clear();
        self.used = 0;
    }

    /// Sends all, in order.
    pub fn flush(&mut self, port: &UdpPort) -> Sent {
        let mut result = Sent::default();
        // Where we are, and up to where datagrams leave one by one.
        let (mut at, mut alone) = (0, 0);
        while at < self.filled.len() {
            let segmentation = self.uses(port, Feature::UdpSegment);
            let groups =
                if at < alone { Groups::single(alone - at) } else { self.groups_from(at, segmentation) };
            let (sent, refused) = self.send_groups(port, at, groups.sizes());
            result.sent += sent as u64;
            at += sent;
            match refused {
                None => {}
                Some((_, libc::ENOSYS)) if self.uses(port, Feature::SendMany) => {
                    self.failed.insert(Feature::SendMany);
                }
                // The address may be gone, or nothing leads out from it: the kernel chooses then.
                Some((1, error)) if self.source_at(at).is_some() && of_source(error) => {
                    self.sources.forget(&self.filled[at].to);
                    self.filled[at].source = None;
                }
                Some((1, _)) => {
                    result.failed += 1;
                    at += 1;
                }
                // The driver cannot segment (EIO), or not this size on this route.
                Some((size, error)) => {
                    if error == libc::EIO {
                        self.failed.insert(Feature::UdpSegment);
                    }
                    alone = at + size;
                }
            }
        }
        self.clear();
        result
    }

    /// Neighbouring datagrams that can leave as one segmented send: same receiver, same size, the last may be shorter.
    fn groups_from(&self, at: usize, segmentation: bool) -> Groups {
        let mut groups = Groups::default();
        let mut rest = &self.filled[at..];
        while let Some(first) = rest.first().copied() {
            let mut count = 1;
            let segmentation = segmentation && !self.singly.contains(&first.to);
            while segmentation
                && count < rest.len().min(SEGMENTS)
                && (count + 1) * first.length <= SEGMENTED_BYTES
            {
                let next = rest[count];
                let together = (next.to, next.source) == (first.to, first.source);
                if !together || next.length > first.length || rest[count - 1].length != first.length {
                    break;
                }
                count += 1;
            }
            groups.push(count as u8);
            rest = &rest[count..];
        }
        groups
    }

    fn uses(&self, port: &UdpPort, feature: Feature) -> bool {
        port.features.contains(&feature) && !self.failed.contains(&feature)
    }

    /// From which of our addresses the datagram leaves; the kernel chooses if there is none.
    fn source_at(&self, index: usize) -> Option<IpAddr> {
        let filled = &self.filled[index];
        filled.source.or_else(|| self.sources.of(&filled.to))
    }

    /// Sends the groups that begin at datagram `at`, or the first of them. Returns how many datagrams were taken, and size and error
    /// number of the group that was refused, if one was.
    fn send_groups(&self, port: &UdpPort, at: usize, groups: &[u8]) -> (usize, Option<(usize, i32)>) {
        let groups = if self.uses(port, Feature::SendMany) { groups } else { &groups[..1] };
        // What is handed to the kernel is cleared first: no more of it than is needed.
        match groups.len() {
            1 => self.send_up_to::<1>(port, at, groups),
            2..=FEW_GROUPS => self.send_up_to::<FEW_GROUPS>(port, at, groups),
            _ => self.send_up_to::<SEND_SLOTS>(port, at, groups),
        }
    }

    /// As [`Self::send_groups`], of `N` groups at most.
    fn send_up_to<const N: usize>(
        &self,
        port: &UdpPort,
        at: usize,
        groups: &[u8],
    ) -> (usize, Option<(usize, i32)>) {
        let mut addresses = [to_kernel(([0, 0, 0, 0], 0).into()); N];
        let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; N];
        let mut controls = [Control([0; CONTROL_BYTES]); N];
        // SAFETY: `mmsghdr` is plain data of the kernel's; all zero bytes are a valid value (an empty message).
        let mut messages: [libc::mmsghdr; N] = unsafe { std::mem::zeroed() };
        let mut next = at;
        for (group, size) in groups.iter().copied().map(usize::from).enumerate() {
            let (first, last) = (self.filled[next], self.filled[next + size - 1]);
            let bytes = &self.bytes[first.at..last.at + last.length];
            slices[group] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            addresses[group] = to_kernel(first.to);
            let header = &mut messages[group].msg_hdr;
            header.msg_name = (&raw mut addresses[group]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            header.msg_iov = &raw mut slices[group];
            header.msg_iovlen = 1;
            let segment = (size > 1).then_some(first.length as u16);
            controls[group].write(header, segment, self.source_at(next));
            next += size;
        }
        let descriptor = port.socket.as_raw_fd();
        let taken = if groups.len() > 1 {
            // SAFETY: each of the first `groups.len()` headers points to an address, a slice and a control message in the arrays
            // above and, through the slice, into `self.bytes`, only to be read; all of them outlive the call.
            unsafe { libc::sendmmsg(descriptor, messages.as_mut_ptr(), groups.len() as libc::c_uint, 0) }
        } else {
            // SAFETY: as above, of the first header.
            let length = unsafe { libc::sendmsg(descriptor, &raw const messages[0].msg_hdr, 0) };
            if length < 0 { -1 } else { 1 }
        };
        if taken < 0 {
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            return (0, groups.first().map(|size| (usize::from(*size), error)));
        }
        let taken = taken as usize;
        // A batch that was cut short is called for again: the error shows with the first message then.
        (groups[..taken].iter().copied().map(usize::from).sum(), None)
    }
}

/// How many datagrams each segmented send has.
struct Groups {
    sizes: [u8; SEND_SLOTS],
    count: usize,
}

impl Default for Groups {
    fn default() -> Self {
        Self { sizes: [0; SEND_SLOTS], count: 0 }
    }
}

impl Groups {
    /// Datagrams that leave one by one.
    fn single(count: usize) -> Self {
        Self { sizes: [1; SEND_SLOTS], count }
    }

    fn push(&mut self, size: u8) {
        self.sizes[self.count] = size;
        self.count += 1;
    }

    fn sizes(&self) -> &[u8] {
        &self.sizes[..self.count]
    }
}

/// Datagrams that were received together.
#[derive(Debug)]
pub struct ReceiveBatch {
    bytes: Vec<u8>,
    /// The kernel has no recvmmsg.
    singly: bool,
    filled: Vec<Place>,
}

/// Where a received datagram lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    from: SocketAddr,
    own: Option<IpAddr>,
    at: usize,
    length: usize,
}

/// A datagram that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'b> {
    /// Its sender, or whoever claims to be.
    pub from: SocketAddr,
    /// At which of our addresses.
    pub own: Option<IpAddr>,
    /// What.
    pub datagram: &'b [u8],
}

impl Default for ReceiveBatch {
    fn default() -> Self {
        let filled = Vec::with_capacity(RECEIVE_SLOTS * 8);
        Self { bytes: vec![0; RECEIVE_SLOTS * RECEIVE_BYTES], singly: false, filled }
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
        let count = match receive_many(port, &mut messages, self.singly) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && !self.singly => {
                self.singly = true;
                receive_many(port, &mut messages, true)
            }
            other => other,
        };
        let count = match count {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        for (index, message) in messages.iter().take(count).enumerate() {
            let length = (message.msg_len as usize).min(RECEIVE_BYTES);
            let told = read_controls(&message.msg_hdr);
            let size = told.segment.filter(|size| *size > 0).unwrap_or(length.max(1));
            let (from, own) = (from_kernel(&addresses[index]), told.own);
            let places = (0..length).step_by(size).map(|start| {
                let at = index * RECEIVE_BYTES + start;
                Place { from, own, at, length: size.min(length - start) }
            });
            self.filled.extend(places);
        }
        Ok(count == RECEIVE_SLOTS)
    }

    /// What arrived, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = Arrived<'_>> {
        self.filled.iter().map(|place| Arrived {
            from: place.from,
            own: place.own,
            datagram: &self.bytes[place.at..place.at + place.length],
        })
    }
}

/// Receives into what the messages point to. Returns how many were filled.
///
/// # Errors
/// As of recvmmsg(2); `WouldBlock` if there is nothing.
fn receive_many(
    port: &UdpPort,
    messages: &mut [libc::mmsghdr; RECEIVE_SLOTS],
    singly: bool,
) -> io::Result<usize> {
    let descriptor = port.socket.as_raw_fd();
    if !singly && port.features.contains(&Feature::ReceiveMany) {
        // SAFETY: each header points to an address, a slice and control space of the caller's and, through the slice, to a chunk
        // of its buffer of its own with `RECEIVE_BYTES`; all of them outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                descriptor,
                messages.as_mut_ptr(),
                RECEIVE_SLOTS as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        return if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) };
    }
    for (index, message) in messages.iter_mut().enumerate() {
        // SAFETY: as above, of one header.
        let length = unsafe { libc::recvmsg(descriptor, &raw mut message.msg_hdr, libc::MSG_DONTWAIT) };
        match u32::try_from(length) {
            Ok(length) => message.msg_len = length,
            Err(_) if index == 0 => return Err(io::Error::last_os_error()),
            // The error shows with the next call, if it lasts.
            Err(_) => return Ok(index),
        }
    }
    Ok(RECEIVE_SLOTS)
}

/// Whether an error can be the source's: it is no address of this host any more, or nothing leads from it.
fn of_source(error: libc::c_int) -> bool {
    matches!(
        error,
        libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES
    )
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
