// SPDX-License-Identifier: Apache-2.0
//! Pods' links that another plugin made: found from inside the pod, since the name of the host end follows no rule.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use isthmus_model::ids::LinkName;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};

use super::{PodLinkError, PodLinks, open_namespace};
use crate::wire::{Request, Wire, parse_route};
use crate::{addr, netns};

/// The host's side of a pod's interface that another plugin made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignLink {
    /// Host end of the veth pair.
    pub host_link: LinkName,
    /// Its index: the next link of this name has another.
    pub host_index: u32,
    /// The bridge that it is a port of. The node's routing sees that one and not the port.
    pub bridge: Option<LinkName>,
}

/// What is asked about a link here.
#[derive(Debug)]
struct Seen {
    name: LinkName,
    index: u32,
    kind: Option<InfoKind>,
    /// Index of the other end, where it lies in another namespace, and that namespace as this one numbers it.
    peer: Option<(u32, i32)>,
    master: Option<u32>,
}

impl PodLinks {
    /// Finds the host's side of the interface of a pod, which has to have these addresses.
    ///
    /// # Errors
    /// `Foreign` for what is no veth pair that ends in this node's namespace, bare or in a bridge; `Broken` for what the pod
    /// lacks; `Namespace` for a pod that is gone.
    pub fn find(
        &self,
        netns_path: &Path,
        ifname: &LinkName,
        addresses: &[IpAddr],
    ) -> Result<ForeignLink, PodLinkError> {
        let pod_ns = open_namespace(netns_path)?;
        let outside = |source| PodLinkError::Namespace { path: netns_path.to_owned(), source };
        let pod_end = netns::run(netns_path, || inside(ifname, addresses)).map_err(outside)??;
        let foreign = |what: String| PodLinkError::Foreign { ifname: ifname.clone(), what };
        let Some((host_index, _)) = pod_end.peer.filter(|_| pod_end.kind == Some(InfoKind::Veth)) else {
            return Err(foreign(format!("it is {}", named(pod_end.kind.as_ref()))));
        };
        self.on_host(|wire| {
            let pod_ns_id = namespace_id(wire, &pod_ns)?;
            let links = dump(wire)?;
            let is_peer = |link: &&Seen| {
                link.kind == Some(InfoKind::Veth)
                    && link.index == host_index
                    && link.peer.is_some_and(|peer| Some(peer) == pod_ns_id.map(|id| (pod_end.index, id)))
            };
            let Some(host_end) = links.iter().find(is_peer) else {
                return Err(foreign("its other end is not in the node's network namespace".to_owned()));
            };
            let master = host_end.master.and_then(|master| links.iter().find(|link| link.index == master));
            match master {
                Some(master) if master.kind != Some(InfoKind::Bridge) => {
                    let (name, kind) = (&host_end.name, named(master.kind.as_ref()));
                    Err(foreign(format!("{name} is a port of {}, which is {kind}", master.name)))
                }
                master => Ok(ForeignLink {
                    host_link: host_end.name.clone(),
                    host_index,
                    bridge: master.map(|master| master.name.clone()),
                }),
            }
        })
    }

    /// Every link of the node, by name, with its index.
    pub fn indices(&self) -> io::Result<BTreeMap<LinkName, u32>> {
        let links = self.on_host(dump)?;
        Ok(links.into_iter().map(|link| (link.name, link.index)).collect())
    }
}

/// The pod's end, in the calling thread's namespace.
fn inside(ifname: &LinkName, addresses: &[IpAddr]) -> Result<Seen, PodLinkError> {
    let broken = |what: String| PodLinkError::Broken(what);
    let mut wire = Wire::open_route()?;
    let links = dump(&mut wire)?;
    let names = links.iter().map(|link| (link.index, link.name.clone())).collect();
    let has = addr::dump(&mut wire, &names)?;
    let lacks =
        |address: &&IpAddr| !has.iter().any(|seen| seen.link == *ifname && seen.net.addr() == **address);
    let end = links.into_iter().find(|link| link.name == *ifname);
    let end = end.ok_or_else(|| broken(format!("{ifname} is missing in the pod")))?;
    match addresses.iter().find(lacks) {
        None => Ok(end),
        Some(address) => Err(broken(format!("{ifname} has no address {address}"))),
    }
}

fn named(kind: Option<&InfoKind>) -> String {
    kind.map_or_else(|| "no virtual link".to_owned(), |kind| format!("of the kind {kind:?}").to_lowercase())
}

fn dump(wire: &mut Wire) -> io::Result<Vec<Seen>> {
    let messages = wire.dump_route(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(messages.iter().filter_map(read).collect())
}

fn read(message: &RouteNetlinkMessage) -> Option<Seen> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let (mut name, mut kind, mut master, mut other, mut namespace) = (None, None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text.parse().ok(),
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::LinkInfo(info) => {
                kind = info.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Seen { name: name?, index: message.header.index, kind, peer: other.zip(namespace), master })
}

/// How the node's namespace numbers the pod's (RTM_GETNSID); none if no link joins them.
fn namespace_id(wire: &mut Wire, of: &File) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(of.as_raw_fd().unsigned_abs()));
    let answer = match wire.ask(&Request::route(&RouteNetlinkMessage::GetNsId(message), 0))? {
        Ok(answer) => answer,
        Err(refusal) => return Err(io::Error::other(refusal.to_string())),
    };
    let Some(RouteNetlinkMessage::NewNsId(message)) = parse_route(&answer) else { return Ok(None) };
    let id = message.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    });
    Ok(id.filter(|id| *id >= 0))
}
