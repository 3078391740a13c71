// SPDX-License-Identifier: Apache-2.0
//! Where a peer is reached.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::request::number;

/// What the kernel allows as the name of a link, without the end of its C string (IFNAMSIZ).
const MAX_ZONE_BYTES: usize = 15;

/// An address and a UDP port, `1.2.3.4:51820` or `[2001:db8::1]:51820`. A link-local address can carry its zone, as
/// `[fe80::1%eth0]:51820`: `wg(8)` sends the name of the link, and whoever owns the socket makes a number of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    address: IpAddr,
    port: u16,
    zone: Option<String>,
}

/// A text is not an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an endpoint: expected `address:port`, with brackets around an IPv6 address")]
pub struct InvalidEndpoint;

impl Endpoint {
    /// Address and port, with no scope.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Name or number of the link that an IPv6 address belongs to.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }
}

/// A scope becomes a zone by its number.
impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        let zone = match address {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => Some(v6.scope_id().to_string()),
            _ => None,
        };
        Self { address: address.ip(), port: address.port(), zone }
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        read(text).ok_or(InvalidEndpoint)
    }
}

fn read(text: &str) -> Option<Endpoint> {
    let Some(bracketed) = text.strip_prefix('[') else {
        let (address, port) = text.split_once(':')?;
        let address = address.parse::<Ipv4Addr>().ok()?.into();
        return Some(Endpoint { address, port: number(port)?, zone: None });
    };
    let (address, port) = bracketed.split_once("]:")?;
    let (address, zone) = match address.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (address, None),
    };
    if zone.is_some_and(|zone| !is_zone(zone)) {
        return None;
    }
    let address = address.parse::<Ipv6Addr>().ok()?.into();
    Some(Endpoint { address, port: number(port)?, zone: zone.map(str::to_owned) })
}

fn is_zone(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'[' | b']' | b'%' | b'/');
    (1..=MAX_ZONE_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, &self.zone) {
            (IpAddr::V6(address), Some(zone)) => write!(f, "[{address}%{zone}]:{}", self.port),
            _ => self.address().fmt(f),
        }
    }
}
