// SPDX-License-Identifier: Apache-2.0
//! Policy rules: ours have a priority of our range and our protocol number.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use isthmus_model::kernel::Rule;
use isthmus_model::ownership::{ROUTE_PROTOCOL, RULE_PRIORITIES};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::table::{LinkNames, Put, Table};
use crate::wire::{Request, Wire};

pub(crate) enum Rules {}

impl Table for Rules {
    type Key = Rule;
    type Value = ();

    fn name(rule: &Rule) -> String {
        let family = if rule.v6 { "IPv6" } else { "IPv4" };
        let (mark, mask) = rule.mark;
        let marked = if mask == 0 { String::new() } else { format!(" mark {mark:#x}/{mask:#x}") };
        format!("{family} rule {}{marked} table {}", rule.priority, rule.table)
    }

    fn observe(wire: &mut Wire, _: &LinkNames) -> io::Result<BTreeMap<Rule, ()>> {
        let mut rules = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RuleMessage::default();
            ask.header.family = family;
            for message in wire.dump_route(&RouteNetlinkMessage::GetRule(ask))? {
                if let RouteNetlinkMessage::NewRule(message) = message {
                    rules.extend(read(&message).map(|rule| (rule, ())));
                }
            }
        }
        Ok(rules)
    }

    fn put(rule: &Rule, (): &(), _: bool) -> Result<Put<()>, String> {
        Ok(Request::route(&RouteNetlinkMessage::NewRule(message(rule)), NLM_F_CREATE | NLM_F_EXCL).into())
    }

    fn remove(rule: &Rule, (): &()) -> Result<Request, String> {
        Ok(Request::route(&RouteNetlinkMessage::DelRule(message(rule)), 0))
    }
}

/// The wanted rules as entries of the table.
pub(crate) fn wanted(rules: &BTreeSet<Rule>) -> BTreeMap<Rule, ()> {
    rules.iter().map(|rule| (rule.clone(), ())).collect()
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(ROUTE_PROTOCOL.into()),
    ];
    if rule.mark.1 != 0 {
        message.attributes.extend([RuleAttribute::FwMark(rule.mark.0), RuleAttribute::FwMask(rule.mark.1)]);
    }
    message
}

fn read(message: &RuleMessage) -> Option<Rule> {
    let v6 = message.header.family == AddressFamily::Inet6;
    let mut rule = Rule { priority: 0, v6, mark: (0, 0), table: u32::from(message.header.table) };
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(mark) => rule.mark.0 = *mark,
            RuleAttribute::FwMask(mask) => rule.mark.1 = *mask,
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == ROUTE_PROTOCOL,
            _ => {}
        }
    }
    (ours && RULE_PRIORITIES.contains(&rule.priority)).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { priority: 7300, v6: true, mark: (0x8000_0000, 0xff00_0000), table: 7301 };

    #[test]
    fn a_rule_that_was_made_is_read_back_as_ours() {
        assert_eq!(read(&message(&RULE)), Some(RULE));
        let unmarked = Rule { mark: (0, 0), ..RULE };
        assert_eq!(read(&message(&unmarked)), Some(unmarked));
    }

    #[test]
    fn a_rule_outside_our_priorities_or_of_another_protocol_is_not_ours() {
        assert_eq!(read(&message(&Rule { priority: 7299, ..RULE })), None);
        let mut foreign = message(&RULE);
        foreign.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
        assert_eq!(read(&foreign), None);
    }
}
