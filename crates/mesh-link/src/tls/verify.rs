// SPDX-License-Identifier: Apache-2.0
//! The proof of an identity: a leaf signed by a root that signs itself, both in date, the handshake signed by the leaf.

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::ids::ClusterIdentity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, Validity, X509Certificate};

use crate::tls::server_name;
use isthmus_mesh::identity::{CLOCK_SKEW, identity_of};

/// Bytes of one certificate; ours have about 600.
const CERTIFICATE_BYTES_MAX: usize = 4096;

/// Why a peer's certificates do not prove who it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotProven {
    /// Not a leaf and a root.
    #[error("the peer showed {0} certificates instead of a leaf and its root")]
    ChainLength(usize),
    /// A certificate is not one, or too large.
    #[error("the peer's {0} certificate cannot be read")]
    Unreadable(&'static str),
    /// The root does not sign itself as a CA.
    #[error("the peer's root certificate is not a self-signed CA")]
    RootNotSelfSigned,
    /// The leaf does not lead to the root.
    #[error("the peer's leaf certificate is not signed by its root, or not made for it")]
    LeafNotSigned,
    /// Not yet valid, or expired.
    #[error(
        "the peer's {0} certificate is valid from {1} to {2}, not now; check the clocks of both clusters"
    )]
    OutOfDate(&'static str, String, String),
    /// A good proof, of another cluster.
    #[error(
        "the peer proved to be {proved}, but the ClusterPeering expects {expected}; is the endpoint right?"
    )]
    NotExpected {
        /// Who it is.
        proved: ClusterIdentity,
        /// Who it should be.
        expected: ClusterIdentity,
    },
}

impl From<NotProven> for rustls::Error {
    fn from(fault: NotProven) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
    }
}

/// Returns the identity that the certificates prove at `now`, give or take [`CLOCK_SKEW`].
pub(super) fn prove(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    now: UnixTime,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<ClusterIdentity, NotProven> {
    let [root] = others else { return Err(NotProven::ChainLength(others.len() + 1)) };
    let parsed_root = parse("root", root)?;
    let self_issued = parsed_root.subject().as_raw() == parsed_root.issuer().as_raw() && parsed_root.is_ca();
    if !self_issued || parsed_root.verify_signature(None).is_err() {
        return Err(NotProven::RootNotSelfSigned);
    }
    in_date("root", parsed_root.validity(), now)?;
    let time = in_date("leaf", parse("leaf", leaf)?.validity(), now)?;

    let identity = identity_of(parsed_root.public_key().raw);
    let mut anchors = RootCertStore::empty();
    anchors.add(root.clone()).map_err(|_| NotProven::Unreadable("root"))?;
    let leaf = ParsedCertificate::try_from(leaf).map_err(|_| NotProven::Unreadable("leaf"))?;
    verify_server_cert_signed_by_trust_anchor(&leaf, &anchors, &[], time, algorithms.all)
        .map_err(|_| NotProven::LeafNotSigned)?;
    verify_server_name(&leaf, &server_name(&identity)).map_err(|_| NotProven::LeafNotSigned)?;
    Ok(identity)
}

/// The identity of a root certificate that was already proven.
pub(super) fn identity_of_certificate(root: &CertificateDer<'_>) -> Result<ClusterIdentity, NotProven> {
    Ok(identity_of(parse("root", root)?.public_key().raw))
}

fn parse<'a>(
    which: &'static str,
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, NotProven> {
    let small = certificate.len() <= CERTIFICATE_BYTES_MAX;
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) if small => Ok(parsed),
        _ => Err(NotProven::Unreadable(which)),
    }
}

/// Returns `now`, moved into the validity where it is off by no more than the skew that is tolerated.
fn in_date(which: &'static str, validity: &Validity, now: UnixTime) -> Result<UnixTime, NotProven> {
    let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let skew = CLOCK_SKEW.as_secs();
    if begin > end || seconds < begin.saturating_sub(skew) || seconds > end.saturating_add(skew) {
        let [begin, end] = [&validity.not_before, &validity.not_after].map(ToString::to_string);
        return Err(NotProven::OutOfDate(which, begin, end));
    }
    let inside = seconds.clamp(begin, end).max(0).unsigned_abs();
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(inside)))
}

/// Takes the one cluster that is expected.
#[derive(Debug)]
pub(super) struct PinnedCluster {
    pin: ClusterIdentity,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedCluster {
    pub(super) fn new(pin: ClusterIdentity, provider: &CryptoProvider) -> Self {
        Self { pin, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for PinnedCluster {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let proved = prove(end_entity, intermediates, now, &self.algorithms)?;
        if proved != self.pin {
            return Err(NotProven::NotExpected { proved, expected: self.pin.clone() }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls13_only())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Takes every cluster that proves its key.
#[derive(Debug)]
pub(super) struct AnyCluster {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyCluster {
    pub(super) fn new(provider: &CryptoProvider) -> Self {
        Self { algorithms: provider.signature_verification_algorithms }
    }
}

impl ClientCertVerifier for AnyCluster {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        prove(end_entity, intermediates, now, &self.algorithms)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls13_only())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// TLS 1.2 is never configured; the trait asks for an answer all the same.
fn tls13_only() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken between clusters".to_owned())
}

#[cfg(test)]
mod tests;
