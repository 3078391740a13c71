// SPDX-License-Identifier: Apache-2.0
//! TLS between two clusters: each side shows a leaf certificate and its root, and is whoever that root's key is.
//!
//! TLS 1.3 only, mutual, ALPN `isthmus/1`, no resumption and no early data: every connection proves the key anew.

mod verify;

use std::sync::Arc;

use isthmus_model::ids::ClusterIdentity;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::ServerName;

use isthmus_mesh::identity::{Leaf, identity_name};
use verify::{AnyCluster, PinnedCluster};

pub use verify::NotProven;

/// The application protocol that both sides must speak (RFC 7301).
pub const ALPN: &[u8] = b"isthmus/1";

/// A TLS client that speaks with the cluster of this identity and no other.
pub fn client_config(leaf: &Leaf, pin: &ClusterIdentity) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = provider();
    let verifier = Arc::new(PinnedCluster::new(pin.clone(), &provider));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Who is asked for stays between the two: the pin, not a name, decides.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// A TLS server that takes any cluster that proves its key. Whether it is welcome is for the application to say.
pub fn server_config(leaf: &Leaf) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = provider();
    let verifier = Arc::new(AnyCluster::new(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(leaf.chain.clone(), leaf.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// The name under which a client asks for a cluster.
pub fn server_name(identity: &ClusterIdentity) -> ServerName<'static> {
    ServerName::try_from(identity_name(identity)).expect("hexadecimal labels are a DNS name")
}

/// Who is at the other end of a finished handshake. None where the peer does not speak our protocol.
pub fn peer_identity(connection: &CommonState) -> Option<ClusterIdentity> {
    if connection.alpn_protocol() != Some(ALPN) {
        return None;
    }
    let [_leaf, root] = connection.peer_certificates()? else { return None };
    verify::identity_of_certificate(root).ok()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
