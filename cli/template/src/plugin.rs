// SPDX-License-Identifier: Apache-2.0
//! What the plugin does with each call.
//!
//! With `ipam` in its configuration it makes the interface: a veth pair with addresses from the IPAM plugin. Without, it comes after
//! another plugin in a chain and sets up the interface that is there.

use std::path::Path;

use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::plugin::{Plugin, Request, delegate};
use isthmus_cni_kit::result::{AddResult, Interface};
use isthmus_cni_kit::runtime::exec::Exec;
use serde::Deserialize;

use crate::ip::{Ip, Link, REFUSED, links};

/// The container has an interface of this name already.
pub const EXISTS: u32 = REFUSED + 1;
/// Something is not as ADD left it.
pub const CHANGED: u32 = REFUSED + 2;

/// The plugin's own fields of the configuration. Serde passes over all others: they belong to CNI, or to other plugins.
#[derive(Deserialize)]
struct Settings {
    /// MTU of the container's interface in bytes; without one, the kernel's.
    mtu: Option<u32>,
}

pub struct Veth<'a> {
    /// Runs ip(8).
    pub ip: Ip<'a>,
    /// Runs the IPAM plugin.
    pub exec: &'a dyn Exec,
}

impl Plugin for Veth<'_> {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let mtu = request.config.settings::<Settings>()?.mtu;
        let there = self.link(request.netns.as_deref(), &request.ifname)?.is_some();
        match (request.config.ipam_type(), request.config.prev_result()?) {
            (Some(_), None) if there => {
                Err(Error::new(EXISTS, format!("the container has an interface {} already", request.ifname)))
            }
            // What fails in here has the IPAM plugin take its addresses back.
            (Some(ipam), None) => {
                delegate::add_then(request, self.exec, ipam, |given| self.connect(request, mtu, given))
            }
            (None, Some(before)) if there => self.adjust(request, mtu, before),
            _ => {
                let msg = "give ipam if this plugin makes the interface, and none if one before it does";
                Err(Error::new(code::INVALID_CONFIG, msg))
            }
        }
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let Some(ipam) = request.config.ipam_type() else {
            return Ok(());
        };
        // The pair goes as a whole, from the host's end: the container's namespace may be gone.
        self.delete(&host_end(request))?;
        delegate::forward(request, self.exec, ipam)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let changed = |what: &str| Err(Error::new(CHANGED, format!("{}: {what}", request.ifname)));
        let Some(link) = self.link(request.netns.as_deref(), &request.ifname)? else {
            return changed("it is gone");
        };
        let mtu = request.config.settings::<Settings>()?.mtu;
        if mtu.is_some_and(|mtu| mtu != link.mtu) {
            return changed(&format!("its MTU is {}", link.mtu));
        }
        let Some(ipam) = request.config.ipam_type() else {
            return Ok(());
        };
        let result = request.config.prev_result()?.unwrap_or_default();
        let ours = |at: usize| result.interfaces.get(at).is_some_and(|one| is_ours(one, request));
        for ip in result.ips.iter().filter(|ip| ip.interface.is_some_and(ours)) {
            let wanted = ip.address.addr().to_string();
            if link.addresses.iter().all(|address| address.local != wanted) {
                return changed(&format!("it lacks the address {wanted}"));
            }
        }
        delegate::forward(request, self.exec, ipam)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        (self.ip)(None, "-Version").map_err(|error| Error { code: code::UNAVAILABLE, ..error })?;
        request.config.ipam_type().map_or(Ok(()), |ipam| delegate::forward(request, self.exec, ipam))
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let Some(ipam) = request.config.ipam_type() else {
            return Ok(());
        };
        let valid = request.valid_attachments.iter();
        let valid: Vec<String> = valid.map(|one| owner(request, &one.container_id, &one.ifname)).collect();
        let of_network = format!("{}/{}/", request.config.plugin_type(), request.config.name());
        for link in links(self.ip, None, "link")? {
            if link.alias.starts_with(&of_network) && !valid.contains(&link.alias) {
                self.delete(&link.name)?;
            }
        }
        delegate::forward(request, self.exec, ipam)
    }

    fn about(&self) -> String {
        format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
    }
}

impl Veth<'_> {
    fn link(&self, netns: Option<&Path>, name: &str) -> Result<Option<Link>, Error> {
        Ok(links(self.ip, netns, "address")?.into_iter().find(|link| link.name == name))
    }

    /// Deletes an interface of the host; that it is gone already is no error.
    fn delete(&self, name: &str) -> Result<(), Error> {
        match (self.ip)(None, &format!("link delete dev {name}")) {
            Err(error) if self.link(None, name)?.is_some() => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the pair, and no half of it: if something fails, it goes again.
    fn connect(&self, request: &Request, mtu: Option<u32>, given: AddResult) -> Result<AddResult, Error> {
        let (host, eth, sandbox) = (host_end(request), &request.ifname, sandbox(request));
        let mtu = mtu.map(|mtu| format!("mtu {mtu}")).unwrap_or_default();
        let pair = format!("link add {host} {mtu} type veth peer name {eth} {mtu} netns {sandbox}");
        (self.ip)(None, &pair)?;
        self.set_up(request, &host, given).inspect_err(|_| {
            // The first failure is the one to tell.
            let _ = self.delete(&host);
        })
    }

    /// Routes between the two ends, whose addresses lie in no common network: the container sees only its gateway.
    fn set_up(&self, request: &Request, host: &str, mut result: AddResult) -> Result<AddResult, Error> {
        let (netns, eth) = (request.netns.as_deref(), request.ifname.as_str());
        let alias = owner(request, &request.container_id, eth);
        (self.ip)(None, &format!("link set dev {host} alias {alias} up"))?;
        (self.ip)(netns, &format!("link set dev {eth} up"))?;
        for ip in &mut result.ips {
            let (address, bits) = (ip.address.addr(), ip.address.max_prefix_len());
            let no_gateway = || Error::new(code::INVALID_CONFIG, format!("{address} has no gateway"));
            let gateway = ip.gateway.ok_or_else(no_gateway)?;
            // The IPAM plugin vouches for it: no need to wait until nobody answers to it.
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            (self.ip)(netns, &format!("address add {address}/{bits} dev {eth} {nodad}"))?;
            (self.ip)(netns, &format!("route add {gateway}/{bits} dev {eth}"))?;
            (self.ip)(None, &format!("address add {gateway}/{bits} dev {host} {nodad}"))?;
            (self.ip)(None, &format!("route replace {address}/{bits} dev {host}"))?;
            ip.interface = Some(1);
        }
        for route in &mut result.routes {
            let v4 = route.dst.addr().is_ipv4();
            let gateway =
                result.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == v4);
            route.gw = route.gw.or(gateway);
            let via = route.gw.map(|gateway| format!("via {gateway}")).unwrap_or_default();
            (self.ip)(netns, &format!("route add {} {via} dev {eth}", route.dst))?;
        }
        for (netns, name, sandbox) in [(None, host, String::new()), (netns, eth, sandbox(request))] {
            let gone = || Error::new(CHANGED, format!("{name} is gone"));
            let Link { name, mac, mtu, .. } = self.link(netns, name)?.ok_or_else(gone)?;
            result.interfaces.push(Interface { name, mac, mtu: Some(mtu), sandbox, ..Interface::default() });
        }
        Ok(result)
    }

    /// Sets up the interface that a plugin before made, and says so in the result.
    fn adjust(&self, request: &Request, mtu: Option<u32>, mut result: AddResult) -> Result<AddResult, Error> {
        let Some(bytes) = mtu else { return Ok(result) };
        (self.ip)(request.netns.as_deref(), &format!("link set dev {} mtu {bytes}", request.ifname))?;
        result.interfaces.iter_mut().filter(|one| is_ours(one, request)).for_each(|one| one.mtu = mtu);
        Ok(result)
    }
}

fn sandbox(request: &Request) -> String {
    request.netns.as_deref().map(|path| path.display().to_string()).unwrap_or_default()
}

fn is_ours(interface: &Interface, request: &Request) -> bool {
    interface.name == request.ifname && !interface.sandbox.is_empty()
}

/// Whose an interface is. The host's end has it as its alias, by which GC finds it.
fn owner(request: &Request, container_id: &str, ifname: &str) -> String {
    format!("{}/{}/{container_id}/{ifname}", request.config.plugin_type(), request.config.name())
}

/// Name of the host's end, always the same for an attachment: a hash (FNV-1a) of its owner, in the kernel's 15 bytes.
fn host_end(request: &Request) -> String {
    let owner = owner(request, &request.container_id, &request.ifname);
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("veth{:011x}", owner.bytes().fold(0xcbf2_9ce4_8422_2325, mix) >> 20)
}
