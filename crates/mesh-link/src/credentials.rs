// SPDX-License-Identifier: Apache-2.0
use std::sync::{Arc, Mutex, PoisonError};

use isthmus_model::ids::{ClusterId, ClusterIdentity};
use jiff::{SignedDuration, Timestamp};
use rustls::{ClientConfig, ServerConfig};

use crate::LinkError;
use crate::tls;
use isthmus_mesh::identity::{Leaf, RootKey};

/// A leaf this close to its end is replaced before it is used again.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(12);

/// Who this cluster is towards its peers. Issues its short-lived certificates by itself.
#[derive(Debug)]
pub struct Credentials {
    root: RootKey,
    cluster_id: ClusterId,
    leaf: Mutex<Option<Arc<Leaf>>>,
}

impl Credentials {
    /// The cluster with this root key and alias.
    pub fn new(root: RootKey, cluster_id: ClusterId) -> Self {
        Self { root, cluster_id, leaf: Mutex::new(None) }
    }

    /// The cluster's identity.
    pub fn identity(&self) -> &ClusterIdentity {
        self.root.identity()
    }

    /// The cluster's alias.
    pub fn cluster_id(&self) -> &ClusterId {
        &self.cluster_id
    }

    pub(super) fn client(
        &self,
        pin: &ClusterIdentity,
        now: Timestamp,
    ) -> Result<Arc<ClientConfig>, LinkError> {
        tls::client_config(&*self.leaf(now)?, pin).map_err(unusable)
    }

    pub(super) fn server(&self, now: Timestamp) -> Result<Arc<ServerConfig>, LinkError> {
        tls::server_config(&*self.leaf(now)?).map_err(unusable)
    }

    fn leaf(&self, now: Timestamp) -> Result<Arc<Leaf>, LinkError> {
        let mut held = self.leaf.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = held.as_ref().filter(|leaf| now < leaf.not_after - RENEW_BEFORE) {
            return Ok(Arc::clone(leaf));
        }
        let leaf = Arc::new(self.root.issue_leaf(now)?);
        *held = Some(Arc::clone(&leaf));
        Ok(leaf)
    }
}

fn unusable(fault: rustls::Error) -> LinkError {
    LinkError::Tls { endpoint: "this cluster".to_owned(), fault: fault.to_string() }
}
