// SPDX-License-Identifier: Apache-2.0
use super::*;

fn noon() -> Timestamp {
    "2026-07-01T12:00:00Z".parse().unwrap()
}

#[test]
fn a_root_key_read_back_has_the_same_identity() {
    let root = RootKey::generate(noon()).unwrap();
    let again = RootKey::from_pem(&root.key_pem(), root.cert_pem()).unwrap();
    assert_eq!(root.identity(), again.identity());
    assert_ne!(root.identity(), RootKey::generate(noon()).unwrap().identity());
}

#[test]
fn a_key_with_the_certificate_of_another_is_refused() {
    let [one, other] = [(); 2].map(|()| RootKey::generate(noon()).unwrap());
    let error = RootKey::from_pem(&one.key_pem(), other.cert_pem()).unwrap_err();
    assert!(matches!(error, IdentityError::Mismatch), "{error}");
    assert!(RootKey::from_pem("garbage", one.cert_pem()).is_err());
    assert!(RootKey::from_pem(&one.key_pem(), "garbage").is_err());
}

#[test]
fn debug_shows_the_identity_and_no_key() {
    let root = RootKey::generate(noon()).unwrap();
    let shown = format!("{root:?}");
    assert!(shown.contains(root.identity().as_str()));
    assert!(!shown.contains("PRIVATE") && !shown.contains(root.key_pem().lines().nth(1).unwrap()));
}
