// SPDX-License-Identifier: Apache-2.0
//! The cluster's root key, in the Secret isthmus-identity: made once, by whoever is first.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use isthmus_mesh::identity::RootKey;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use tracing::info;

/// Name of the Secret.
pub(crate) const SECRET: &str = "isthmus-identity";
const KEY: &str = "tls.key";
const CERTIFICATE: &str = "tls.crt";

/// Reads the root key, making it where there is none.
///
/// # Errors
/// The API server refuses, or the Secret holds something else: then it is left as it is, since a new key would
/// be another cluster to every peer.
pub(crate) async fn root_key(client: Client, namespace: &str, now: Timestamp) -> Result<RootKey> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    if let Some(secret) = api.get_opt(SECRET).await? {
        return parse(&secret, namespace);
    }
    let root = RootKey::generate(now).context("make the cluster's root key")?;
    let mut secret = Secret { type_: Some("kubernetes.io/tls".to_owned()), ..Secret::default() };
    secret.metadata.name = Some(SECRET.to_owned());
    secret.immutable = Some(true);
    secret.data = Some(BTreeMap::from([
        (KEY.to_owned(), ByteString(root.key_pem().as_bytes().to_vec())),
        (CERTIFICATE.to_owned(), ByteString(root.cert_pem().as_bytes().to_vec())),
    ]));
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            info!(identity = %root.identity(), "made the cluster's identity");
            Ok(root)
        }
        // The other replica was faster: its key is the cluster's.
        Err(kube::Error::Api(status)) if status.code == 409 => parse(&api.get(SECRET).await?, namespace),
        Err(error) => Err(error).context("store the cluster's root key"),
    }
}

fn parse(secret: &Secret, namespace: &str) -> Result<RootKey> {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        let bytes = bytes.with_context(|| format!("Secret {namespace}/{SECRET} has no key {key}"))?;
        std::str::from_utf8(&bytes.0)
            .with_context(|| format!("{key} of Secret {namespace}/{SECRET} is not text"))
    };
    RootKey::from_pem(text(KEY)?, text(CERTIFICATE)?).with_context(|| {
        format!("Secret {namespace}/{SECRET} holds no usable root key; restore it from a backup, or delete it and peer anew")
    })
}
