// SPDX-License-Identifier: Apache-2.0
use jiff::{SignedDuration, Timestamp};
use rustls::crypto::ring;

use super::*;
use isthmus_mesh::identity::{LEAF_VALIDITY, Leaf, RootKey};

fn noon() -> Timestamp {
    "2026-07-01T12:00:00Z".parse().unwrap()
}

fn proof(leaf: &Leaf, at: Timestamp) -> Result<ClusterIdentity, NotProven> {
    proof_of(&leaf.chain, at)
}

fn proof_of(chain: &[CertificateDer<'static>], at: Timestamp) -> Result<ClusterIdentity, NotProven> {
    let now = UnixTime::since_unix_epoch(Duration::from_secs(at.as_second().unsigned_abs()));
    let algorithms = ring::default_provider().signature_verification_algorithms;
    prove(&chain[0], &chain[1..], now, &algorithms)
}

#[test]
fn a_leaf_and_its_root_prove_the_hash_of_the_roots_key() {
    let root = RootKey::generate(noon()).unwrap();
    let leaf = root.issue_leaf(noon()).unwrap();
    assert_eq!(proof(&leaf, noon()).as_ref(), Ok(root.identity()));
}

#[test]
fn a_leaf_shown_with_the_root_of_another_proves_nothing() {
    let [victim, attacker] = [(); 2].map(|()| RootKey::generate(noon()).unwrap().issue_leaf(noon()).unwrap());
    let mixed = [attacker.chain[0].clone(), victim.chain[1].clone()];
    assert_eq!(proof_of(&mixed, noon()), Err(NotProven::LeafNotSigned));
    assert_eq!(proof_of(&attacker.chain[..1], noon()), Err(NotProven::ChainLength(1)));
    let reversed = [attacker.chain[1].clone(), attacker.chain[0].clone()];
    assert_eq!(proof_of(&reversed, noon()), Err(NotProven::RootNotSelfSigned));
}

#[test]
fn clocks_may_differ_by_five_minutes_and_no_more() {
    let root = RootKey::generate(noon()).unwrap();
    let leaf = root.issue_leaf(noon()).unwrap();
    let minutes = |n| SignedDuration::from_mins(n);
    let end = noon() + LEAF_VALIDITY;
    // The leaf itself begins five minutes early; the tolerance comes on top.
    for at in [noon() - minutes(9), end + minutes(4)] {
        assert!(proof(&leaf, at).is_ok(), "{at}");
    }
    for at in [noon() - minutes(11), end + minutes(6)] {
        assert!(matches!(proof(&leaf, at), Err(NotProven::OutOfDate("leaf", ..))), "{at}");
    }
}

#[test]
fn a_root_that_does_not_sign_itself_is_refused() {
    let root = RootKey::generate(noon()).unwrap();
    let leaf = root.issue_leaf(noon()).unwrap();
    let mut forged = leaf.chain[1].to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let chain = [leaf.chain[0].clone(), CertificateDer::from(forged)];
    assert!(matches!(
        proof_of(&chain, noon()),
        Err(NotProven::RootNotSelfSigned | NotProven::Unreadable("root"))
    ));
}

#[test]
fn garbage_and_oversize_certificates_are_refused_without_a_panic() {
    let leaf = RootKey::generate(noon()).unwrap().issue_leaf(noon()).unwrap();
    let garbage = [CertificateDer::from(vec![0x30; 64]), leaf.chain[1].clone()];
    assert_eq!(proof_of(&garbage, noon()), Err(NotProven::Unreadable("leaf")));
    let large = [leaf.chain[0].clone(), CertificateDer::from(vec![0x30; CERTIFICATE_BYTES_MAX + 1])];
    assert_eq!(proof_of(&large, noon()), Err(NotProven::Unreadable("root")));
}
