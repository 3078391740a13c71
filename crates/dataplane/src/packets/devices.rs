// SPDX-License-Identifier: Apache-2.0
//! The tunnel devices of a lane: made, served, made again when somebody deletes them, taken away when no longer wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use isthmus_model::ids::LinkName;
use isthmus_model::ownership::TUNNEL_LINK_PREFIX;
use isthmus_packet_io::{Lifetime, Tun};
use isthmus_wg::DeviceId;
use isthmus_wg_device::Carrier;

use super::inherited::Shared;
use crate::kept::KeptName;

/// MTU of a device that is made here: what IPv6 over 1500-byte Ethernet leaves of a packet (1500 - 40 - 8 - 32).
pub(crate) const MTU_BYTES: u16 = 1420;

pub(super) struct Devices {
    inherited: Shared,
    names: BTreeMap<DeviceId, LinkName>,
}

impl Devices {
    pub(super) fn new(inherited: Shared) -> Self {
        Self { inherited, names: BTreeMap::new() }
    }

    /// Serves exactly these. Returns what could not be done.
    pub(super) fn serve(
        &mut self,
        carrier: &mut Carrier,
        wanted: BTreeMap<DeviceId, LinkName>,
    ) -> Vec<String> {
        for (id, name) in self.names.iter().filter(|(id, _)| !wanted.contains_key(id)) {
            self.inherited.lock().parent.forget(KeptName::tun(name));
            carrier.release(*id).into_iter().for_each(remove);
        }
        self.names = wanted;
        self.reopen(carrier)
    }

    /// Opens those that are not there.
    pub(super) fn reopen(&mut self, carrier: &mut Carrier) -> Vec<String> {
        let mut failures = Vec::new();
        for (id, name) in &self.names {
            if carrier.device(*id).is_some() {
                continue;
            }
            let opened = self.inherited.lock().device(name);
            match opened.and_then(|tun| carrier.serve(*id, tun)) {
                Ok(()) => tracing::info!(device = %name, "tunnel device served"),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    }

    /// Those that are there.
    pub(super) fn served<'a>(
        &'a self,
        carrier: &'a Carrier,
    ) -> impl Iterator<Item = (&'a LinkName, &'a Tun)> {
        self.names.iter().filter_map(|(id, name)| Some((name, carrier.device(*id)?)))
    }

    /// Whether one could not be opened.
    pub(super) fn missing(&self, carrier: &Carrier) -> bool {
        self.names.keys().any(|id| carrier.device(*id).is_none())
    }

    /// Somebody has deleted the device.
    pub(super) fn lost(&mut self, carrier: &mut Carrier, id: DeviceId) {
        if let Some(name) = self.names.get(&id) {
            tracing::warn!(device = %name, "tunnel device was deleted, making it again");
            self.reopen(carrier);
        }
    }
}

/// Takes away what an earlier process has left and none of these is. What was kept of it goes first: a device is served by one process
/// alone.
pub(super) fn sweep(inherited: &Shared, mut known: BTreeSet<String>) {
    for (name, descriptor) in inherited.lock().take_rest() {
        let Some(link) = name.as_tun() else { continue };
        known.insert(link.to_owned());
        Tun::adopt(descriptor, link).into_iter().for_each(remove);
    }
    sweep_unknown(&known);
}

/// Takes away tunnel devices of an earlier process that nobody wants or knows of.
fn sweep_unknown(known: &BTreeSet<String>) {
    let Ok(links) = nix::net::if_::if_nameindex() else { return };
    for link in &links {
        let Ok(name) = link.name().to_str() else { continue };
        if is_tunnel_name(name) && !known.contains(name) {
            match Tun::open(name, MTU_BYTES, Lifetime::Persistent) {
                Ok(tun) => remove(tun),
                Err(error) => tracing::warn!(%error, name, "cannot take the tunnel device away"),
            }
        }
    }
}

/// Devices of the kernel's WireGuard, of a process that ran in the other mode: their names are wanted here.
pub(super) fn sweep_kernels() {
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
