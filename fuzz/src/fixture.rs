// SPDX-License-Identifier: Apache-2.0
//! One root key and what it signed, for the targets that need certificates. They are used for nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use isthmus_mesh::identity::{LEAF_VALIDITY, Leaf, RootKey};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const ROOT_KEY: &str = "root-key.pem";
const ROOT_CERT: &str = "root-cert.pem";
const LEAF_KEY: &str = "leaf-key.der";
const LEAF_CERT: &str = "leaf-cert.der";

/// What lies in the folder `fixtures`.
pub(crate) struct Fixture {
    pub(crate) root_key_pem: String,
    pub(crate) root_cert_pem: String,
    pub(crate) root: RootKey,
    pub(crate) leaf: Leaf,
}

/// When the leaf is valid.
pub(crate) fn noon() -> Timestamp {
    "2026-07-01T12:00:00Z".parse().expect("a time")
}

/// The fixture.
pub(crate) fn fixture() -> &'static Fixture {
    static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
        read().expect("`cargo run -p isthmus-fuzz --example corpus` writes the folder fixtures")
    });
    &FIXTURE
}

fn read() -> io::Result<Fixture> {
    let text = |name: &str| std::fs::read_to_string(file(name));
    let (root_key_pem, root_cert_pem) = (text(ROOT_KEY)?, text(ROOT_CERT)?);
    let root = RootKey::from_pem(&root_key_pem, &root_cert_pem).map_err(io::Error::other)?;
    let of_root = root.issue_leaf(noon()).map_err(io::Error::other)?.chain.swap_remove(1);
    let leaf = Leaf {
        chain: vec![CertificateDer::from(std::fs::read(file(LEAF_CERT))?), of_root],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(std::fs::read(file(LEAF_KEY))?)),
        not_after: noon() + LEAF_VALIDITY,
    };
    Ok(Fixture { root_key_pem, root_cert_pem, root, leaf })
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Makes the fixture, if it is not there. Another one would be another input of every certificate in the corpus.
///
/// # Errors
/// It cannot be made or written.
pub fn make_once() -> io::Result<()> {
    if file(ROOT_KEY).exists() {
        return Ok(());
    }
    std::fs::create_dir_all(file(""))?;
    let root = RootKey::generate(noon()).map_err(io::Error::other)?;
    let leaf = root.issue_leaf(noon()).map_err(io::Error::other)?;
    std::fs::write(file(ROOT_CERT), root.cert_pem())?;
    std::fs::write(file(LEAF_KEY), leaf.key.secret_der())?;
    std::fs::write(file(LEAF_CERT), &leaf.chain[0])?;
    std::fs::write(file(ROOT_KEY), root.key_pem().as_bytes())
}
