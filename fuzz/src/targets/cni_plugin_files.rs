// SPDX-License-Identifier: Apache-2.0
//! What the reference plugins read back: reserved addresses, `resolv.conf`, what an interface was before, and marks on interfaces.

use crate::Seed;
use crate::private::chained::before::Before;
use crate::private::ipam::{holder::Holder, resolv};
use crate::private::links::mark;

/// Each reads the whole input: none of the forms says which it is.
pub(crate) fn run(bytes: &[u8]) {
    let before = Before::parse(bytes);
    assert_eq!(Before::parse(&before.bytes().expect("JSON")), before);
    let text = String::from_utf8_lossy(bytes);
    let holder = Holder::parse(&text);
    assert!(!holder.container_id.contains('\n') && !holder.ifname.contains('\n'));
    // Without an ID there is nobody to write a file for.
    if !holder.container_id.is_empty() {
        assert_eq!(Holder::parse(&holder.text()), holder);
    }
    if let Some(name) = mark::read(&text) {
        assert!((1..16).contains(&name.len()) && !name.contains('/'));
        assert_eq!(mark::write(name), text);
    }
    let dns = resolv::parse(&text);
    let words = dns.nameservers.iter().chain(&dns.search).chain(&dns.options);
    assert!(words.map(String::len).sum::<usize>() <= text.len());
}

pub(crate) fn seeds() -> Vec<Seed> {
    vec![
        ("holder", b"0123456789abcdef\r\neth0".to_vec()),
        ("holder-of-old", b"0123456789abcdef\n".to_vec()),
        (
            "before",
            br#"{"mac":"0a:58:00:00:00:01","promisc":false,"mtu":1500,"txQueueLength":1000,"allmulti":true}"#
                .to_vec(),
        ),
        ("before-cut", br#"{"mac":"0a:58"#.to_vec()),
        ("mark", b"cni-host:nic0".to_vec()),
        ("mark-of-a-path", b"cni-host:../../x".to_vec()),
        (
            "resolv",
            b"nameserver 10.0.0.53\nsearch example a.example\noptions ndots:5\ndomain example\n# x\n"
                .to_vec(),
        ),
    ]
}
