// SPDX-License-Identifier: Apache-2.0
//! `tap`: an Ethernet device of the pod whose other end a program holds, such as a virtual machine's monitor.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::plugin::Request;
use isthmus_netlink::netns;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute};
use serde::Deserialize;

use super::Ipam;
use super::in_pod::Kind;
use crate::failure::{self, changed};
use crate::net::link::Link;
use crate::net::{Net, change_link, pod};
use crate::settings;

/// Fields of the configuration. `mac` is read with the other places that it comes by.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    #[serde(default)]
    multi_queue: bool,
    mtu: Option<u32>,
    owner: Option<u32>,
    group: Option<u32>,
    #[serde(default)]
    selinux_context: String,
    #[serde(default)]
    bridge: String,
}

const DEVICE: &str = "/dev/net/tun";

mod ioctl {

    // linux/if_tun.h; the third argument of all but the first is the number itself.
    nix::ioctl_write_int!(set_interface, b'T', 202);
    nix::ioctl_write_int!(set_persistent, b'T', 203);
    nix::ioctl_write_int!(set_owner, b'T', 204);
    nix::ioctl_write_int!(set_group, b'T', 206);
}

/// `struct ifreq` as TUNSETIFF reads it: name and flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

impl InterfaceRequest {
    fn of(name: &str, multi_queue: bool) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
        for (at, byte) in name.bytes().take(libc::IFNAMSIZ - 1).enumerate() {
            request.name[at] = byte;
        }
        let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
        request.flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues) as libc::c_short;
        request
    }
}

/// Makes a device that stays without an owner of its descriptor, in the calling thread's namespace.
#[expect(unsafe_code, reason = "netlink cannot make these devices")]
fn make_device(name: &str, fields: &Fields) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let fd = file.as_raw_fd();
    let request = InterfaceRequest::of(name, fields.multi_queue);
    // SAFETY: the kernel reads and writes the 40 bytes of `struct ifreq` at the pointer, which live until the end of this function.
    unsafe { ioctl::set_interface(fd, std::ptr::from_ref(&request) as u64) }?;
    if let Some(owner) = fields.owner {
        // SAFETY: the argument is a number.
        unsafe { ioctl::set_owner(fd, u64::from(owner)) }?;
    }
    if let Some(group) = fields.group {
        // SAFETY: the argument is a number.
        unsafe { ioctl::set_group(fd, u64::from(group)) }?;
    }
    // SAFETY: the argument is a number.
    unsafe { ioctl::set_persistent(fd, 1) }?;
    Ok(())
}

/// The plugin.
pub(crate) struct Tap;

impl Kind for Tap {
    const ABOUT: &'static str = "tap: an Ethernet device of the pod whose other end a program holds";
    const IPAM: Ipam = Ipam::Optional;

    fn needs(&self) -> (InfoKind, &'static str) {
        (InfoKind::Tun, "CONFIG_TUN")
    }

    fn available(&self) -> Result<(), Error> {
        let (_, option) = self.needs();
        let missing = format!("the kernel has no tap devices: there is no {DEVICE}; it needs {option}");
        if Path::new(DEVICE).exists() { Ok(()) } else { Err(Error::new(code::UNAVAILABLE, missing)) }
    }

    fn validate(&self, request: &Request) -> Result<(), Error> {
        request.config.settings::<Fields>()?;
        settings::mac(request).map(drop)
    }

    fn make(&self, request: &Request, _: &File) -> Result<(), Error> {
        let fields: Fields = request.config.settings()?;
        let path = pod::path(request)?;
        let made = netns::run(path, || {
            if !fields.selinux_context.is_empty() {
                fs::write("/proc/thread-self/attr/sockcreate", &fields.selinux_context)?;
            }
            make_device(&request.ifname, &fields)
        });
        made.and_then(|made| made).map_err(|error| failure::io("the tap device", &error))?;
        let mut net = Net::inside(path)?;
        let link = net.named(&request.ifname, "tap")?;
        let mut changes: Vec<LinkAttribute> = Vec::new();
        changes.extend(fields.mtu.filter(|mtu| *mtu > 0).map(LinkAttribute::Mtu));
        changes.extend(settings::mac(request)?.map(|mac| LinkAttribute::Address(mac.to_vec())));
        if !fields.bridge.is_empty() {
            changes.push(LinkAttribute::Controller(net.named(&fields.bridge, "bridge")?.index));
        }
        if changes.is_empty() {
            return Ok(());
        }
        net.execute("set up the tap device", &[change_link(link.index, changes)])
    }

    fn check(&self, request: &Request, link: &Link) -> Result<(), Error> {
        let fields: Fields = request.config.settings()?;
        match fields.mtu.filter(|mtu| *mtu > 0 && *mtu != link.mtu) {
            Some(mtu) => Err(changed(format!("the MTU of {} is {}, not {mtu}", link.name, link.mtu))),
            None => Ok(()),
        }
    }
}
