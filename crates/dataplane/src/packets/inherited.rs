// SPDX-License-Identifier: Apache-2.0
//! Devices and ports: those of a worker before this one, or new ones that the parent keeps from now on.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_model::ids::LinkName;
use isthmus_packet_io::{Lifetime, Tun, UdpPort};

use super::devices::MTU_BYTES;
use crate::kept::{Kept, KeptName, Parent};

/// Devices and ports of a worker before this one.
pub(crate) struct Inherited {
    pub(crate) kept: Kept,
    pub(crate) parent: Parent,
}

/// For every lane: each takes what is its own. Nobody who carries packets waits for it.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Inherited>>);

impl Shared {
    pub(super) fn new(inherited: Inherited) -> Self {
        Self(Arc::new(Mutex::new(inherited)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inherited> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inherited {
    /// The port: the one that is kept, or a new one, which is kept from now on.
    pub(super) fn port(&mut self, number: u16) -> io::Result<UdpPort> {
        let name = KeptName::port(number);
        match self.kept.take(&name).map(|kept| UdpPort::adopt(kept, number)) {
            Some(Ok(port)) => return Ok(port),
            Some(Err(error)) => tracing::warn!(%error, "the WireGuard port is opened anew"),
            None => {}
        }
        self.parent.forget(name.clone());
        let port = UdpPort::open(number)?;
        self.parent.keep(name, &port);
        Ok(port)
    }

    /// The tunnel device, likewise.
    pub(super) fn device(&mut self, link: &LinkName) -> io::Result<Tun> {
        let name = KeptName::tun(link);
        match self.kept.take(&name).map(|kept| Tun::adopt(kept, link.as_str())) {
            Some(Ok(tun)) => return Ok(tun),
            Some(Err(error)) => tracing::warn!(%error, "the tunnel device is opened anew"),
            None => {}
        }
        self.parent.forget(name.clone());
        let tun = Tun::open(link.as_str(), MTU_BYTES, Lifetime::Persistent)?;
        self.parent.keep(name, &tun);
        Ok(tun)
    }

    /// The connection to the lane of this number in the worker that carries.
    pub(super) fn relay(&mut self, lane: u8) -> Option<OwnedFd> {
        self.kept.take(&KeptName::relay(lane))
    }

    /// What nobody has asked for, and is not kept any longer.
    pub(super) fn take_rest(&mut self) -> BTreeMap<KeptName, OwnedFd> {
        let rest = self.kept.take_rest();
        rest.keys().for_each(|name| self.parent.forget(name.clone()));
        rest
    }
}
