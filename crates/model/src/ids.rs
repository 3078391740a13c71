// SPDX-License-Identifier: Apache-2.0
//! Names as types, so that a node is never taken for a peer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string is not a valid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {kind}: {rule}")]
pub struct InvalidName {
    kind: &'static str,
    value: String,
    rule: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                if $check(value) {
                    Ok(Self(value.to_owned()))
                } else {
                    Err(InvalidName { kind: $kind, value: value.chars().take(64).collect(), rule: $rule })
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A cluster's alias within its clusterset (KEP-2149 `cluster.clusterset.k8s.io`). Not an identity.
    ClusterId, "cluster ID", is_dns_label, "use 1 to 63 lower-case letters, digits and '-' (RFC 1123 label)"
);
name_type!(
    /// A cluster's identity: lower-case hex SHA-256 of its root key's SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
    ClusterIdentity, "cluster identity", is_sha256_hex, "use 64 lower-case hexadecimal digits"
);
name_type!(
    /// The name of a Kubernetes node.
    NodeName, "node name", is_dns_subdomain, "use a lower-case RFC 1123 subdomain of at most 253 characters"
);
name_type!(
    /// The name of a ClusterPeering in this cluster.
    PeerName, "peering name", is_dns_label, "use 1 to 63 lower-case letters, digits and '-' (RFC 1123 label)"
);
name_type!(
    /// The name of an IPPool.
    PoolName, "pool name", is_dns_subdomain, "use a lower-case RFC 1123 subdomain of at most 253 characters"
);
name_type!(
    /// The name of a network interface (at most 15 bytes, as the kernel's IFNAMSIZ demands).
    LinkName, "interface name", is_link_name, "use 1 to 15 printable ASCII characters without '/', ':' and spaces"
);

/// RFC 1123 label: 1 to 63 of `[a-z0-9-]`, not beginning or ending with `-`.
pub fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// RFC 1123 subdomain: labels joined by `.`, at most 253 characters.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_link_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && text != "."
        && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_with_capitals_or_dots_is_refused_with_the_rule() {
        for wrong in ["East", "a.b", "", "-a", "a-", &"x".repeat(64)] {
            let error = wrong.parse::<ClusterId>().unwrap_err().to_string();
            assert!(error.contains("RFC 1123 label"), "{error}");
        }
        assert_eq!("east-1".parse::<ClusterId>().unwrap().as_str(), "east-1");
    }

    #[test]
    fn an_interface_name_never_exceeds_the_kernels_limit() {
        assert!("a".repeat(15).parse::<LinkName>().is_ok());
        assert!("a".repeat(16).parse::<LinkName>().is_err());
        assert!("../x".parse::<LinkName>().is_err());
    }
}
