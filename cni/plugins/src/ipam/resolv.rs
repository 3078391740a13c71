// SPDX-License-Identifier: Apache-2.0
//! `resolv.conf` (resolv.conf(5)).

use isthmus_cni_kit::result::Dns;

/// Name servers and the like. Of repeated lines all count, as of the last `domain`.
pub(crate) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let key = words.next().unwrap_or_default();
        let rest = words.map(str::to_owned);
        match key {
            "nameserver" => dns.nameservers.extend(rest.take(1)),
            "domain" => dns.domain = rest.take(1).collect(),
            "search" => dns.search.extend(rest),
            "options" => dns.options.extend(rest),
            _ => {}
        }
    }
    dns
}
