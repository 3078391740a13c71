// SPDX-License-Identifier: Apache-2.0
//! The certificates that a stranger shows in the handshake, to our server or as the server that we dial.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use isthmus_mesh_link::tls::{client_config, peer_identity, server_config};
use isthmus_model::ids::ClusterIdentity;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::Seed;
use crate::fixture::{fixture, noon};
use crate::input::{Input, Script};

const LEAF: u8 = 0;
const ROOT: u8 = 1;
const CHANGED_LEAF: u8 = 2;
const CHANGED_ROOT: u8 = 3;
const ANY: u8 = 4;
const KINDS: usize = 5;
/// A handshake takes fewer turns than this.
const TURNS: usize = 16;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let to_server = input.flag();
    let chain = chain(&mut input);
    let genuine = chain == fixture().leaf.chain;
    let proved = handshake(chain, to_server);
    let own = fixture().root.identity();
    assert!(proved.iter().all(|identity| identity == own), "somebody else was proved");
    assert!(!genuine || proved.is_some(), "the genuine certificates prove nothing");
}

/// Up to three certificates: genuine, changed, or any bytes.
fn chain(input: &mut Input<'_>) -> Vec<CertificateDer<'static>> {
    let [leaf, root] = [0, 1].map(|at| fixture().leaf.chain[at].as_ref());
    let count = input.below(4);
    let one = |_| match input.below(KINDS) as u8 {
        LEAF => leaf.to_vec(),
        ROOT => root.to_vec(),
        CHANGED_LEAF => changed(leaf, input),
        CHANGED_ROOT => changed(root, input),
        _ => input.piece().to_vec(),
    };
    (0..count).map(one).map(CertificateDer::from).collect()
}

fn changed(certificate: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = certificate.to_vec();
    for _ in 0..=input.below(4) {
        let at = usize::from(input.u16()) % bytes.len();
        bytes[at] ^= input.u8();
    }
    bytes
}

/// Both sides as they are set up among clusters; they stand at the time at which the leaf is valid.
static SIDES: LazyLock<(ClientConfig, ServerConfig)> = LazyLock::new(|| {
    let leaf = &fixture().leaf;
    let mut client = (*client_config(leaf, fixture().root.identity()).expect("a client")).clone();
    let mut server = (*server_config(leaf).expect("a server")).clone();
    (client.time_provider, server.time_provider) = (Arc::new(Noon), Arc::new(Noon));
    (client, server)
});

static KEY: LazyLock<Arc<dyn SigningKey>> =
    LazyLock::new(|| any_supported_type(&fixture().leaf.key).expect("a P-256 key"));

/// Speaks until both sides are done or one has had enough. Returns who was proved to the side that is shown the chain.
fn handshake(chain: Vec<CertificateDer<'static>>, to_server: bool) -> Option<ClusterIdentity> {
    let shown = Arc::new(Shown(Arc::new(CertifiedKey::new(chain, KEY.clone()))));
    let (mut client, mut server) = SIDES.clone();
    if to_server {
        client.client_auth_cert_resolver = shown;
    } else {
        server.cert_resolver = shown;
    }
    let name = ServerName::try_from("peer.isthmus.internal").expect("a name");
    let mut client = Connection::from(ClientConnection::new(Arc::new(client), name).expect("a client"));
    let mut server = Connection::from(ServerConnection::new(Arc::new(server)).expect("a server"));
    for _ in 0..TURNS {
        let alive = pass(&mut client, &mut server) && pass(&mut server, &mut client);
        if !alive || !client.is_handshaking() && !server.is_handshaking() {
            break;
        }
    }
    let asked = if to_server { &server } else { &client };
    if asked.is_handshaking() { None } else { peer_identity(asked) }
}

/// Carries what one side has to say to the other; false once that refuses.
fn pass(from: &mut Connection, to: &mut Connection) -> bool {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).expect("memory takes all");
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        if to.read_tls(&mut rest).is_err() || to.process_new_packets().is_err() {
            return false;
        }
    }
    true
}

#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

#[derive(Debug)]
struct Noon;

impl TimeProvider for Noon {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(noon().as_second().unsigned_abs())))
    }
}

pub(crate) fn seeds() -> Vec<Seed> {
    let shown =
        |to_server: u8, kinds: &[u8]| Script::default().bytes(&[to_server, kinds.len() as u8]).bytes(kinds);
    let any =
        |certificate: &[u8]| Script::default().bytes(&[1, 2, ANY]).piece(certificate).bytes(&[ROOT]).end();
    vec![
        ("genuine-client", shown(1, &[LEAF, ROOT]).end()),
        ("genuine-server", shown(0, &[LEAF, ROOT]).end()),
        ("exchanged", shown(1, &[ROOT, LEAF]).end()),
        ("alone", shown(1, &[LEAF]).end()),
        ("none", shown(1, &[]).end()),
        ("changed-leaf", Script::default().bytes(&[1, 2, CHANGED_LEAF, 0]).u16(40).bytes(&[1, ROOT]).end()),
        ("changed-root", Script::default().bytes(&[0, 2, LEAF, CHANGED_ROOT, 0]).u16(300).bytes(&[8]).end()),
        ("leaf-as-bytes", any(&fixture().leaf.chain[0])),
        ("long-leaf", any(&[0x30; 5000])),
    ]
}
