// SPDX-License-Identifier: Apache-2.0
//! Plugins that make an interface.

pub(crate) mod bond;
pub(crate) mod bridge;
pub(crate) mod dummy;
pub(crate) mod feature;
pub(crate) mod host_device;
pub(crate) mod in_pod;
pub(crate) mod ipvlan;
pub(crate) mod lent;
pub(crate) mod loopback;
pub(crate) mod macvlan;
mod mark;
pub(crate) mod ptp;
pub(crate) mod tap;
pub(crate) mod veth;
pub(crate) mod vlan;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::{Request, delegate};
use isthmus_cni_kit::result::AddResult;

use crate::failure::{self, invalid};
use crate::ipam::EXEC;
use crate::net::Net;
use crate::net::link::Link;
use crate::net::pod;

/// Whether a plugin can do without addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipam {
    Required,
    Optional,
}

/// Makes the interface, gets addresses from the plugin that the configuration names, and sets the interface up with them. The interface is
/// there first: `dhcp` asks for addresses on it. If a step fails, the addresses are given back, then `undo` takes the interface away.
pub(crate) fn with_addresses<L>(
    request: &Request,
    ipam: Ipam,
    make: impl FnOnce() -> Result<L, Error>,
    set_up: impl FnOnce(L, AddResult) -> Result<AddResult, Error>,
    undo: impl FnOnce(&Request) -> Result<(), Error>,
) -> Result<AddResult, Error> {
    let plugin = request.config.ipam_type();
    if ipam == Ipam::Required && plugin.is_none() {
        return Err(invalid("ipam.type of the configuration is missing"));
    }
    let finish = |link| match plugin {
        Some(plugin) => delegate::add_then(request, &EXEC, plugin, |mut result| {
            if result.ips.is_empty() && ipam == Ipam::Required {
                return Err(invalid(format!("the IPAM plugin {plugin} returned no address")));
            }
            result.interfaces.clear();
            set_up(link, result)
        }),
        None => set_up(link, AddResult::default()),
    };
    let mut result = match make() {
        // The first error is the one to tell.
        Ok(link) => finish(link).inspect_err(|_| drop(undo(request)))?,
        // One that somebody else made meanwhile is not ours to delete.
        Err(error) if error.code == failure::EXISTS => return Err(error),
        Err(error) => {
            let _ = undo(request);
            return Err(error);
        }
    };
    let dns = request.config.dns()?;
    if !dns.is_empty() {
        result.dns = dns;
    }
    Ok(result)
}

/// Hands DEL, CHECK, STATUS or GC to the IPAM plugin, if there is one.
pub(crate) fn forward(request: &Request) -> Result<(), Error> {
    match request.config.ipam_type() {
        Some(plugin) => delegate::forward(request, &EXEC, plugin),
        None => Ok(()),
    }
}

/// The link below: the named one, or the one that the default route leads to; in the pod's namespace if `in_container`.
pub(crate) fn parent(request: &Request, name: Option<&str>, in_container: bool) -> Result<Link, Error> {
    let mut net = if in_container { Net::inside(pod::path(request)?)? } else { Net::here()? };
    match name.filter(|name| !name.is_empty()) {
        Some(name) => net.named(name, "master"),
        None => {
            let index = net.default_link()?;
            let link = index.map(|index| net.link_at(index)).transpose()?.flatten();
            link.ok_or_else(|| invalid("no master is set, and there is no default route to find one by"))
        }
    }
}

/// An MTU that the link below can carry. Code 7 for a larger one.
pub(crate) fn fitting_mtu(mtu: Option<u32>, parent: &Link) -> Result<u32, Error> {
    match mtu {
        None | Some(0) => Ok(parent.mtu),
        Some(mtu) if mtu <= parent.mtu => Ok(mtu),
        Some(mtu) => Err(invalid(format!("mtu {mtu} is larger than {} of {}", parent.mtu, parent.name))),
    }
}
