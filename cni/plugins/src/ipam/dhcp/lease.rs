// SPDX-License-Identifier: Apache-2.0
//! What a server gave.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::wire::{Message, address, code};

/// A lease without an end (RFC 2131, section 3.3).
const FOREVER: u32 = u32::MAX;
/// Of a server that does not say: the Go plugin's.
const SECONDS_DEFAULT: u32 = 3600;
/// A shorter one could not be renewed in time.
const SECONDS_MIN: u32 = 2;

/// A lease, without the time that it is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Net,
    pub(crate) server: Ipv4Addr,
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Destination and next hop; `0.0.0.0` for one on the link.
    pub(crate) routes: Vec<(Ipv4Net, Ipv4Addr)>,
    pub(crate) times: Option<Times>,
}

/// Since the lease was asked for; none of one without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) renew: Duration,
    pub(crate) rebind: Duration,
    pub(crate) end: Duration,
}

impl Lease {
    /// Reads an offer or its confirmation.
    ///
    /// # Errors
    /// What it lacks or what cannot be.
    pub(crate) fn read(message: &Message) -> Result<Self, &'static str> {
        let option = |code: u8| message.options.get(&code);
        let number =
            |code: u8| option(code).and_then(|value| value.first_chunk().copied()).map(u32::from_be_bytes);
        let own = message.yiaddr;
        if own.is_unspecified() || own.is_multicast() || own.is_broadcast() || own.is_loopback() {
            return Err("the address is none that a client can have");
        }
        let server = option(code::SERVER)
            .and_then(|value| address(value))
            .ok_or("it does not say whose it is (option 54)")?;
        let mask = option(code::SUBNET_MASK)
            .and_then(|value| address(value))
            .ok_or("it has no subnet mask (option 1)")?;
        let address = Ipv4Net::with_netmask(own, mask).map_err(|_| "its subnet mask (option 1) is none")?;
        let gateway = option(code::ROUTER).and_then(|value| super::wire::address(value));
        let routes = match option(code::CLASSLESS_ROUTES).map(|value| classless(value)) {
            // RFC 3442: they stand for the router and the routes of old.
            Some(routes) => routes.ok_or("its classless routes (option 121) are cut")?,
            None => {
                let old = option(code::STATIC_ROUTES).map(|value| classful(value)).unwrap_or_default();
                old.into_iter().chain(gateway.map(|via| (Ipv4Net::default(), via))).collect()
            }
        };
        let seconds = number(code::LEASE_SECONDS).unwrap_or(SECONDS_DEFAULT);
        if seconds < SECONDS_MIN {
            return Err("it is too short to be renewed in time");
        }
        let times = times(seconds, number(code::RENEW_SECONDS), number(code::REBIND_SECONDS));
        Ok(Self { address, server, gateway, routes, times })
    }
}

/// RFC 3442: length of the prefix, as many bytes as that needs, next hop.
fn classless(mut bytes: &[u8]) -> Option<Vec<(Ipv4Net, Ipv4Addr)>> {
    let mut routes = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (prefix, rest) = rest.split_at_checked(usize::from(length.div_ceil(8)))?;
        let mut octets = [0; 4];
        octets.get_mut(..prefix.len())?.copy_from_slice(prefix);
        routes.push((Ipv4Net::new(octets.into(), *length).ok()?.trunc(), address(rest)?));
        bytes = &rest[4..];
    }
    Some(routes)
}

/// RFC 2132, section 5.8: pairs of destination, whose prefix is that of its class, and next hop.
fn classful(bytes: &[u8]) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let (pairs, _) = bytes.as_chunks::<8>();
    let route = |pair: &[u8; 8]| {
        let (destination, via) = (address(pair)?, address(&pair[4..])?);
        let length = match pair[0] {
            0..=127 => 8,
            128..=191 => 16,
            192..=223 => 24,
            _ => return None,
        };
        Some((Ipv4Net::new(destination, length).ok()?.trunc(), via))
    };
    pairs.iter().filter_map(route).collect()
}

/// RFC 2131, section 4.4.5: half, and seven eighths of the time, unless the server says otherwise and it makes sense.
fn times(seconds: u32, renew: Option<u32>, rebind: Option<u32>) -> Option<Times> {
    if seconds == FOREVER {
        return None;
    }
    let end = Duration::from_secs(u64::from(seconds));
    let said =
        |time: Option<u32>| time.filter(|time| *time > 0).map(|time| Duration::from_secs(u64::from(time)));
    let rebind = said(rebind).filter(|time| *time < end).unwrap_or(end * 7 / 8);
    let renew = said(renew).filter(|time| *time < rebind).unwrap_or_else(|| (end / 2).min(rebind));
    Some(Times { renew, rebind, end })
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Kind, Mac, Options};
    use super::*;

    const SERVER: [u8; 4] = [10, 0, 0, 1];

    fn read(more: &[(u8, &[u8])]) -> Result<Lease, &'static str> {
        let given: [(u8, &[u8]); 3] = [
            (code::SERVER, &SERVER),
            (code::SUBNET_MASK, &[255, 255, 255, 0]),
            (code::LEASE_SECONDS, &[0, 0, 3, 32]),
        ];
        let mut options: Options = given.iter().map(|(code, value)| (*code, value.to_vec())).collect();
        options.extend(more.iter().map(|(code, value)| (*code, value.to_vec())));
        Lease::read(&Message {
            kind: Kind::Ack,
            reply: true,
            xid: 7,
            broadcast: false,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::new(10, 0, 0, 50),
            mac: Mac::default(),
            options,
        })
    }

    fn shown(lease: &Lease) -> Vec<String> {
        lease.routes.iter().map(|(net, via)| format!("{net} {via}")).collect()
    }

    #[test]
    fn routes_of_old_come_before_the_router_and_classless_ones_stand_for_both() {
        let old: [u8; 16] = [192, 0, 2, 9, 10, 0, 0, 9, 10, 1, 2, 3, 10, 0, 0, 8];
        let lease = read(&[(code::ROUTER, &SERVER), (code::STATIC_ROUTES, &old)]).unwrap();
        assert_eq!(shown(&lease), ["192.0.2.0/24 10.0.0.9", "10.0.0.0/8 10.0.0.8", "0.0.0.0/0 10.0.0.1"]);
        let new = [16, 10, 9, 10, 0, 0, 1, 24, 10, 8, 7, 0, 0, 0, 0];
        let lease =
            read(&[(code::ROUTER, &SERVER), (code::STATIC_ROUTES, &old), (code::CLASSLESS_ROUTES, &new)])
                .unwrap();
        assert_eq!(shown(&lease), ["10.9.0.0/16 10.0.0.1", "10.8.7.0/24 0.0.0.0"]);
        for cut in [&[16, 10][..], &[33, 1, 2, 3, 4, 5, 10, 0, 0, 1], &[8, 10, 10, 0, 0]] {
            assert!(read(&[(code::CLASSLESS_ROUTES, cut)]).is_err(), "{cut:?}");
        }
    }

    #[test]
    fn times_that_make_no_sense_are_replaced() {
        let seconds = |number: u32| Duration::from_secs(u64::from(number));
        let usual = Some(Times { renew: seconds(400), rebind: seconds(700), end: seconds(800) });
        assert_eq!(times(800, None, None), usual);
        assert_eq!(times(800, Some(900), Some(900)), usual);
        assert_eq!(times(800, Some(0), Some(0)), usual);
        assert_eq!(times(FOREVER, Some(1), None), None);
        let said = times(800, Some(100), Some(200)).unwrap();
        assert_eq!((said.renew, said.rebind), (seconds(100), seconds(200)));
    }

    #[test]
    fn an_answer_that_lacks_what_a_lease_needs_says_what() {
        assert!(read(&[(code::SUBNET_MASK, &[255, 0, 255, 0])]).unwrap_err().contains("option 1"));
        assert!(read(&[(code::SUBNET_MASK, &[])]).unwrap_err().contains("option 1"));
        assert!(read(&[(code::SERVER, &[1])]).unwrap_err().contains("option 54"));
        assert!(read(&[(code::LEASE_SECONDS, &[0, 0, 0, 1])]).is_err());
    }
}
