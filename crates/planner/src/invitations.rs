// SPDX-License-Identifier: Apache-2.0
//! Invitations: a token is made once, kept as its hash, redeemed once, and ends.

mod manifest;

use std::collections::BTreeMap;

use isthmus_api::condition::{READY, Wanted};
use isthmus_api::v1alpha1::PeeringInvitationStatus;
use isthmus_mesh::invitation::{Token, TokenHash};
use isthmus_model::ids::ClusterId;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sha2::{Digest, Sha256};

use crate::conditions::{self, Progress, is};
use crate::plan::{Kind, ObjectKey, Plan};
use crate::pools::Usable;
use crate::snapshot::{Invitation, Issued, Problem, Snapshot};

/// Label of the Secret of an invitation; the value is the invitation's name, shortened where it is long.
pub const INVITATION_LABEL: &str = "isthmus.dev/invitation";
/// Annotation of that Secret: UID of the invitation.
pub const INVITATION_UID: &str = "isthmus.dev/invitation-uid";
/// Keys of that Secret: the manifest with the token, its hash, its end, and who redeemed it.
pub mod key {
    /// What to apply in the invited cluster. Taken away when the token is of no use any more.
    pub const MANIFEST: &str = "manifest.yaml";
    /// SHA-256 of the token, hex.
    pub const HASH: &str = "tokenHash";
    /// When the token ends (RFC 3339).
    pub const EXPIRES_AT: &str = "expiresAt";
    /// Identity of the cluster that redeemed the token.
    pub const REDEEMED_BY: &str = "redeemedBy";
}

const REDEEMED: &str = "Redeemed";
const EXPIRED: &str = "Expired";

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unredeemable {
    /// No invitation has this token.
    Unknown,
    /// Somebody redeemed it.
    Used,
    /// Its time is over.
    Expired,
}

/// The invitation whose token this is.
///
/// # Errors
/// There is none, or it is of no use any more.
pub fn redeemable<'a>(
    issued: &'a BTreeMap<String, Issued>,
    token: &Token,
    now: Timestamp,
) -> Result<(&'a str, &'a Issued), Unredeemable> {
    let mut found = None;
    // Every hash is compared, so that the time taken tells nothing.
    for (name, issued) in issued {
        if issued.hash.matches(token) {
            found = Some((name.as_str(), issued));
        }
    }
    let (name, issued) = found.ok_or(Unredeemable::Unknown)?;
    if issued.redeemed_by.is_some() {
        return Err(Unredeemable::Used);
    }
    if now >= issued.expires_at {
        return Err(Unredeemable::Expired);
    }
    Ok((name, issued))
}

pub(crate) fn plan(
    snapshot: &Snapshot,
    usable: &Usable<'_>,
    own_id: &Result<ClusterId, Problem>,
    plan: &mut Plan,
) {
    for (name, seen) in snapshot.invitations.iter().filter(|(_, seen)| !seen.deleting) {
        let issued = snapshot.issued.get(name);
        let state = state(snapshot, own_id, seen.value.as_ref(), issued, &seen.uid);
        match &state {
            State::ToIssue(invitation, own_id) => {
                issue(snapshot, usable, own_id, name, &seen.uid, invitation, plan);
            }
            State::Open(issued) => plan.wake_at(issued.expires_at),
            State::Expired(issued) | State::Redeemed(issued, _) if issued.has_manifest => {
                let key =
                    ObjectKey::namespaced(Kind::Secret, &snapshot.cluster.system_namespace, &issued.secret);
                plan.merge.insert(key, serde_json::json!({"data": {key::MANIFEST: null}}));
            }
            State::Stale(issued) => {
                let key =
                    ObjectKey::namespaced(Kind::Secret, &snapshot.cluster.system_namespace, &issued.secret);
                plan.prune.insert(key, issued.uid.clone());
            }
            _ => {}
        }
        let old = &seen.status.conditions;
        let (wanted, progress) = state.conditions();
        let status = PeeringInvitationStatus {
            observed_generation: seen.generation,
            conditions: conditions::updated(old, &wanted, progress, seen.generation, snapshot.now),
            manifest_secret: match &state {
                State::Open(issued) => Some(issued.secret.clone()),
                _ => None,
            },
            expires_at: state.issued().map(|issued| issued.expires_at.to_string()),
            redeemed_by: state.issued().and_then(|issued| issued.redeemed_by.clone()),
        };
        plan.status(ObjectKey::cluster(Kind::PeeringInvitation, name), &status);
    }
}

enum State<'a> {
    Wrong(&'a Problem),
    ToIssue(&'a Invitation, &'a ClusterId),
    /// The Secret is of an earlier invitation of the same name.
    Stale(&'a Issued),
    Open(&'a Issued),
    Expired(&'a Issued),
    Redeemed(&'a Issued, &'a str),
}

fn state<'a>(
    snapshot: &'a Snapshot,
    own_id: &'a Result<ClusterId, Problem>,
    wish: Result<&'a Invitation, &'a Problem>,
    issued: Option<&'a Issued>,
    uid: &str,
) -> State<'a> {
    match (issued, wish, own_id) {
        (Some(issued), _, _) if issued.invitation_uid != uid => State::Stale(issued),
        (Some(issued), _, _) => match &issued.redeemed_by {
            Some(peer) => State::Redeemed(issued, peer),
            None if snapshot.now >= issued.expires_at => State::Expired(issued),
            None => State::Open(issued),
        },
        (None, Err(problem), _) | (None, _, Err(problem)) => State::Wrong(problem),
        (None, Ok(invitation), Ok(own_id)) => State::ToIssue(invitation, own_id),
    }
}

impl<'a> State<'a> {
    fn issued(&self) -> Option<&'a Issued> {
        match self {
            Self::Open(issued) | Self::Expired(issued) | Self::Redeemed(issued, _) => Some(issued),
            _ => None,
        }
    }

    fn conditions(&self) -> ([Wanted; 3], Progress) {
        let open = is(REDEEMED, false, "Open", "");
        let lasting = is(EXPIRED, false, "Open", "");
        match self {
            Self::Wrong(problem) => {
                ([is(READY, false, problem.reason, &problem.message), open, lasting], Progress::Stalled)
            }
            Self::ToIssue(..) | Self::Stale(_) => {
                ([is(READY, false, "Pending", "the token is being made"), open, lasting], Progress::UnderWay)
            }
            Self::Open(_) => (
                [is(READY, true, "Open", "apply the manifest in the other cluster"), open, lasting],
                Progress::Settled,
            ),
            Self::Expired(_) => {
                let message = "the token was not redeemed in time; delete this invitation and make a new one";
                let expired = is(EXPIRED, true, EXPIRED, message);
                ([is(READY, false, EXPIRED, message), open, expired], Progress::Stalled)
            }
            Self::Redeemed(_, peer) => {
                let redeemed = is(REDEEMED, true, REDEEMED, format!("by the cluster of identity {peer}"));
                ([is(READY, true, REDEEMED, ""), redeemed, lasting], Progress::Settled)
            }
        }
    }
}

fn issue(
    snapshot: &Snapshot,
    usable: &Usable<'_>,
    own_id: &ClusterId,
    name: &str,
    uid: &str,
    invitation: &Invitation,
    plan: &mut Plan,
) {
    let (Some(random), Some(identity)) = (&snapshot.cluster.random, &snapshot.cluster.identity) else {
        return;
    };
    let token = token(&random.0, uid);
    let hash: TokenHash = token.hash();
    let expires_at = snapshot.now + invitation.ttl;
    let text = token.to_text();
    let manifest = manifest::render(&manifest::Parts {
        own_id,
        identity,
        endpoints: &endpoints(snapshot, invitation),
        pod_cidrs: usable
            .values()
            .filter_map(|one| one.as_ref().ok())
            .map(|pool| pool.cidr.to_string())
            .collect(),
        namespaces: &invitation.allowed_namespaces,
        token: &text,
        expires_at,
        system_namespace: &snapshot.cluster.system_namespace,
    });
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(format!("isthmus-invitation-{name}")),
            namespace: Some(snapshot.cluster.system_namespace.clone()),
            labels: Some(BTreeMap::from([(INVITATION_LABEL.to_owned(), name.chars().take(63).collect())])),
            annotations: Some(BTreeMap::from([(INVITATION_UID.to_owned(), uid.to_owned())])),
            owner_references: Some(vec![OwnerReference {
                api_version: "isthmus.dev/v1alpha1".to_owned(),
                kind: "PeeringInvitation".to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        string_data: Some(BTreeMap::from([
            (key::MANIFEST.to_owned(), manifest),
            (key::HASH.to_owned(), hash.to_string()),
            (key::EXPIRES_AT.to_owned(), expires_at.to_string()),
        ])),
        ..Secret::default()
    };
    plan.create(&secret);
}

/// Another token for each invitation out of the randomness of one plan.
fn token(random: &[u8; 32], uid: &str) -> Token {
    let mut hash = Sha256::new();
    hash.update(random);
    hash.update(uid.as_bytes());
    Token::from_random(hash.finalize().into())
}

/// Where the invited cluster finds us: as wished, else every node's address of a family that the leader has too.
fn endpoints(snapshot: &Snapshot, invitation: &Invitation) -> Vec<String> {
    /// As many as the schema of ClusterPeering takes.
    const MOST: usize = 16;
    if !invitation.endpoints.is_empty() {
        return invitation.endpoints.clone();
    }
    let families: Vec<bool> =
        snapshot.cluster.leader_addresses.iter().map(std::net::IpAddr::is_ipv4).collect();
    let mut addresses: Vec<_> =
        snapshot.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
    addresses.retain(|address| families.contains(&address.is_ipv4()));
    addresses.sort();
    let port = snapshot.cluster.peering_node_port;
    addresses
        .into_iter()
        .take(MOST)
        .map(|address| std::net::SocketAddr::new(address, port).to_string())
        .collect()
}

#[cfg(test)]
mod tests;
