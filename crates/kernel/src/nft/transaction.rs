// SPDX-License-Identifier: Apache-2.0
//! One nf_tables transaction: all of its messages take effect together or none does.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use isthmus_model::nft::{Chain, ChainKind, Hook, Rule, Set};
use isthmus_model::ownership::NFT_TABLE;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLMSG_ERROR};

use super::attributes::Attributes;
use super::expression::expressions;
use super::set::{Element, shape};
use crate::wire::{Answer, Refusal, Request, Wire};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const FAMILY_INET: u8 = 1;
/// Elements of one message: an attribute's length is a 16-bit number.
const ELEMENTS_MAX: usize = 512;
/// Rebuilding thousands of elements can wait for grace periods of the kernel.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) const NEW_TABLE: u16 = 0;
pub(crate) const GET_TABLE: u16 = 1;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
pub(crate) const GET_CHAIN: u16 = 4;
const DEL_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DEL_RULE: u16 = 8;
const NEW_SET: u16 = 9;
pub(crate) const GET_SET: u16 = 10;
const DEL_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DEL_ELEMENT: u16 = 14;

/// Messages to be sent together.
#[derive(Default)]
pub(crate) struct Transaction {
    requests: Vec<Request>,
    set_count: u32,
}

impl Transaction {
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Makes the table, or takes over one that outlived its owner.
    pub(crate) fn table(&mut self, flags: u32) {
        self.push(NEW_TABLE, NLM_F_CREATE, Attributes::default().text(1, NFT_TABLE).u32(2, flags));
    }

    pub(crate) fn delete_table(&mut self) {
        self.push(DEL_TABLE, 0, Attributes::default().text(1, NFT_TABLE));
    }

    pub(crate) fn new_chain(&mut self, name: &str, chain: &Chain) {
        let hook = Attributes::default().u32(1, hook_number(chain.hook)).u32(2, chain.priority as u32);
        let body = named(name, 3).nest(4, hook).u32(5, libc::NF_ACCEPT as u32).text(7, kind_name(chain.kind));
        self.push(NEW_CHAIN, NLM_F_CREATE, body);
    }

    /// Appends the chain's rules.
    pub(crate) fn new_rules(&mut self, name: &str, chain: &Chain) {
        chain.rules.iter().for_each(|rule| self.new_rule(name, rule));
    }

    pub(crate) fn delete_chain(&mut self, name: &str) {
        self.push(DEL_CHAIN, 0, named(name, 3));
    }

    pub(crate) fn delete_rules(&mut self, chain: &str) {
        self.push(DEL_RULE, 0, named(chain, 2));
    }

    fn new_rule(&mut self, chain: &str, rule: &Rule) {
        let body = named(chain, 2).nest(4, expressions(rule)).bytes(7, &comment(&rule.comment));
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, body);
    }

    pub(crate) fn new_set(&mut self, name: &str, set: &Set) {
        const INTERVAL: u32 = 4;
        self.set_count += 1;
        let shape = shape(set);
        let flags = if shape.interval { INTERVAL } else { 0 };
        let body = named(name, 2).u32(3, flags).u32(4, shape.key_type).u32(5, shape.key_len);
        let body = body.u32(10, self.set_count).bytes(13, &byte_order(set));
        self.push(NEW_SET, NLM_F_CREATE, body);
    }

    pub(crate) fn delete_set(&mut self, name: &str) {
        self.push(DEL_SET, 0, named(name, 2));
    }

    pub(crate) fn add_elements<'a>(&mut self, set: &str, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(NEW_ELEMENT, NLM_F_CREATE, set, elements);
    }

    pub(crate) fn delete_elements<'a>(&mut self, set: &str, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(DEL_ELEMENT, 0, set, elements);
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let elements: Vec<&Element> = elements.into_iter().collect();
        for chunk in elements.chunks(ELEMENTS_MAX) {
            let list =
                chunk.iter().fold(Attributes::default(), |list, element| list.nest(1, element.encode()));
            self.push(kind, flags, named(set, 2).nest(3, list));
        }
    }

    fn push(&mut self, message: u16, flags: u16, body: Attributes) {
        self.requests.push(request(message, flags, body));
    }

    /// Sends the transaction and waits for the kernel's decision.
    pub(crate) fn commit(self, wire: &mut Wire) -> io::Result<Result<(), Refusal>> {
        if self.requests.is_empty() {
            return Ok(Ok(()));
        }
        wire.drain();
        let begin = wire.advance(self.requests.len() as u32 + 2);
        let last = begin.wrapping_add(self.requests.len() as u32);
        let mut datagram = Vec::new();
        bracket(BATCH_BEGIN).encode(begin, 0, &mut datagram);
        for (offset, request) in self.requests.iter().enumerate() {
            let sequence = begin.wrapping_add(1 + offset as u32);
            request.encode(sequence, if sequence == last { NLM_F_ACK } else { 0 }, &mut datagram);
        }
        bracket(BATCH_END).encode(last.wrapping_add(1), 0, &mut datagram);
        wire.send(&datagram)?;
        self.decision(wire, begin, last)
    }

    /// The first refusal, or the acknowledgement of the last message. An aborted transaction is refused at its
    /// beginning or at the message that failed; then the last message's answer still comes, and is drained later.
    fn decision(&self, wire: &mut Wire, begin: u32, last: u32) -> io::Result<Result<(), Refusal>> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            for answer in wire.receive(deadline)? {
                let place = answer.sequence.wrapping_sub(begin);
                if answer.kind != NLMSG_ERROR || place > last.wrapping_sub(begin) + 1 {
                    continue;
                }
                match answer.verdict() {
                    Err(refusal) => return Ok(Err(self.explain(place, refusal))),
                    Ok(()) if answer.sequence == last => return Ok(Ok(())),
                    Ok(()) => {}
                }
            }
        }
    }

    /// Names the message that was refused.
    fn explain(&self, place: u32, refusal: Refusal) -> Refusal {
        let kind =
            (place as usize).checked_sub(1).and_then(|at| self.requests.get(at)).map(|r| r.kind & 0xff);
        let what = match kind {
            Some(NEW_TABLE) => "new table",
            Some(NEW_CHAIN) => "new chain",
            Some(DEL_CHAIN) => "delete chain",
            Some(NEW_RULE) => "new rule",
            Some(DEL_RULE) => "delete rules",
            Some(NEW_SET) => "new set",
            Some(DEL_SET) => "delete set",
            Some(NEW_ELEMENT) => "new elements",
            Some(DEL_ELEMENT) => "delete elements",
            _ => "transaction",
        };
        let text = refusal
            .text
            .map_or(format!("{what} (message {place})"), |t| format!("{what} (message {place}): {t}"));
        Refusal { text: Some(text), ..refusal }
    }
}

/// A request about our table's objects, with its nfgenmsg.
pub(crate) fn request(message: u16, flags: u16, body: Attributes) -> Request {
    let mut bytes = vec![FAMILY_INET, 0, 0, 0];
    bytes.extend(body.into_bytes());
    Request { kind: SUBSYSTEM << 8 | message, flags, body: bytes }
}

/// The attributes of an answer, behind its nfgenmsg.
pub(crate) fn attributes(answer: &Answer) -> Vec<(u16, Vec<u8>)> {
    let body = answer.body.get(4..).unwrap_or_default();
    crate::wire::attributes_of(body).map(|(kind, value)| (kind, value.to_vec())).collect()
}

fn bracket(kind: u16) -> Request {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Request { kind, flags: 0, body: vec![0, 0, high, low] }
}

/// Table name, and the object's name under its own number.
fn named(name: &str, number: u16) -> Attributes {
    Attributes::default().text(1, NFT_TABLE).text(number, name)
}

/// NF_INET_*.
pub(crate) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

/// The kernel's word for a chain's type.
pub(crate) fn kind_name(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Route => "route",
    }
}

/// Userdata of a rule: type 0 (comment), length, text with its zero. The kernel takes 256 bytes.
fn comment(text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().take(250).collect();
    [&[0, text.len() as u8 + 1], text.as_slice(), &[0]].concat()
}

/// Userdata of a set: type 0 (byte order of keys), which `nft` needs to print it.
fn byte_order(set: &Set) -> Vec<u8> {
    const HOST: u32 = 1;
    const NETWORK: u32 = 2;
    let order = if matches!(set, Set::Links(_)) { HOST } else { NETWORK };
    [&[0, 4][..], &order.to_ne_bytes()].concat()
}

/// Elements to add and to delete, from one content of a set to another.
pub(crate) fn changes<'a>(
    from: &'a BTreeSet<Element>,
    to: &'a BTreeSet<Element>,
) -> (Vec<&'a Element>, Vec<&'a Element>) {
    (to.difference(from).collect(), from.difference(to).collect())
}
