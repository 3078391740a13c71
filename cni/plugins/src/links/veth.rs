// SPDX-License-Identifier: Apache-2.0
//! A pair of links, one end on the host, the other born in the pod's namespace.

use std::fs::File;
use std::os::fd::AsRawFd;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};

use crate::net::link::{Link, NewLink, no_generated_addresses};
use crate::net::{Net, change_link, pod};
use crate::owner::{self, Stale};
use crate::sysctl;

/// Before the mark, in aliases of host ends.
const ALIAS: &str = "cni:";

/// Name of the attachment's end on the host: the same for every call, so that DEL finds it without a namespace.
pub(crate) fn host_name(request: &Request) -> String {
    owner::link_name("veth", request)
}

/// What a pair shall be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    /// In bytes; 0 leaves it to the kernel.
    pub(crate) mtu: u32,
    pub(crate) pod_mac: Option<[u8; 6]>,
    /// The host's end is a router: it gets an IPv6 address of the link, at once, to ask for the pod's address from (RFC 4861, section 4.3).
    pub(crate) router: bool,
}

/// Makes the pair, both ends down. A host end that an interrupted call left behind is replaced: its pod's end is gone, or was found
/// to be missing before.
pub(crate) fn make(request: &Request, netns: &File, host: &mut Net, wanted: Wanted) -> Result<Link, Error> {
    let name = host_name(request);
    let mut pod_end =
        NewLink::named(&request.ifname).one_queue().mtu(wanted.mtu).mac(wanted.pod_mac).message();
    pod_end.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let pair = NewLink::named(&name)
        .one_queue()
        .mtu(wanted.mtu)
        .kind(InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(pod_end))))
        .message();
    host.delete(&name)?;
    host.create(pair)?;
    let link = host.named(&name, "veth")?;
    // What a person sees in `ip link` after the mark.
    let readable =
        format!("{}/{}", request.container_id.chars().take(64).collect::<String>(), request.ifname);
    let alias = LinkAttribute::IfAlias(format!("{ALIAS}{} {readable}", owner::key(request)));
    let mut changes = vec![alias];
    let settings = match wanted.router {
        true => sysctl::ensure(&format!("net/ipv6/conf/{name}/accept_dad"), "0"),
        false => {
            changes.push(no_generated_addresses());
            Ok(())
        }
    };
    let named = host.execute("name the interface's owner", &[change_link(link.index, changes)]);
    named.and(settings).inspect_err(|_| drop(host.delete(&name)))?;
    Ok(link)
}

/// Deletes the pair by its host end; in the pod too if someone renamed that.
pub(crate) fn delete(request: &Request) -> Result<(), Error> {
    if Net::here()?.delete(&host_name(request))? {
        return Ok(());
    }
    let Some(mut inside) = pod::inside_if_there(request)? else { return Ok(()) };
    match inside.link(&request.ifname)? {
        Some(link) if link.is(&InfoKind::Veth) => inside.delete(&request.ifname).map(drop),
        _ => Ok(()),
    }
}

/// Deletes the pairs of the network that belong to no attachment to be kept.
pub(crate) fn collect(request: &Request) -> Result<(), Error> {
    let stale = Stale::of(request);
    let mut host = Net::here()?;
    let mark = |link: &Link| {
        let mark = link.alias.strip_prefix(ALIAS)?.split(' ').next()?;
        stale.contains(mark).then(|| link.name.clone())
    };
    let names: Vec<String> = host.links()?.iter().filter_map(mark).collect();
    let mut first = Ok(());
    for name in names {
        let deleted = host.delete(&name).map(drop);
        first = first.and(deleted);
    }
    first
}
