// SPDX-License-Identifier: Apache-2.0
//! `ipMasq`: what a pod sends beyond its network has the host's address as its source.

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use isthmus_cni_kit::result::Ip;

use super::{Asked, Chain, family_of};

pub(crate) const RULES: Asked = Asked {
    chain: Chain {
        family: "inet",
        table: "isthmus_cni",
        name: "leaving",
        hook: "type nat hook postrouting priority srcnat;",
    },
    field: "ipMasq",
};

fn rule(ip: &Ip) -> String {
    let family = family_of(ip.address.addr());
    let groups = if ip.address.addr().is_ipv6() { "ff00::/8" } else { "224.0.0.0/4" };
    let (own, network) = (ip.address.addr(), ip.address.trunc());
    format!(
        "{family} saddr {own} {family} daddr != {network} {family} daddr != {groups} masquerade fully-random"
    )
}

/// Replaces the attachment's rules.
pub(crate) fn add(request: &Request, ips: &[Ip]) -> Result<(), Error> {
    RULES.replace(request, &ips.iter().map(rule).collect::<Vec<_>>())
}

/// Whether they are there, one for each address.
pub(crate) fn check(request: &Request) -> Result<(), Error> {
    let result = crate::net::pod::previous(request)?;
    let (at, _) = crate::net::pod::of_result(request, &result)?;
    let count = result.ips.iter().filter(|ip| ip.interface.is_none_or(|of| of == at)).count();
    RULES.chain.check_own(request, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_in_the_network_and_what_goes_to_a_group_keeps_its_source() {
        let ip = |text: &str| Ip {
            interface: None,
            address: text.parse().unwrap(),
            gateway: None,
            extra: serde_json::Map::new(),
        };
        assert_eq!(
            rule(&ip("10.1.2.3/24")),
            "ip saddr 10.1.2.3 ip daddr != 10.1.2.0/24 ip daddr != 224.0.0.0/4 masquerade fully-random"
        );
        assert!(rule(&ip("fd00::3/64")).contains("ip6 daddr != fd00::/64 ip6 daddr != ff00::/8"));
    }
}
