// SPDX-License-Identifier: Apache-2.0
//! The root key and its certificate, as PEM out of a Secret.

use isthmus_mesh::identity::RootKey;

use crate::Seed;
use crate::fixture::fixture;
use crate::input::{Input, Script};

/// The key's text, and behind it the certificate's.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (Ok(key), Ok(cert)) = (std::str::from_utf8(input.piece()), std::str::from_utf8(input.rest())) else {
        return;
    };
    if let Ok(read) = RootKey::from_pem(key, cert) {
        assert_eq!(read.key_pem().as_str(), key);
        assert_eq!(read.cert_pem(), cert);
        let again = RootKey::from_pem(key, cert).expect("it was read before");
        assert_eq!(again.identity(), read.identity());
        // No other key is known here, and no text of one comes out of another's by changes.
        assert_eq!(read.identity(), fixture().root.identity());
    }
}

pub(crate) fn seeds() -> Vec<Seed> {
    let (own_key, own_cert) = (fixture().root_key_pem.as_str(), fixture().root_cert_pem.as_str());
    let pair = |key: &str, cert: &str| Script::default().piece(key.as_bytes()).bytes(cert.as_bytes()).end();
    vec![
        ("pair", pair(own_key, own_cert)),
        ("exchanged", pair(own_cert, own_key)),
        ("no-key", pair("", own_cert)),
        ("cut", pair(own_key, &own_cert[..100])),
    ]
}
