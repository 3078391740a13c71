// SPDX-License-Identifier: Apache-2.0
//! Links: the VXLAN device is made here; tunnel devices are made by the data plane process and adjusted here.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use isthmus_model::ids::LinkName;
use isthmus_model::kernel::{Link, LinkKind, MacAddress};
use isthmus_model::ownership::{LINK_ALIAS, TUNNEL_LINK_PREFIX};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};

use isthmus_delta::Outcome;

use crate::table::{LinkNames, link_index};
use crate::wire::{Request, Wire};

/// The alias of pods' links begins with this; converge neither makes nor sweeps them.
pub(crate) const POD_ALIAS: &str = "isthmus:pod:";
const VXLAN_ALIAS: &str = "isthmus:vxlan";

/// A link of the node as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkSeen {
    pub(crate) index: u32,
    pub(crate) mac: Option<MacAddress>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) alias: Option<String>,
    vxlan: Option<LinkKind>,
}

impl LinkSeen {
    /// Made by us for traffic between nodes.
    pub(crate) fn is_our_vxlan(&self) -> bool {
        self.alias
            .as_ref()
            .is_some_and(|alias| alias.starts_with(LINK_ALIAS) && !alias.starts_with(POD_ALIAS))
            && self.vxlan.is_some()
    }

    pub(crate) fn is_pod_link(&self) -> bool {
        self.alias.as_ref().is_some_and(|alias| alias.starts_with(POD_ALIAS))
    }

    /// Of a kind that Isthmus makes, whether by this process or by another one.
    pub(crate) fn is_ours(&self, name: &LinkName) -> bool {
        name.as_str().starts_with(TUNNEL_LINK_PREFIX)
            || self.alias.as_ref().is_some_and(|alias| alias.starts_with(LINK_ALIAS))
    }

    fn fits(&self, wanted: &Link) -> bool {
        self.up && self.mtu == wanted.mtu && wanted.mac.is_none_or(|mac| self.mac == Some(mac))
    }
}

/// The links of the node, as last seen.
#[derive(Default)]
pub(crate) struct Links {
    pub(crate) seen: BTreeMap<LinkName, LinkSeen>,
}

impl Links {
    /// Reads all links.
    pub(crate) fn observe(&mut self, wire: &mut Wire) -> io::Result<()> {
        let messages = wire.dump_route(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        self.seen = messages.iter().filter_map(read).collect();
        Ok(())
    }

    /// Names by index, of the links that the filter lets through.
    pub(crate) fn names(&self, filter: impl Fn(&LinkSeen) -> bool) -> LinkNames {
        self.seen
            .iter()
            .filter(|(_, link)| filter(link))
            .map(|(name, link)| (link.index, name.clone()))
            .collect()
    }

    /// Takes away VXLAN devices of ours that are not wanted or must be made anew.
    pub(crate) fn apply_removals(
        &mut self,
        wire: &mut Wire,
        wanted: &BTreeMap<LinkName, Link>,
    ) -> io::Result<Outcome<LinkName>> {
        let stale = |(name, link): (&LinkName, &LinkSeen)| {
            let kept = wanted.get(name).is_some_and(|wanted| link.vxlan.as_ref() == Some(&wanted.kind));
            (link.is_our_vxlan() && !kept).then(|| (name.clone(), link.index))
        };
        let stale: Vec<(LinkName, u32)> = self.seen.iter().filter_map(stale).collect();
        let requests: Vec<Request> = stale.iter().map(|(_, index)| delete(*index)).collect();
        let mut outcome = Outcome::default();
        for ((name, _), result) in stale.into_iter().zip(wire.execute(&requests)?) {
            if result.is_ok() {
                self.seen.remove(&name);
            }
            outcome.record(name, result);
        }
        Ok(outcome)
    }

    /// Makes missing VXLAN devices and brings every wanted link to its MTU, address and state.
    pub(crate) fn apply_puts(
        &mut self,
        wire: &mut Wire,
        wanted: &BTreeMap<LinkName, Link>,
    ) -> io::Result<Outcome<LinkName>> {
        let mut outcome = Outcome::default();
        for (name, link) in wanted {
            if self.seen.get(name).is_some_and(|seen| seen.fits(link)) {
                continue;
            }
            let result = match self.requests(name, link) {
                Ok(requests) => {
                    wire.execute(&requests)?.into_iter().collect::<Result<(), _>>().map_err(|r| r.to_string())
                }
                Err(error) => Err(error),
            };
            outcome.record(name.clone(), result);
        }
        if outcome.changed > 0 {
            self.observe(wire)?;
        }
        Ok(outcome)
    }

    fn requests(&self, name: &LinkName, link: &Link) -> Result<Vec<Request>, String> {
        let absent = link_index(name).is_err();
        match &link.kind {
            LinkKind::Tunnel if absent => {
                Err(format!("the link {name} does not exist yet: the data plane process makes it"))
            }
            LinkKind::Vxlan { .. } if absent => {
                Ok(vec![create_vxlan(name, link), quiet(name), adjust(name, link)])
            }
            _ => Ok(vec![adjust(name, link)]),
        }
    }
}

/// RTM_DELLINK.
pub(crate) fn delete(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request::route(&RouteNetlinkMessage::DelLink(message), 0)
}

fn create_vxlan(name: &LinkName, link: &Link) -> Request {
    let mut message = named(name);
    let mut data = Vec::new();
    if let LinkKind::Vxlan { vni, port, local } = &link.kind {
        data.push(InfoVxlan::Id(*vni));
        data.push(InfoVxlan::Port(*port));
        data.push(match local {
            IpAddr::V4(address) => InfoVxlan::Local(*address),
            IpAddr::V6(address) => InfoVxlan::Local6(*address),
        });
        data.push(InfoVxlan::Learning(false));
    }
    message.attributes.push(LinkAttribute::IfAlias(VXLAN_ALIAS.into()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(data)),
    ]));
    Request::route(&RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// No addresses that the kernel makes up, before the link comes up.
fn quiet(name: &LinkName) -> Request {
    let mut message = named(name);
    message.attributes.push(no_generated_addresses());
    message.attributes.push(LinkAttribute::IfAlias(VXLAN_ALIAS.into()));
    Request::route(&RouteNetlinkMessage::SetLink(message), 0)
}

fn adjust(name: &LinkName, link: &Link) -> Request {
    let mut message = named(name);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Mtu(link.mtu));
    message.attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    Request::route(&RouteNetlinkMessage::SetLink(message), 0)
}

fn named(name: &LinkName) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message
}

/// IFLA_INET6_ADDR_GEN_MODE none.
pub(crate) fn no_generated_addresses() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

/// A link message as what we need of it. Names that are not ours to write are left out.
pub(crate) fn read(message: &RouteNetlinkMessage) -> Option<(LinkName, LinkSeen)> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = LinkSeen { index: message.header.index, mac: None, mtu: 0, up, alias: None, vxlan: None };
    let mut name = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text.parse().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(info) => link.vxlan = vxlan_of(info),
            _ => {}
        }
    }
    Some((name?, link))
}

fn vxlan_of(info: &[LinkInfo]) -> Option<LinkKind> {
    let data = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    })?;
    let (mut vni, mut port, mut local) = (None, None, None);
    for attribute in data {
        match attribute {
            InfoVxlan::Id(number) => vni = Some(*number),
            InfoVxlan::Port(number) => port = Some(*number),
            InfoVxlan::Local(address) => local = Some(IpAddr::from(*address)),
            InfoVxlan::Local6(address) => local = Some(IpAddr::from(*address)),
            _ => {}
        }
    }
    Some(LinkKind::Vxlan { vni: vni?, port: port?, local: local? })
}
