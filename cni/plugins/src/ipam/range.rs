// SPDX-License-Identifier: Apache-2.0
//! Ranges of addresses, as the administrator writes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use isthmus_cni_kit::config::capabilities::IpRange;
use isthmus_cni_kit::error::Error;

use crate::failure::invalid;

/// A range that can give addresses: `first..=last` but for the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) subnet: IpNet,
    first: u128,
    last: u128,
    pub(crate) gateway: Option<IpAddr>,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

impl Range {
    /// Checks a range: by default from the second address of the subnet to the last but the broadcast address of IPv4, with the second
    /// as its gateway. Code 7 for one that cannot give any.
    pub(crate) fn of(written: &IpRange) -> Result<Self, Error> {
        let subnet = written.subnet.trunc();
        if subnet != written.subnet {
            return Err(invalid(format!(
                "subnet {} has host bits set: it would be {subnet}",
                written.subnet
            )));
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(invalid(format!("subnet {subnet} is too small to give addresses")));
        }
        let inside = |what: &str, address: IpAddr| {
            if subnet.contains(&address) {
                return Ok(number(address));
            }
            Err(invalid(format!("{what} {address} is not in the subnet {subnet}")))
        };
        let (bottom, top) = (number(subnet.network()), number(subnet.broadcast()));
        let v4 = matches!(subnet, IpNet::V4(_));
        let mut range = Self {
            subnet,
            first: bottom + 1,
            last: if v4 { top - 1 } else { top },
            gateway: written.gateway,
        };
        if let Some(start) = written.range_start {
            range.first = inside("rangeStart", start)?;
        }
        if let Some(end) = written.range_end {
            range.last = inside("rangeEnd", end)?;
        }
        if range.first > range.last {
            return Err(invalid("rangeStart comes after rangeEnd"));
        }
        if let Some(gateway) = written.gateway
            && gateway.is_ipv4() != v4
        {
            return Err(invalid(format!("gateway {gateway} is of another family than {subnet}")));
        }
        range.gateway = Some(written.gateway.unwrap_or(range.address(bottom + 1)));
        Ok(range)
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.subnet {
            IpNet::V4(_) => Ipv4Addr::from(number as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }

    /// Whether the range could give the address.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let of_family = address.is_ipv4() == matches!(self.subnet, IpNet::V4(_));
        of_family && (self.first..=self.last).contains(&number(address))
    }

    fn overlaps(&self, other: &Self) -> bool {
        let same = matches!(self.subnet, IpNet::V4(_)) == matches!(other.subnet, IpNet::V4(_));
        same && self.first <= other.last && other.first <= self.last
    }
}

/// Ranges of one family, any of which may give the container's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeSet(pub(crate) Vec<Range>);

impl RangeSet {
    /// Checks a set. Code 7 for an empty one, one of two families and one whose ranges overlap.
    pub(crate) fn of(written: &[IpRange]) -> Result<Self, Error> {
        let ranges: Vec<Range> = written.iter().map(Range::of).collect::<Result<_, _>>()?;
        let Some(first) = ranges.first() else { return Err(invalid("a set of ranges is empty")) };
        let v4 = |range: &Range| matches!(range.subnet, IpNet::V4(_));
        if ranges.iter().any(|range| v4(range) != v4(first)) {
            return Err(invalid("a set of ranges has both families: put them into two sets"));
        }
        for (at, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[..at].iter().find(|other| other.overlaps(range)) {
                return Err(invalid(format!("ranges of {} and {} overlap", other.subnet, range.subnet)));
            }
        }
        Ok(Self(ranges))
    }

    /// Whether any address could come from both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|theirs| theirs.overlaps(range)))
    }

    /// The range that could give the address.
    pub(crate) fn holding(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// Every address that the set could give, each once, from the one after `last` on, in a circle.
    pub(crate) fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = (&Range, IpAddr)> {
        let start = last.and_then(|last| {
            let at = self.0.iter().position(|range| range.contains(last))?;
            Some((at, number(last)))
        });
        let (at, begin) = match start {
            Some((at, last)) if last < self.0[at].last => (at, last + 1),
            Some((at, _)) => {
                let next = (at + 1) % self.0.len();
                (next, self.0[next].first)
            }
            None => (0, self.0[0].first),
        };
        let head = (at, begin, self.0[at].last);
        let others = (1..self.0.len()).map(move |step| (at + step) % self.0.len());
        let middle = others.map(|at| (at, self.0[at].first, self.0[at].last));
        let tail = (begin > self.0[at].first).then(|| (at, self.0[at].first, begin - 1));
        let spans = std::iter::once(head).chain(middle).chain(tail);
        spans.flat_map(|(at, first, last)| {
            let range = &self.0[at];
            (first..=last).map(move |number| (range, range.address(number)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(subnet: &str, start: Option<&str>, end: Option<&str>) -> IpRange {
        let ip = |text: &str| text.parse().unwrap();
        IpRange {
            subnet: subnet.parse().unwrap(),
            range_start: start.map(ip),
            range_end: end.map(ip),
            gateway: None,
        }
    }

    fn shown(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.after(last.map(|text| text.parse().unwrap())).map(|(_, ip)| ip.to_string()).collect()
    }

    #[test]
    fn a_set_gives_each_address_once_from_the_one_after_the_last_on() {
        let set = RangeSet::of(&[
            written("10.0.0.0/24", Some("10.0.0.5"), Some("10.0.0.7")),
            written("10.0.1.0/30", None, None),
        ])
        .unwrap();
        assert_eq!(shown(&set, None), ["10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.1.1", "10.0.1.2"]);
        assert_eq!(
            shown(&set, Some("10.0.0.6")),
            ["10.0.0.7", "10.0.1.1", "10.0.1.2", "10.0.0.5", "10.0.0.6"]
        );
        assert_eq!(
            shown(&set, Some("10.0.0.7")),
            ["10.0.1.1", "10.0.1.2", "10.0.0.5", "10.0.0.6", "10.0.0.7"]
        );
        assert_eq!(
            shown(&set, Some("10.0.1.2")),
            ["10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.1.1", "10.0.1.2"]
        );
        assert_eq!(shown(&set, Some("192.0.2.1")).len(), 5);
    }

    #[test]
    fn the_second_address_is_the_gateway_and_the_last_of_ipv4_is_not_given() {
        let range = Range::of(&written("10.0.0.0/24", None, None)).unwrap();
        assert_eq!(range.gateway, Some("10.0.0.1".parse().unwrap()));
        assert!(
            !range.contains("10.0.0.255".parse().unwrap()) && range.contains("10.0.0.254".parse().unwrap())
        );
        let range = Range::of(&written("fd00::/64", None, None)).unwrap();
        assert!(range.contains("fd00::ffff:ffff:ffff:ffff".parse().unwrap()));
        assert!(!range.contains("fd00::".parse().unwrap()));
    }

    #[test]
    fn ranges_that_cannot_be_are_refused_with_code_7() {
        for bad in [
            written("10.0.0.1/24", None, None),
            written("10.0.0.0/31", None, None),
            written("10.0.0.0/24", Some("10.0.1.1"), None),
            written("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.8")),
        ] {
            assert_eq!(Range::of(&bad).map_err(|error| error.code), Err(7), "{bad:?}");
        }
        let both = [written("10.0.0.0/24", None, None), written("fd00::/64", None, None)];
        assert_eq!(RangeSet::of(&both).map_err(|error| error.code), Err(7));
        let overlapping = [written("10.0.0.0/24", None, None), written("10.0.0.128/25", None, None)];
        assert_eq!(RangeSet::of(&overlapping).map_err(|error| error.code), Err(7));
        assert_eq!(RangeSet::of(&[]).map_err(|error| error.code), Err(7));
    }
}
