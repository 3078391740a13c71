// SPDX-License-Identifier: Apache-2.0
//! Where a token is redeemed: the invitation is marked, then the peering is made, then the stranger is let in.

use std::time::Duration;

use isthmus_api::v1alpha1::{ClusterPeering, ClusterPeeringSpec, PeeringInvitation};
use isthmus_intake::cluster;
use isthmus_mesh::invitation::Token;
use isthmus_mesh::wire::RefusedReason;
use isthmus_mesh_link::{Peer, Redemption};
use isthmus_model::ids::{ClusterId, ClusterIdentity};
use isthmus_planner::FIELD_MANAGER;
use isthmus_planner::invitations::{Unredeemable, key, redeemable};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::table::Table;

/// The other side waits five seconds for an answer.
const DEADLINE: Duration = Duration::from_secs(4);

/// Why a token is not redeemed, as the other side learns it.
pub(crate) struct Refused {
    reason: RefusedReason,
    message: String,
}

/// Looks after invitations.
pub(crate) struct Desk {
    pub(crate) client: Client,
    pub(crate) system_namespace: String,
    pub(crate) secrets: Table<Secret>,
    pub(crate) invitations: Table<PeeringInvitation>,
    pub(crate) peerings: Table<ClusterPeering>,
}

/// What to answer.
pub(crate) fn answer(result: Result<(), Refused>, peer: Peer) -> Redemption {
    match result {
        Ok(()) => Redemption::Accepted(peer),
        Err(Refused { reason, message }) => Redemption::Refused { reason, message },
    }
}

impl Desk {
    /// Redeems a token; returns the name of the peering that was made.
    pub(crate) async fn redeem(
        &self,
        token: &Token,
        identity: &ClusterIdentity,
        cluster_id: &ClusterId,
    ) -> Result<String, Refused> {
        let result = match timeout(DEADLINE, self.try_redeem(token, identity)).await {
            Ok(result) => result,
            Err(_) => Err(other("the inviting cluster's API server does not answer; try again later")),
        };
        match &result {
            Ok(name) => info!(peering = name, %identity, %cluster_id, "a token was redeemed"),
            Err(refused) => warn!(%identity, %cluster_id, reason = refused.message, "a token was refused"),
        }
        result
    }

    async fn try_redeem(&self, token: &Token, identity: &ClusterIdentity) -> Result<String, Refused> {
        let issued = self.secrets.read().values().filter_map(|secret| cluster::issued(secret)).collect();
        let (name, issued) = redeemable(&issued, token, Timestamp::now()).map_err(refusal)?;
        let invitations = self.invitations.read();
        let invitation = invitations
            .get(&(String::new(), name.to_owned()))
            .filter(|invitation| invitation.metadata.deletion_timestamp.is_none())
            .ok_or_else(|| refusal(Unredeemable::Unknown))?;
        let peerings = self.peerings.read();
        if peerings.contains_key(&(String::new(), name.to_owned())) {
            return Err(other(
                "the inviting cluster already has a ClusterPeering of the invitation's name; delete it there",
            ));
        }
        self.mark(&issued.secret, identity).await?;
        let spec = ClusterPeeringSpec {
            identity: Some(identity.to_string()),
            allowed_cidrs: invitation.spec.allowed_cidrs.clone(),
            allowed_namespaces: invitation.spec.allowed_namespaces.clone(),
            ..ClusterPeeringSpec::default()
        };
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let api: Api<ClusterPeering> = Api::all(self.client.clone());
        api.create(&params, &ClusterPeering::new(name, spec)).await.map_err(|error| {
            warn!(peering = name, %error, "the peering of a redeemed token could not be made");
            other("the inviting cluster could not make its ClusterPeering; ask there for a new invitation")
        })?;
        Ok(name.to_owned())
    }

    /// Marks the token as used. Two who come at once meet at the Secret's resource version.
    async fn mark(&self, secret: &str, identity: &ClusterIdentity) -> Result<(), Refused> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.system_namespace);
        let failed = |error: kube::Error| match error {
            kube::Error::Api(status) if status.code == 409 => refusal(Unredeemable::Used),
            error => {
                warn!(secret, %error, "a token could not be marked as used");
                other("the inviting cluster could not write; try again later")
            }
        };
        let now = api.get(secret).await.map_err(failed)?;
        if cluster::issued(&now).is_none_or(|(_, issued)| issued.redeemed_by.is_some()) {
            return Err(refusal(Unredeemable::Used));
        }
        let patch = json!({
            "metadata": {"resourceVersion": now.resource_version()},
            "data": {key::MANIFEST: null},
            "stringData": {key::REDEEMED_BY: identity.to_string()},
        });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        api.patch(secret, &params, &Patch::Merge(&patch)).await.map_err(failed)?;
        Ok(())
    }
}

fn refusal(why: Unredeemable) -> Refused {
    let (reason, message) = match why {
        Unredeemable::Unknown => {
            (RefusedReason::TokenUnknown, "no invitation has this token; ask for a new invitation")
        }
        Unredeemable::Used => {
            (RefusedReason::TokenUsed, "the token was used before; ask for a new invitation")
        }
        Unredeemable::Expired => {
            (RefusedReason::TokenExpired, "the token has expired; ask for a new invitation")
        }
    };
    Refused { reason, message: message.to_owned() }
}

fn other(message: &str) -> Refused {
    Refused { reason: RefusedReason::Other, message: message.to_owned() }
}
