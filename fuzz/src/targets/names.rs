// SPDX-License-Identifier: Apache-2.0
//! Names and keys as text: what is taken is given back as it was.

use std::fmt::Display;
use std::str::FromStr;

use isthmus_mesh::record::PublicKey as AnnouncedKey;
use isthmus_model::ids::{ClusterId, ClusterIdentity, LinkName, NodeName, PeerName, PoolName};
use isthmus_wg::{PrivateKey, PublicKey};

use crate::Seed;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let labels = [stays::<ClusterId>(text), stays::<PeerName>(text)];
    let subdomains = [stays::<NodeName>(text), stays::<PoolName>(text)];
    assert!(labels[0] == labels[1] && subdomains[0] == subdomains[1]);
    assert!(!labels[0] || subdomains[0], "every label is a subdomain");
    if stays::<LinkName>(text) {
        assert!(
            text.len() < 16 && !text.contains(['/', ' ', '\0']),
            "{text:?} is no file below /sys/class/net"
        );
    }
    stays::<ClusterIdentity>(text);
    let announced = stays::<AnnouncedKey>(text);
    let spoken = stays::<PublicKey>(text);
    assert!(!announced || spoken, "a key that is announced and cannot be used");
    if let Ok(key) = PrivateKey::from_base64(text) {
        assert_eq!(key.to_base64().as_str(), text.trim());
        assert!(!format!("{key:?}").contains(&key.to_base64()[..6]), "debug shows it");
    }
}

/// Whether the text is one, and then that it is given back the same.
fn stays<T: FromStr + Display>(text: &str) -> bool {
    let parsed = text.parse::<T>();
    if let Ok(value) = &parsed {
        assert_eq!(value.to_string(), text.trim());
    }
    parsed.is_ok()
}

pub(crate) fn seeds() -> Vec<Seed> {
    let key = PrivateKey::from_bytes([7; 32]);
    vec![
        ("label", b"west-1".to_vec()),
        ("subdomain", b"node-1.example".to_vec()),
        ("link", b"iw-0123456789ab".to_vec()),
        ("link-upwards", b"..".to_vec()),
        ("identity", "ab".repeat(32).into_bytes()),
        ("public-key", key.public().to_string().into_bytes()),
        ("private-key", key.to_base64().as_bytes().to_vec()),
        ("zero-key", b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_vec()),
    ]
}
