// SPDX-License-Identifier: Apache-2.0
//! The tunnel devices: made, served, made again when somebody deletes them, taken away when no longer wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;

use isthmus_model::ids::LinkName;
use isthmus_model::ownership::TUNNEL_LINK_PREFIX;
use isthmus_packet_io::{Outgoing, Run, Tun};
use isthmus_wg::TunnelId;
use nix::poll::{PollFd, PollFlags};

/// MTU of a device that is made here: what IPv6 over 1500-byte Ethernet leaves of a packet (1500 - 40 - 8 - 32).
pub(crate) const MTU_BYTES: u16 = 1420;

#[derive(Default)]
pub(super) struct Devices {
    served: BTreeMap<TunnelId, Device>,
    /// Packets that are about to be written, and to which device.
    held: Run,
    held_for: Option<TunnelId>,
    /// What an earlier process left behind is taken away once, with the first configuration.
    swept: bool,
}

struct Device {
    name: LinkName,
    tun: Option<Tun>,
}

impl Devices {
    /// Serves exactly these. Returns what could not be done.
    pub(super) fn serve(&mut self, wanted: &BTreeMap<TunnelId, LinkName>) -> Vec<String> {
        let gone: Vec<TunnelId> = self.served.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        for device in gone.iter().filter_map(|id| self.served.remove(id)) {
            device.tun.into_iter().for_each(remove);
        }
        if !self.swept {
            sweep_kernels();
        }
        for (id, name) in wanted {
            self.served.entry(*id).or_insert_with(|| Device { name: name.clone(), tun: None });
        }
        if !std::mem::replace(&mut self.swept, true) {
            let names: BTreeSet<&str> = wanted.values().map(LinkName::as_str).collect();
            sweep(&names);
        }
        self.reopen()
    }

    /// Opens those that are not there.
    pub(super) fn reopen(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        for device in self.served.values_mut().filter(|device| device.tun.is_none()) {
            match Tun::open(device.name.as_str(), MTU_BYTES) {
                Ok(tun) => {
                    tracing::info!(device = %device.name, "tunnel device served");
                    device.tun = Some(tun);
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    }

    /// Whether one could not be opened.
    pub(super) fn missing(&self) -> bool {
        self.served.values().any(|device| device.tun.is_none())
    }

    /// Somebody has deleted the device.
    pub(super) fn lost(&mut self, id: TunnelId) {
        if let Some(device) = self.served.get_mut(&id) {
            tracing::warn!(device = %device.name, "tunnel device was deleted, making it again");
            device.tun = None;
            self.reopen();
        }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = (TunnelId, PollFd<'_>)> {
        self.served.iter().filter_map(|(id, device)| {
            device.tun.as_ref().map(|tun| (*id, PollFd::new(tun.as_fd(), PollFlags::POLLIN)))
        })
    }

    /// What the node sent into the device next. `InvalidData` for what makes no sense.
    pub(super) fn read<'b>(&self, id: TunnelId, buffer: &'b mut [u8]) -> io::Result<Outgoing<'b>> {
        let tun = self.served.get(&id).and_then(|device| device.tun.as_ref());
        tun.ok_or(io::ErrorKind::WouldBlock)?.read(buffer)
    }

    /// Hands a packet to the node, with the next ones if they belong together: what is held back goes with [`Self::flush`].
    pub(super) fn write(&mut self, id: TunnelId, packet: &[u8]) {
        if self.held_for != Some(id) || !self.held.add(packet) {
            self.flush();
            self.held_for = Some(id);
            self.held.add(packet);
        }
    }

    /// Hands over what was held back. While the device is down it goes nowhere, as on any wire.
    pub(super) fn flush(&mut self) {
        let Some(id) = self.held_for.take() else { return };
        match self.served.get(&id).and_then(|device| device.tun.as_ref()) {
            Some(tun) => {
                if let Err(error) = tun.write(&mut self.held) {
                    tracing::trace!(%error, device = tun.name(), "packet not taken");
                }
            }
            None => self.held.clear(),
        }
    }
}

/// Takes away tunnel devices of an earlier process that nobody wants.
fn sweep(wanted: &BTreeSet<&str>) {
    let Ok(links) = nix::net::if_::if_nameindex() else { return };
    for link in &links {
        let Ok(name) = link.name().to_str() else { continue };
        if is_tunnel_name(name) && !wanted.contains(name) {
            match Tun::open(name, MTU_BYTES) {
                Ok(tun) => remove(tun),
                Err(error) => tracing::warn!(%error, name, "cannot take the tunnel device away"),
            }
        }
    }
}

/// Devices of the kernel's WireGuard, of a process that ran in the other mode: their names are wanted here.
fn sweep_kernels() {
    match isthmus_wg_kernel::delete_links(is_tunnel_name) {
        Ok(names) if names.is_empty() => {}
        Ok(names) => tracing::info!(?names, "tunnel devices of the kernel's WireGuard taken away"),
        Err(error) => tracing::warn!(%error, "cannot look for tunnel devices of the kernel's WireGuard"),
    }
}

/// In a thread of its own: the kernel takes some 20 ms for it, which no packet shall wait for.
fn remove(tun: Tun) {
    let removal = move || {
        let name = tun.name().to_owned();
        match tun.remove() {
            Ok(()) => tracing::info!(device = name, "tunnel device taken away"),
            Err(error) => tracing::warn!(%error, device = name, "tunnel device stays"),
        }
    };
    let started: io::Result<_> = std::thread::Builder::new().name("remove".into()).spawn(removal);
    if let Err(error) = started {
        tracing::warn!(%error, "no thread to take a tunnel device away");
    }
}

pub(crate) fn is_tunnel_name(name: &str) -> bool {
    let digits = name.strip_prefix(TUNNEL_LINK_PREFIX).unwrap_or_default();
    digits.len() == 12 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_form_are_ever_swept() {
        assert!(is_tunnel_name("iw-0123456789ab"));
        for other in ["iw-", "iw-0123", "iw-0123456789AB", "tun0", "iw-0123456789abc", "wlan0"] {
            assert!(!is_tunnel_name(other), "{other}");
        }
    }
}
