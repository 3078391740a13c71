// SPDX-License-Identifier: Apache-2.0
//! The text that the invited cluster's administrator reads and applies.

use isthmus_model::ids::{ClusterId, ClusterIdentity};
use jiff::Timestamp;

pub(super) struct Parts<'a> {
    pub(super) own_id: &'a ClusterId,
    pub(super) identity: &'a ClusterIdentity,
    pub(super) endpoints: &'a [String],
    pub(super) pod_cidrs: Vec<String>,
    pub(super) namespaces: &'a [String],
    pub(super) token: &'a str,
    pub(super) expires_at: Timestamp,
    pub(super) system_namespace: &'a str,
}

pub(super) fn render(parts: &Parts<'_>) -> String {
    let Parts { own_id, identity, token, expires_at, system_namespace, .. } = parts;
    let endpoints = list(parts.endpoints);
    let cidrs = list(&parts.pod_cidrs);
    let namespaces = list(parts.namespaces);
    format!(
        r#"# Cluster {own_id} invites this cluster. Apply this before {expires_at}, in one cluster only: the token works once.
# Review what it grants: allowedCIDRs and allowedNamespaces bound what {own_id} may announce here.
apiVersion: v1
kind: Secret
metadata:
  name: isthmus-token-{own_id}
  namespace: {system_namespace}
stringData:
  token: "{token}"
---
apiVersion: isthmus.dev/v1alpha1
kind: ClusterPeering
metadata:
  name: "{own_id}"
spec:
  # Hash of the root key of {own_id}: it must prove it in every handshake.
  identity: "{identity}"
  endpoints: {endpoints}
  tokenSecretRef:
    name: isthmus-token-{own_id}
  # The pods of {own_id}.
  allowedCIDRs: {cidrs}
  # Namespaces whose services {own_id} may export to this cluster.
  allowedNamespaces: {namespaces}
"#
    )
}

/// A YAML flow sequence of strings. Strings of JSON are strings of YAML (YAML 1.2, 1.2).
fn list(items: &[String]) -> String {
    serde_json::to_string(items).unwrap_or_default()
}
