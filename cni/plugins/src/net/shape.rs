// SPDX-License-Identifier: Apache-2.0
//! Limits of rate: a token bucket on what a link sends, and a way for what it receives to a link that has one.

use isthmus_cni_kit::error::Error;
use isthmus_netlink::{Request, attributes_of};
use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, Nla};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
    TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::Net;

/// How long a packet may wait in the bucket's queue, as the Go plugin has it.
const LATENCY_MS: u64 = 25;
/// Every protocol (ETH_P_ALL), in network order.
const ALL_PROTOCOLS: u16 = 3u16.to_be();
/// TCA_TBF_PARMS.
const PARAMETERS: u16 = 1;
/// TC_LINKLAYER_ETHERNET.
const ETHERNET: u8 = 1;

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// In bits per second.
    pub(crate) rate: u64,
    /// In bits.
    pub(crate) burst: u64,
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Limit {
    fn bytes_per_second(self) -> u64 {
        self.rate / 8
    }

    fn burst_bytes(self) -> u32 {
        saturated(self.burst / 8)
    }

    /// Attributes of the queue (linux/pkt_sched.h: struct tc_tbf_qopt, TCA_TBF_*). The kernel takes the bucket's size from TCA_TBF_BURST, so
    /// that no ticks are counted here.
    fn options(self) -> Vec<TcOption> {
        const RATE64: u16 = 4;
        const BURST: u16 = 6;
        let rate = self.bytes_per_second();
        let queued = (rate / 1000).saturating_mul(LATENCY_MS).saturating_add(u64::from(self.burst_bytes()));
        let mut parameters = Vec::with_capacity(36);
        // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate; then that of the peak, which there is none of.
        parameters.extend([0, ETHERNET, 0, 0, 0, 0, 0, 0]);
        parameters.extend(saturated(rate).to_ne_bytes());
        parameters.extend([0; 12]);
        parameters.extend(saturated(queued).to_ne_bytes());
        // buffer and mtu, which TCA_TBF_BURST stands for.
        parameters.extend([0; 8]);
        let mut options = vec![
            TcOption::Other(DefaultNla::new(PARAMETERS, parameters)),
            TcOption::Other(DefaultNla::new(BURST, self.burst_bytes().to_ne_bytes().to_vec())),
        ];
        if rate > u64::from(u32::MAX) {
            options.push(TcOption::Other(DefaultNla::new(RATE64, rate.to_ne_bytes().to_vec())));
        }
        options
    }
}

fn queue(index: u32, parent: TcHandle, handle: TcHandle, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message.header.handle = handle;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

/// What the link sends is limited.
pub(crate) fn limit(index: u32, limit: Limit) -> Request {
    let mut message = queue(index, TcHandle::ROOT, TcHandle { major: 1, minor: 0 }, "tbf");
    message.attributes.push(TcAttribute::Options(limit.options()));
    Request::route(&RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// What the link receives is handed to another link to send, and comes back from there.
pub(crate) fn redirect(from: u32, to: u32) -> [Request; 2] {
    let ingress = TcHandle { major: u16::MAX, minor: 0 };
    let entrance = queue(from, TcHandle::INGRESS, ingress, "ingress");
    let mut filter = queue(from, ingress, TcHandle::UNSPEC, TcFilterU32::KIND);
    filter.header.info = u32::from(TcHandle { major: 1, minor: ALL_PROTOCOLS });
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    // One key whose mask is empty: every packet matches.
    let mut every = TcU32Selector::default();
    every.flags = TcU32SelectorFlags::Terminal;
    every.nkeys = 1;
    every.keys = vec![TcU32Key::default()];
    filter.attributes.push(TcAttribute::Options(vec![
        TcOption::U32(TcFilterU32Option::Selector(every)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]));
    [
        Request::route(&RouteNetlinkMessage::NewQueueDiscipline(entrance), NLM_F_CREATE | NLM_F_EXCL),
        Request::route(&RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_EXCL),
    ]
}

impl Net {
    /// Whether the link has the limit: rate and burst as they were set.
    pub(crate) fn has_limit(&mut self, index: u32, limit: Limit) -> Result<bool, Error> {
        let all =
            self.dump(&RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index.cast_signed())))?;
        Ok(all.iter().any(|message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(message) => {
                message.header.index.cast_unsigned() == index && is_limit(message, limit)
            }
            _ => false,
        }))
    }

    /// Whether what the link receives goes another way first.
    pub(crate) fn has_redirect(&mut self, index: u32) -> Result<bool, Error> {
        let all =
            self.dump(&RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index.cast_signed())))?;
        Ok(all.iter().any(|message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(message) => {
                message.header.index.cast_unsigned() == index && message.header.parent == TcHandle::INGRESS
            }
            _ => false,
        }))
    }
}

fn is_limit(message: &TcMessage, limit: Limit) -> bool {
    let is_bucket = message.attributes.contains(&TcAttribute::Kind("tbf".to_owned()));
    let rate = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(rate_of),
        _ => None,
    });
    is_bucket && rate == Some(saturated(limit.bytes_per_second()))
}

/// The rate in what the kernel shows of a token bucket, in bytes per second. The library leaves these options as they came.
fn rate_of(option: &TcOption) -> Option<u32> {
    const OPTIONS: u16 = 2;
    let TcOption::Other(nla) = option else { return None };
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    let parameters = attributes_of(&bytes).find(|(kind, _)| nla.kind() == OPTIONS && *kind == PARAMETERS)?.1;
    parameters.get(8..12)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_from_options_as_the_kernel_nests_them() {
        // What the kernel shows of `tbf rate 8mbit burst 100000b limit 125000`.
        let mut shown = vec![40, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        shown.extend(1_000_000u32.to_ne_bytes());
        shown.extend([0; 24]);
        assert_eq!(rate_of(&TcOption::Other(DefaultNla::new(2, shown.clone()))), Some(1_000_000));
        assert_eq!(rate_of(&TcOption::Other(DefaultNla::new(3, shown))), None);
        assert_eq!(rate_of(&TcOption::Other(DefaultNla::new(2, vec![40, 0, 1]))), None);
    }

    #[test]
    fn a_rate_beyond_32_bits_of_bytes_is_said_in_64() {
        let limit = Limit { rate: 80_000_000, burst: 8_000_000 };
        assert_eq!((limit.burst_bytes(), limit.options().len()), (1_000_000, 2));
        assert_eq!(Limit { rate: 80_000_000_000, burst: 8 }.options().len(), 3);
    }
}
