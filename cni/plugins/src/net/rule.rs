// SPDX-License-Identifier: Apache-2.0
//! Policy rules: which table is asked for what comes from an address.

use std::net::IpAddr;

use isthmus_cni_kit::error::Error;
use isthmus_netlink::Request;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{Net, family};

/// A rule as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) source: Option<IpAddr>,
    pub(crate) table: u32,
    message: RuleMessage,
}

impl Net {
    /// Rules of a family.
    pub(crate) fn rules(&mut self, v6: bool) -> Result<Vec<Seen>, Error> {
        let mut ask = RuleMessage::default();
        ask.header.family = family(v6);
        let all = self.dump(&RouteNetlinkMessage::GetRule(ask))?;
        let read = |message| match message {
            RouteNetlinkMessage::NewRule(message) => Some(Seen::of(message)),
            _ => None,
        };
        Ok(all.into_iter().filter_map(read).collect())
    }
}

impl Seen {
    fn of(message: RuleMessage) -> Self {
        let (mut source, mut table) = (None, u32::from(message.header.table));
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Source(address) => source = Some(*address),
                RuleAttribute::Table(number) => table = *number,
                _ => {}
            }
        }
        Self { source, table, message }
    }

    /// Deletes it.
    pub(crate) fn delete(&self) -> Request {
        Request::route(&RouteNetlinkMessage::DelRule(self.message.clone()), 0)
    }
}

/// What comes from the address is looked up in the table.
pub(crate) fn add(source: IpAddr, table: u32) -> Request {
    let mut message = RuleMessage::default();
    message.header.family = family(source.is_ipv6());
    message.header.src_len = if source.is_ipv6() { 128 } else { 32 };
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(table).unwrap_or(0);
    message.attributes.push(RuleAttribute::Source(source));
    message.attributes.push(RuleAttribute::Table(table));
    Request::route(&RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL)
}
