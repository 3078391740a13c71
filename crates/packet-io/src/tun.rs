// SPDX-License-Identifier: Apache-2.0
//! TUN devices: persistent, so that routes stay while the process that serves them is exchanged. Runs of TCP pass uncut.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::feature::{Feature, Features, device_attempts};
use crate::offload::{HEADER_BYTES, Outgoing, Run};

/// The least size of the buffer for [`Tun::read`]: the longest packet and the header before it.
pub const READ_BYTES: usize = HEADER_BYTES + 65535;

/// How long a device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is removed, whichever process serves it.
    Persistent,
    /// Until this process ends, unless it was persistent before.
    Process,
}

/// A TUN device that this process serves.
#[derive(Debug)]
pub struct Tun {
    device: OwnedFd,
    name: String,
    features: Features,
}

impl Tun {
    /// Takes the device of this name into service, making it if it is not there.
    /// A device that is made here gets `mtu_bytes`; one that was there keeps its own.
    ///
    /// # Errors
    /// `/dev/net/tun` is missing or may not be used, or the device is served by another process (EBUSY).
    pub fn open(name: &str, mtu_bytes: u16, lifetime: Lifetime) -> io::Result<Self> {
        Self::open_with(name, mtu_bytes, lifetime, &Feature::all())
    }

    /// As [`Self::open`], using of the kernel's features only these.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub fn open_with(name: &str, mtu_bytes: u16, lifetime: Lifetime, allowed: &Features) -> io::Result<Self> {
        let existed = nix::net::if_::if_nametoindex(name).is_ok();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|error| explain(&error, "open /dev/net/tun (is it mounted into the container?)"))?;
        let device = OwnedFd::from(file);
        let serve = |flags: libc::c_int| {
            let mut request = request_for(name)?;
            request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | flags) as libc::c_short;
            // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
            check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
        };
        let mut features = Features::new();
        let served = if allowed.contains(&Feature::TunHeader) { serve(libc::IFF_VNET_HDR) } else { serve(0) };
        let served = match served {
            Ok(()) if allowed.contains(&Feature::TunHeader) => {
                features.insert(Feature::TunHeader);
                Ok(())
            }
            // A sandbox that has devices need not have the header.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => serve(0),
            other => other,
        };
        served.map_err(|error| explain(&error, &format!("serve the TUN device {name}")))?;
        if lifetime == Lifetime::Persistent {
            // SAFETY: TUNSETPERSIST takes an integer and no pointer.
            check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_int) })?;
        }
        let mut tun = Self { device, name: name.to_owned(), features };
        tun.take_over_offload(allowed)?;
        if !existed {
            tun.set_mtu(mtu_bytes)?;
        }
        Ok(tun)
    }

    /// Goes on serving a device that another process has opened and handed over.
    ///
    /// # Errors
    /// Somebody has deleted the device, or it is another one, or no device at all.
    pub fn adopt(device: OwnedFd, name: &str) -> io::Result<Self> {
        let mut request = request_for(name)?;
        // SAFETY: TUNGETIFF writes one `ifreq`, which outlives the call.
        check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })
            .map_err(|error| explain(&error, &format!("go on serving the TUN device {name}")))?;
        if request.ifr_name != request_for(name)?.ifr_name {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is another device")));
        }
        // SAFETY: TUNGETIFF has filled the flags in.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let header = (flags & libc::IFF_VNET_HDR != 0).then_some(Feature::TunHeader);
        let mut tun = Self { device, name: name.to_owned(), features: header.into_iter().collect() };
        tun.take_over_offload(&Feature::all())?;
        Ok(tun)
    }

    /// What of the kernel's features is used.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the device away for good.
    ///
    /// # Errors
    /// The kernel refuses; the device may still be there.
    pub fn remove(self) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes an integer and no pointer.
        check(unsafe { libc::ioctl(self.device.as_raw_fd(), libc::TUNSETPERSIST, 0 as libc::c_int) })
    }

    /// Reads what the node sends into the device: one packet, or a run of TCP or of datagrams to be cut; `WouldBlock` when there is nothing,
    /// `InvalidData` for what makes no sense. `buffer` has [`READ_BYTES`].
    ///
    /// # Errors
    /// EBADFD when somebody has deleted the device.
    pub fn read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Outgoing<'b>> {
        let header = if self.has_header() { 0 } else { HEADER_BYTES };
        // Without a header of the kernel's, one that says nothing.
        buffer[..header].fill(0);
        let length = header + nix::unistd::read(&self.device, &mut buffer[header..])?;
        Outgoing::parse(&mut buffer[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Hands the run to the node; it is empty afterwards.
    ///
    /// # Errors
    /// EIO while the device is down; EBADFD when somebody has deleted it.
    pub fn write(&self, run: &mut Run) -> io::Result<()> {
        let (header, packet) = run.seal();
        let slices = [IoSlice::new(&header), IoSlice::new(packet)];
        let slices = if self.has_header() { &slices[..] } else { &slices[1..] };
        let written = nix::sys::uio::writev(&self.device, slices);
        run.clear();
        written.map(|_| ()).map_err(io::Error::from)
    }

    fn has_header(&self) -> bool {
        self.features.contains(&Feature::TunHeader)
    }

    /// Checksums and the cutting of TCP and of datagrams are ours from now on, as far as the kernel has that.
    fn take_over_offload(&mut self, allowed: &Features) -> io::Result<()> {
        let set = |offload: libc::c_uint| {
            // SAFETY: TUNSETOFFLOAD takes an integer and no pointer.
            check(unsafe {
                libc::ioctl(self.device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload))
            })
        };
        if !self.has_header() {
            // Another process may have asked for more before, of a device that stayed.
            return set(0);
        }
        let header_bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
        check(unsafe {
            libc::ioctl(self.device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_bytes)
        })?;
        let mut outcome = Ok(());
        for attempt in device_attempts(allowed) {
            outcome = set(offload_bits(&attempt));
            if outcome.is_ok() {
                self.features.extend(attempt);
                break;
            }
        }
        outcome
    }

    fn set_mtu(&self, mtu_bytes: u16) -> io::Result<()> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut request = request_for(&self.name)?;
        request.ifr_ifru.ifru_mtu = mtu_bytes.into();
        // SAFETY: SIOCSIFMTU reads one `ifreq`, which outlives the call.
        check(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFMTU, &raw const request) })
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn offload_bits(features: &Features) -> libc::c_uint {
    let mut bits = 0;
    if features.contains(&Feature::TunStreams) {
        bits |= libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    }
    if features.contains(&Feature::TunDatagrams) {
        bits |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    bits
}

fn request_for(name: &str) -> io::Result<libc::ifreq> {
    let name = CString::new(name)?;
    let bytes = name.as_bytes_with_nul();
    // SAFETY: `ifreq` is plain data of the kernel's; all zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if bytes.len() > request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface name has at most 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn explain(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what}: {error}"))
}
