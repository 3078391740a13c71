// SPDX-License-Identifier: Apache-2.0
//! What the kernel can do at once. Without any of it packets pass as well, and cost more.

use std::collections::BTreeSet;
use std::str::FromStr;

/// One such thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Many messages are received with one call (Linux 2.6.33).
    ReceiveMany,
    /// Many messages are sent with one call (Linux 3.0).
    SendMany,
    /// A header before each packet of a device says what is left to be done with it (Linux 2.6.27).
    TunHeader,
    /// A device hands over and takes up to 64 KiB of a TCP stream.
    TunStreams,
    /// And of datagrams of one size (Linux 6.2).
    TunDatagrams,
    /// Datagrams of one sender and one size are received as one (Linux 5.0).
    UdpReceive,
    /// Datagrams to one receiver and of one size are sent as one (Linux 4.18).
    UdpSegment,
}

/// Several of them.
pub type Features = BTreeSet<Feature>;

impl Feature {
    /// All there are.
    pub const ALL: [Self; 7] = [
        Self::ReceiveMany,
        Self::SendMany,
        Self::TunHeader,
        Self::TunStreams,
        Self::TunDatagrams,
        Self::UdpReceive,
        Self::UdpSegment,
    ];

    /// What it is called, as the kernel's manual pages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReceiveMany => "recvmmsg",
            Self::SendMany => "sendmmsg",
            Self::TunHeader => "vnet-hdr",
            Self::TunStreams => "tso",
            Self::TunDatagrams => "uso",
            Self::UdpReceive => "udp-gro",
            Self::UdpSegment => "udp-segment",
        }
    }

    /// All of them.
    pub fn all() -> Features {
        Self::ALL.into()
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|feature| feature.name() == text);
        found.ok_or_else(|| format!("{text:?} is none of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// What to ask of a device, in turn, until the kernel agrees: all that may be used, then without what came last.
pub(crate) fn device_attempts(allowed: &Features) -> Vec<Features> {
    let steps: [&[Feature]; 3] = [&[Feature::TunStreams, Feature::TunDatagrams], &[Feature::TunStreams], &[]];
    let mut attempts: Vec<Features> = steps
        .iter()
        .map(|step| step.iter().copied().filter(|feature| allowed.contains(feature)).collect())
        // The kernel has no datagrams without streams.
        .map(|step: Features| if step.contains(&Feature::TunStreams) { step } else { Features::new() })
        .collect();
    attempts.dedup();
    attempts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_name() {
        for feature in Feature::ALL {
            assert_eq!(feature.name().parse(), Ok(feature));
        }
        assert!("tx-offload".parse::<Feature>().unwrap_err().contains("udp-segment"));
    }

    #[test]
    fn a_device_is_asked_for_less_and_less() {
        let without = |gone: &[Feature]| {
            let allowed = Feature::ALL.into_iter().filter(|feature| !gone.contains(feature)).collect();
            device_attempts(&allowed).iter().map(Features::len).collect::<Vec<_>>()
        };
        assert_eq!(without(&[]), [2, 1, 0]);
        assert_eq!(without(&[Feature::TunDatagrams]), [1, 0]);
        assert_eq!(without(&[Feature::TunStreams]), [0]);
    }
}
