// SPDX-License-Identifier: Apache-2.0
//! Rules as nf_tables expressions: small register machines (linux/netfilter/nf_tables.h).

use std::net::IpAddr;

use isthmus_model::nft::{Match, Rule, Statement};

use super::attributes::Attributes;

/// 16-byte registers; a concatenation of interface name and address lies in [`R1`] and [`R2`].
const R1: u32 = 1;
const R2: u32 = 2;
const VERDICT: u32 = 0;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;

const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const CMP_LTE: u32 = 3;
const CMP_GTE: u32 = 5;

const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_OPTION_MSS: u8 = 2;
const RTN_LOCAL: u32 = 2;
/// NFTA_NAT_TYPE.
const SNAT: u32 = 0;
/// NF_NAT_RANGE_PROTO_RANDOM_FULLY: two flows never race for one port of the translated address.
const NAT_RANDOM_FULLY: u32 = 1 << 4;

/// A rule's expressions, as the content of NFTA_RULE_EXPRESSIONS.
pub(crate) fn expressions(rule: &Rule) -> Attributes {
    let mut program = Program::default();
    rule.matches.iter().for_each(|condition| program.condition(condition));
    program.statement(&rule.then);
    program.list
}

#[derive(Default)]
struct Program {
    list: Attributes,
    family_known: Option<bool>,
}

impl Program {
    fn push(&mut self, name: &str, data: Attributes) {
        let expression = Attributes::default().text(1, name).nest(2, data);
        self.list = std::mem::take(&mut self.list).nest(1, expression);
    }

    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::InLinkSet { set, negate } => self.link_in_set(META_IIFNAME, set, *negate),
            Match::OutLinkSet { set, negate } => self.link_in_set(META_OIFNAME, set, *negate),
            Match::InLinkPrefix { prefix, negate } => self.link_prefix(META_IIFNAME, prefix, *negate),
            Match::OutLinkPrefix { prefix, negate } => self.link_prefix(META_OIFNAME, prefix, *negate),
            Match::Family { v6 } => self.family(*v6),
            Match::Source { v6, set, negate } => self.address_in_set(*v6, true, set, *negate),
            Match::Destination { v6, set, negate } => self.address_in_set(*v6, false, set, *negate),
            Match::LinkSource { v6, set, negate } => self.link_source(*v6, set, *negate),
            Match::Protocol(protocol) => {
                self.load_meta(META_L4PROTO, R1);
                self.compare(CMP_EQ, &[*protocol]);
            }
            Match::DestinationPorts(first, last) => {
                self.load_payload(BASE_TRANSPORT, 2, 2, R1);
                if first == last {
                    self.compare(CMP_EQ, &first.to_be_bytes());
                } else {
                    self.compare(CMP_GTE, &first.to_be_bytes());
                    self.compare(CMP_LTE, &last.to_be_bytes());
                }
            }
            Match::TcpSyn => {
                self.load_payload(BASE_TRANSPORT, 13, 1, R1);
                self.mask(1, &[TCP_SYN | TCP_RST], &[0]);
                self.compare(CMP_EQ, &[TCP_SYN]);
            }
            Match::Mark { value, mask } => {
                self.load_meta(META_MARK, R1);
                self.mask(4, &mask.to_ne_bytes(), &[0; 4]);
                self.compare(CMP_EQ, &value.to_ne_bytes());
            }
            Match::NextHop { v6, set, negate } => self.next_hop_in_set(*v6, set, *negate),
            Match::LocalDestination { negate } => self.local_destination(*negate),
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Accept => self.verdict(libc::NF_ACCEPT),
            Statement::ClampMss => self.clamp_mss(),
            Statement::Drop => {
                self.push("counter", Attributes::default().u64(1, 0).u64(2, 0));
                self.verdict(libc::NF_DROP);
            }
            Statement::KeepSource { v6 } => self.keep_source(*v6),
            Statement::Masquerade => self.push("masq", Attributes::default().u32(1, NAT_RANDOM_FULLY)),
            Statement::NoTrack => self.push("notrack", Attributes::default()),
            Statement::SetMark { value, mask } => self.set_mark(*value, *mask),
            Statement::SourceNat(address) => self.source_nat(*address),
        }
    }

    fn link_in_set(&mut self, key: u32, set: &str, negate: bool) {
        self.load_meta(key, R1);
        self.lookup(set, negate);
    }

    /// A comparison of as many bytes as the prefix has.
    fn link_prefix(&mut self, key: u32, prefix: &str, negate: bool) {
        self.load_meta(key, R1);
        self.compare(if negate { CMP_NEQ } else { CMP_EQ }, prefix.as_bytes());
    }

    /// Once a rule: address offsets depend on it.
    fn family(&mut self, v6: bool) {
        if self.family_known != Some(v6) {
            self.load_meta(META_NFPROTO, R1);
            self.compare(CMP_EQ, &[if v6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 } as u8]);
            self.family_known = Some(v6);
        }
    }

    fn address_in_set(&mut self, v6: bool, source: bool, set: &str, negate: bool) {
        self.family(v6);
        self.load_address(v6, source, R1);
        self.lookup(set, negate);
    }

    fn link_source(&mut self, v6: bool, set: &str, negate: bool) {
        self.family(v6);
        self.load_meta(META_IIFNAME, R1);
        self.load_address(v6, true, R2);
        self.lookup(set, negate);
    }

    fn next_hop_in_set(&mut self, v6: bool, set: &str, negate: bool) {
        const RT_NEXTHOP4: u32 = 1;
        const RT_NEXTHOP6: u32 = 2;
        self.family(v6);
        let key = if v6 { RT_NEXTHOP6 } else { RT_NEXTHOP4 };
        self.push("rt", Attributes::default().u32(1, R1).u32(2, key));
        self.lookup(set, negate);
    }

    fn local_destination(&mut self, negate: bool) {
        const RESULT_ADDRESS_TYPE: u32 = 3;
        const FLAG_DESTINATION: u32 = 2;
        self.push(
            "fib",
            Attributes::default().u32(1, R1).u32(2, RESULT_ADDRESS_TYPE).u32(3, FLAG_DESTINATION),
        );
        self.compare(if negate { CMP_NEQ } else { CMP_EQ }, &RTN_LOCAL.to_ne_bytes());
    }

    /// Writes the route's segment size into the SYN; the kernel only ever lowers it.
    fn clamp_mss(&mut self) {
        const RT_TCPMSS: u32 = 3;
        const HTON: u32 = 1;
        const OP_TCPOPT: u32 = 1;
        self.push("rt", Attributes::default().u32(1, R1).u32(2, RT_TCPMSS));
        let swap = Attributes::default().u32(1, R1).u32(2, R1).u32(3, HTON).u32(4, 2).u32(5, 2);
        self.push("byteorder", swap);
        let write =
            Attributes::default().u8(2, TCP_OPTION_MSS).u32(3, 2).u32(4, 2).u32(6, OP_TCPOPT).u32(7, R1);
        self.push("exthdr", write);
    }

    fn set_mark(&mut self, value: u32, mask: u32) {
        self.load_meta(META_MARK, R1);
        self.mask(4, &(!mask).to_ne_bytes(), &(value & mask).to_ne_bytes());
        self.push("meta", Attributes::default().u32(2, META_MARK).u32(3, R1));
    }

    /// As `snat ip to ip saddr`: without a flag that randomises, the port stays as well.
    fn keep_source(&mut self, v6: bool) {
        self.family(v6);
        self.load_address(v6, true, R1);
        let family = if v6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 };
        self.push("nat", Attributes::default().u32(1, SNAT).u32(2, family as u32).u32(3, R1).u32(4, R1));
    }

    fn source_nat(&mut self, address: IpAddr) {
        let (family, octets) = match address {
            IpAddr::V4(address) => (libc::NFPROTO_IPV4, address.octets().to_vec()),
            IpAddr::V6(address) => (libc::NFPROTO_IPV6, address.octets().to_vec()),
        };
        self.push("immediate", Attributes::default().u32(1, R1).nest(2, value(&octets)));
        let flags = NAT_RANDOM_FULLY;
        let nat =
            Attributes::default().u32(1, SNAT).u32(2, family as u32).u32(3, R1).u32(4, R1).u32(7, flags);
        self.push("nat", nat);
    }

    fn load_meta(&mut self, key: u32, register: u32) {
        self.push("meta", Attributes::default().u32(1, register).u32(2, key));
    }

    fn load_payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        let data = Attributes::default().u32(1, register).u32(2, base).u32(3, offset).u32(4, length);
        self.push("payload", data);
    }

    fn load_address(&mut self, v6: bool, source: bool, register: u32) {
        let (offset, length) = match (v6, source) {
            (false, true) => (12, 4),
            (false, false) => (16, 4),
            (true, true) => (8, 16),
            (true, false) => (24, 16),
        };
        self.load_payload(BASE_NETWORK, offset, length, register);
    }

    fn lookup(&mut self, set: &str, negate: bool) {
        const INVERT: u32 = 1;
        let data = Attributes::default().text(1, set).u32(2, R1);
        self.push("lookup", if negate { data.u32(5, INVERT) } else { data });
    }

    fn compare(&mut self, operation: u32, with: &[u8]) {
        self.push("cmp", Attributes::default().u32(1, R1).u32(2, operation).nest(3, value(with)));
    }

    /// R1 := (R1 & and) ^ xor.
    fn mask(&mut self, length: u32, and: &[u8], xor: &[u8]) {
        let data = Attributes::default().u32(1, R1).u32(2, R1).u32(3, length);
        self.push("bitwise", data.nest(4, value(and)).nest(5, value(xor)));
    }

    fn verdict(&mut self, code: i32) {
        let verdict = Attributes::default().nest(2, Attributes::default().u32(1, code as u32));
        self.push("immediate", Attributes::default().u32(1, VERDICT).nest(2, verdict));
    }
}

/// NFTA_DATA_VALUE.
fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(1, bytes)
}
