// SPDX-License-Identifier: Apache-2.0
//! Socket addresses of a dual-stack socket: IPv4 travels as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2).

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The address as the kernel wants it on an IPv6 socket.
pub(crate) fn to_kernel(address: SocketAddr) -> libc::sockaddr_in6 {
    let (ip, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
        sin6_scope_id: scope,
    }
}

/// The address as everybody else writes it: mapped addresses become IPv4 again.
pub(crate) fn from_kernel(raw: &libc::sockaddr_in6) -> SocketAddr {
    let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
    let port = u16::from_be(raw.sin6_port);
    match ip.to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), port),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, raw.sin6_scope_id).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_survive_the_way_through_the_kernels_form() {
        for text in ["192.0.2.1:51820", "[2001:db8::1]:51820", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(from_kernel(&to_kernel(address)), address);
        }
    }
}
