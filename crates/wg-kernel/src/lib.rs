// SPDX-License-Identifier: Apache-2.0
//! WireGuard devices of the kernel: made and taken away by rtnetlink, configured and read by generic netlink (linux/wireguard.h).
//! Blocking; the kernel does the work inside the call.

mod device;
mod link;
mod netlink;

use std::io;

use nix::sys::socket::SockProtocol;

pub use device::{Change, Device, Key, Peer, PeerChange};
use netlink::{DUMP, Netlink, attributes, put};
use zeroize::Zeroizing;

/// Made and taken away again to see whether the kernel can. Like no name of a device that anybody wants.
const TRIAL_LINK: &str = "wg-trial-isth";
/// GENL_ID_CTRL, and what it is asked.
const CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const FAMILY: &str = "wireguard";
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;

/// WireGuard of the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct WireGuard {
    route: Netlink,
    generic: Netlink,
    family: u16,
}

impl WireGuard {
    /// Sees whether the kernel has WireGuard, by making a device; loads the module where there is one.
    ///
    /// # Errors
    /// It has not (EOPNOTSUPP), or this process may not (EPERM).
    pub fn open() -> io::Result<Self> {
        let mut route = Netlink::open(SockProtocol::NetlinkRoute)?;
        match link::create(&mut route, TRIAL_LINK, 1420) {
            // Left behind by somebody who was killed in between.
            Err(error) if error.raw_os_error() == Some(nix::libc::EEXIST) => {}
            made => made?,
        }
        link::delete(&mut route, TRIAL_LINK)?;
        let mut generic = Netlink::open(SockProtocol::NetlinkGeneric)?;
        let family = family_id(&mut generic)?;
        Ok(Self { route, generic, family })
    }

    /// Makes a device, down. One of that name that is there already is left as it is; another kind of link of that name goes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create(&mut self, name: &str, mtu_bytes: u16) -> io::Result<()> {
        match link::all(&mut self.route)?.get(name) {
            Some(true) => return Ok(()),
            Some(false) => link::delete(&mut self.route, name)?,
            None => {}
        }
        link::create(&mut self.route, name, mtu_bytes)
    }

    /// Sets the device up. Its port is opened by this.
    ///
    /// # Errors
    /// The kernel refuses: EADDRINUSE if somebody else has the port.
    pub fn set_up(&mut self, name: &str) -> io::Result<()> {
        link::set_up(&mut self.route, name)
    }

    /// Takes a link of this name away, of whatever kind.
    ///
    /// # Errors
    /// The kernel refuses, or there is none (ENODEV).
    pub fn delete(&mut self, name: &str) -> io::Result<()> {
        link::delete(&mut self.route, name)
    }

    /// The device as it is; none if there is no WireGuard device of this name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn device(&mut self, name: &str) -> io::Result<Option<Device>> {
        let body = command(GET_DEVICE, &device::named(name));
        let answers = match self.generic.request(self.family, DUMP, &body) {
            Ok(answers) => answers,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut device = Device::default();
        answers.iter().filter_map(|answer| answer.get(4..)).for_each(|body| device.read(body));
        Ok(Some(device))
    }

    /// Changes a device. What the change does not name stays as it is: sessions, roamed endpoints.
    ///
    /// # Errors
    /// The kernel refuses: EADDRINUSE if the device is up and somebody else has the port.
    pub fn set(&mut self, name: &str, change: &Change<'_>) -> io::Result<()> {
        let mut attributes = Zeroizing::new(device::named(name));
        change.encode(&mut attributes);
        let body = Zeroizing::new(command(SET_DEVICE, &attributes));
        self.generic.request(self.family, 0, &body).map(drop)
    }
}

/// Takes away the WireGuard devices whose names are wanted gone; returns their names. For those who do without the kernel's.
///
/// # Errors
/// The kernel refuses.
pub fn delete_links(gone: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let mut route = Netlink::open(SockProtocol::NetlinkRoute)?;
    let links = link::all(&mut route)?.into_iter().filter(|(name, ours)| *ours && gone(name));
    let mut deleted = Vec::new();
    for (name, _) in links {
        link::delete(&mut route, &name)?;
        deleted.push(name);
    }
    Ok(deleted)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::EOPNOTSUPP))
}

/// `struct genlmsghdr` and what follows it; all commands used here are of version 1.
fn command(command: u8, attributes: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(4 + attributes.len());
    body.extend([command, 1, 0, 0]);
    body.extend(attributes);
    body
}

fn family_id(generic: &mut Netlink) -> io::Result<u16> {
    let mut wanted = Vec::new();
    put(&mut wanted, CONTROL_FAMILY_NAME, &device::terminated(FAMILY));
    let answers = generic.request(CONTROL, 0, &command(CONTROL_GET_FAMILY, &wanted))?;
    let id =
        answers.iter().filter_map(|answer| answer.get(4..)).flat_map(attributes).find_map(|(kind, value)| {
            (kind == CONTROL_FAMILY_ID).then(|| value.try_into().ok().map(u16::from_ne_bytes))?
        });
    id.ok_or_else(|| io::Error::other("the kernel does not say the number of the netlink family wireguard"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_either_has_wireguard_or_says_that_it_has_not() {
        match WireGuard::open() {
            Ok(mut wireguard) => assert_eq!(wireguard.device("wg-of-nobody").unwrap(), None),
            Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
        }
    }
}
