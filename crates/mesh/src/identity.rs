// SPDX-License-Identifier: Apache-2.0
//! A cluster's root key, and the short-lived certificates that the operator speaks with.
//!
//! The hash of the root key is the cluster's identity; its certificate only carries the key. Peers pin the hash,
//! so that a root certificate may be made anew from the same key without anybody noticing.

use std::fmt;
use std::time::Duration;

use isthmus_model::ids::ClusterIdentity;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, date_time_ymd,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// How long a leaf certificate is valid.
pub const LEAF_VALIDITY: SignedDuration = SignedDuration::from_hours(24);
/// How far the clocks of two clusters may differ.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// What is wrong with a root key or certificate of ours.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The cryptographic library refused.
    #[error("cannot make a key or certificate")]
    Generate(#[from] rcgen::Error),
    /// Key and certificate belong to different keys.
    #[error("the root key and the root certificate do not belong together; restore both from one backup")]
    Mismatch,
    /// The PEM texts cannot be read.
    #[error(
        "the {0} is not readable PEM of an ECDSA P-256 CA; restore the Secret isthmus-identity from a backup"
    )]
    Unreadable(&'static str),
}

/// The root key of a cluster (ECDSA P-256) with its self-signed certificate.
///
/// The key is kept as text that is wiped when dropped, and parsed only to sign.
pub struct RootKey {
    key_pem: Zeroizing<String>,
    cert_pem: String,
    cert: CertificateDer<'static>,
    identity: ClusterIdentity,
}

/// A certificate for the operator's process, with its key and the root that signed it.
#[derive(Debug)]
pub struct Leaf {
    /// Leaf, then root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// When it ends.
    pub not_after: Timestamp,
}

impl RootKey {
    /// Makes a new root key. Its certificate has no end that matters (RFC 5280, 4.1.2.5): the key is pinned, not its date.
    pub fn generate(now: Timestamp) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let identity = identity_of(&key.subject_public_key_info());
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(1970, 1, 1) + since_1970(now - SignedDuration::from_hours(1));
        params.not_after = date_time_ymd(9999, 12, 31);
        params.distinguished_name = common_name(&format!("Isthmus root {}", &identity.as_str()[..16]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let cert = params.self_signed(&key)?;
        Ok(Self {
            key_pem: Zeroizing::new(key.serialize_pem()),
            cert_pem: cert.pem(),
            cert: cert.der().clone(),
            identity,
        })
    }

    /// Reads a key and its certificate back from what [`key_pem`](Self::key_pem) and [`cert_pem`](Self::cert_pem) gave.
    pub fn from_pem(key_pem: &str, cert_pem: &str) -> Result<Self, IdentityError> {
        let key = signing_key(key_pem)?;
        let unreadable = IdentityError::Unreadable("root certificate");
        let Ok(cert) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else { return Err(unreadable) };
        let Ok((_, parsed)) = X509Certificate::from_der(&cert) else { return Err(unreadable) };
        let spki = key.subject_public_key_info();
        if parsed.public_key().raw != spki {
            return Err(IdentityError::Mismatch);
        }
        if !parsed.is_ca() {
            return Err(unreadable);
        }
        let identity = identity_of(&spki);
        Ok(Self {
            key_pem: Zeroizing::new(key_pem.to_owned()),
            cert_pem: cert_pem.to_owned(),
            cert,
            identity,
        })
    }

    /// The private key as PKCS #8 PEM, for the Secret and nothing else.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key_pem.clone()
    }

    /// The certificate as PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The cluster's identity: SHA-256 of the key's SubjectPublicKeyInfo.
    pub fn identity(&self) -> &ClusterIdentity {
        &self.identity
    }

    /// Issues a certificate for this process, valid for [`LEAF_VALIDITY`].
    pub fn issue_leaf(&self, now: Timestamp) -> Result<Leaf, IdentityError> {
        let issuer = Issuer::from_ca_cert_der(&self.cert, signing_key(&self.key_pem)?)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_after = now + LEAF_VALIDITY;
        let mut params = CertificateParams::new([identity_name(&self.identity)])?;
        params.not_before = date_time_ymd(1970, 1, 1) + since_1970(now - CLOCK_SKEW);
        params.not_after = date_time_ymd(1970, 1, 1) + since_1970(not_after);
        params.distinguished_name = common_name("isthmus-operator");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Leaf { chain: vec![cert.der().clone(), self.cert.clone()], key, not_after })
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootKey").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The identity that a SubjectPublicKeyInfo (DER) stands for.
pub fn identity_of(spki_der: &[u8]) -> ClusterIdentity {
    hex::encode(Sha256::digest(spki_der)).parse().expect("the hex of a SHA-256 is an identity")
}

/// The DNS name in a cluster's leaf certificates: the identity in two labels, since one holds 63 characters at most.
pub fn identity_name(identity: &ClusterIdentity) -> String {
    let (first, second) = identity.as_str().split_at(32);
    format!("{first}.{second}.isthmus.internal")
}

fn signing_key(key_pem: &str) -> Result<KeyPair, IdentityError> {
    KeyPair::from_pkcs8_pem_and_sign_algo(key_pem, &PKCS_ECDSA_P256_SHA256)
        .map_err(|_| IdentityError::Unreadable("root key"))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Time since 1970, which is what certificate dates are counted from here.
fn since_1970(at: Timestamp) -> Duration {
    Duration::from_secs(at.as_second().max(0).unsigned_abs())
}

#[cfg(test)]
mod tests;
