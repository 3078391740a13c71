// SPDX-License-Identifier: Apache-2.0
//! Links, as the kernel shows them and as it is asked for them.

use std::fs::File;
use std::os::fd::AsRawFd;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use crate::settings::mac_text;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Text of the hardware address; empty if there is none.
    pub(crate) mac: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) queue_length: u32,
    /// It has a queue, so that it can send.
    pub(crate) sends: bool,
    pub(crate) alias: String,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) data: Option<InfoData>,
    /// Index of the bridge, bond or VRF that it belongs to.
    pub(crate) controller: Option<u32>,
    /// Index of the link below it or of its peer, maybe in another namespace.
    pub(crate) parent: Option<u32>,
}

impl Link {
    /// Reads a message about a link; None for any other.
    pub(crate) fn read(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: String::new(),
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            promiscuous: flags.contains(LinkFlags::Promisc),
            all_multicast: flags.contains(LinkFlags::Allmulti),
            queue_length: 0,
            sends: false,
            alias: String::new(),
            kind: None,
            data: None,
            controller: None,
            parent: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = mac_text(bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::TxQueueLen(length) => link.queue_length = *length,
                LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Link(index) => link.parent = Some(*index),
                LinkAttribute::Qdisc(queue) => link.sends = queue != "noop",
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.take(info)),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    fn take(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.clone()),
            LinkInfo::Data(data) => self.data = Some(data.clone()),
            _ => {}
        }
    }

    /// Whether it is of the kind.
    pub(crate) fn is(&self, kind: &InfoKind) -> bool {
        self.kind.as_ref() == Some(kind)
    }
}

/// A link to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewLink {
    attributes: Vec<LinkAttribute>,
}

impl NewLink {
    pub(crate) fn named(name: &str) -> Self {
        Self { attributes: vec![LinkAttribute::IfName(name.to_owned())] }
    }

    pub(crate) fn with(mut self, attribute: LinkAttribute) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// In bytes; 0 leaves it to the kernel.
    pub(crate) fn mtu(self, mtu: u32) -> Self {
        if mtu == 0 { self } else { self.with(LinkAttribute::Mtu(mtu)) }
    }

    pub(crate) fn mac(self, mac: Option<[u8; 6]>) -> Self {
        match mac {
            Some(mac) => self.with(LinkAttribute::Address(mac.to_vec())),
            None => self,
        }
    }

    /// Born in the namespace.
    pub(crate) fn inside(self, netns: &File) -> Self {
        self.with(LinkAttribute::NetNsFd(netns.as_raw_fd()))
    }

    /// The link below it.
    pub(crate) fn over(self, parent: &Link) -> Self {
        self.with(LinkAttribute::Link(parent.index))
    }

    pub(crate) fn kind(self, kind: InfoKind, data: Option<InfoData>) -> Self {
        let infos = std::iter::once(LinkInfo::Kind(kind)).chain(data.map(LinkInfo::Data));
        self.with(LinkAttribute::LinkInfo(infos.collect()))
    }

    /// One queue each way. Of a pair the kernel uses one by itself, but makes as many as there are processors, and waits for a grace period then.
    pub(crate) fn one_queue(self) -> Self {
        self.with(LinkAttribute::NumTxQueues(1)).with(LinkAttribute::NumRxQueues(1))
    }

    pub(crate) fn message(self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes = self.attributes;
        message
    }
}

/// Keeps the kernel from making an address of the hardware's (IFLA_INET6_ADDR_GEN_MODE).
pub(crate) fn no_generated_addresses() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}
