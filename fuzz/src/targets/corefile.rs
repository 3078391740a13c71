// SPDX-License-Identifier: Apache-2.0
//! CoreDNS' Corefile, which people write.

use isthmus_planner::corefile::{ZONE, with_clusterset};

use crate::Seed;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Of line ends in two bytes one goes at a time.
    if text.contains("\r\r") || text.lines().any(not_understood) {
        return;
    }
    if let Ok(Some(new)) = with_clusterset(text) {
        assert!(new.contains(ZONE) && new != text);
        assert_eq!(with_clusterset(&new), Ok(None), "it would be written again and again:\n{new}");
        let lost = text.lines().flat_map(words).find(|word| !new.contains(word));
        assert_eq!(lost, None, "a word is lost");
    }
}

/// What is not extended rightly yet: a block that begins and ends within the plugin's line, and a comment behind `disable`.
fn not_understood(line: &str) -> bool {
    let words: Vec<&str> = words(line).collect();
    let brace = |word: &&str| matches!(*word, "{" | "}");
    let inner = words.iter().rev().skip(1).any(brace) || words.ends_with(&["}"]);
    match words.first() {
        Some(&"kubernetes") => inner,
        Some(&"disable") => line.contains('#'),
        _ => false,
    }
}

/// The words of a line, without its comment.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split('#').next().unwrap_or_default().split_whitespace()
}

pub(crate) fn seeds() -> Vec<Seed> {
    const KUBEADM: &str = ".:53 {\n    errors\n    cache 30 {\n       disable success cluster.local\n       disable denial cluster.local\n    }\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n       pods insecure\n       fallthrough in-addr.arpa ip6.arpa\n       ttl 30\n    }\n    forward . /etc/resolv.conf {\n       max_concurrent 1000\n    }\n    reload\n}\n";
    let served = with_clusterset(KUBEADM).ok().flatten().expect("it has the plugin");
    vec![
        ("kubeadm", KUBEADM.into()),
        ("served", served.into()),
        ("no-block", b".:53 {\n  kubernetes cluster.local # { the default\n  reload\n}".to_vec()),
        ("no-zones", b".:53 {\n\tkubernetes {\n\t\tmulticluster\n\t}\n}\n".to_vec()),
        ("not-closed", b". {\n kubernetes {\n".to_vec()),
        (
            "other-zone",
            b"x {\r\n kubernetes clusterset.local. {\r\n multicluster clusterset.local\r\n}\r\n}\r\n"
                .to_vec(),
        ),
    ]
}
