// SPDX-License-Identifier: Apache-2.0
//! Peerings, invitations, and the Secrets that belong to them.

use isthmus_api::v1alpha1::{
    ClusterPeering, ClusterPeeringSpec, ClusterPeeringStatus, PeeringInvitation, PeeringInvitationSpec,
    PeeringInvitationStatus,
};
use isthmus_mesh::invitation::Token;
use isthmus_planner::invitations::{INVITATION_UID, key};
use isthmus_planner::{Invitation, Issued, Peering, Problem, Seen};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Secret;

use super::addresses::network;
use super::seen;

/// A token must live long enough to be carried over, and not much longer.
const TTL_LEAST: SignedDuration = SignedDuration::from_secs(1);
const TTL_MOST: SignedDuration = SignedDuration::from_hours(24);
/// Key of the Secret that `tokenSecretRef` names.
const TOKEN: &str = "token";

/// Takes a ClusterPeering.
pub fn peering(object: &ClusterPeering) -> Seen<Peering, ClusterPeeringStatus> {
    seen(&object.metadata, object.status.as_ref(), peering_wish(&object.spec))
}

fn peering_wish(spec: &ClusterPeeringSpec) -> Result<Peering, Problem> {
    let text = spec.identity.as_deref().unwrap_or_default();
    let identity = text.parse().map_err(|error| Problem {
        reason: "InvalidIdentity",
        message: format!("spec.identity: {error}; take it from the peer's invitation"),
    })?;
    let allowed_cidrs = spec.allowed_cidrs.iter().map(|cidr| network(cidr)).collect::<Result<_, _>>();
    Ok(Peering {
        identity,
        endpoints: spec.endpoints.clone(),
        token_secret: spec.token_secret_ref.as_ref().map(|secret| secret.name.clone()),
        allowed_cidrs: allowed_cidrs.map_err(|problem| Problem {
            message: format!("allowedCIDRs: {}", problem.message),
            ..problem
        })?,
        allowed_namespaces: spec.allowed_namespaces.iter().cloned().collect(),
    })
}

/// Takes a PeeringInvitation.
pub fn invitation(object: &PeeringInvitation) -> Seen<Invitation, PeeringInvitationStatus> {
    seen(&object.metadata, object.status.as_ref(), invitation_wish(&object.spec))
}

fn invitation_wish(spec: &PeeringInvitationSpec) -> Result<Invitation, Problem> {
    let wrong = |message| Problem { reason: "InvalidTTL", message };
    let ttl: SignedDuration = spec
        .ttl
        .parse()
        .map_err(|_| wrong(format!("ttl: {:?} is not a duration such as 15m or 1h30m", spec.ttl)))?;
    if !(TTL_LEAST..=TTL_MOST).contains(&ttl) {
        return Err(wrong(format!("ttl: {:?} is not between 1s and 24h", spec.ttl)));
    }
    Ok(Invitation {
        ttl,
        endpoints: spec.endpoints.clone(),
        allowed_namespaces: spec.allowed_namespaces.clone(),
    })
}

/// Takes the Secret of an invitation, with the invitation's name; none if it is another Secret.
pub fn issued(object: &Secret) -> Option<(String, Issued)> {
    let owner =
        object.metadata.owner_references.as_ref()?.iter().find(|one| one.kind == "PeeringInvitation")?;
    let annotations = object.metadata.annotations.as_ref()?;
    let issued = Issued {
        secret: object.metadata.name.clone()?,
        uid: object.metadata.uid.clone().unwrap_or_default(),
        invitation_uid: annotations.get(INVITATION_UID)?.clone(),
        hash: text(object, key::HASH)?.parse().ok()?,
        expires_at: text(object, key::EXPIRES_AT)?.parse().ok()?,
        redeemed_by: text(object, key::REDEEMED_BY).map(str::to_owned),
        has_manifest: text(object, key::MANIFEST).is_some(),
    };
    Some((owner.name.clone(), issued))
}

/// The token in a Secret that a `tokenSecretRef` names.
pub fn token(object: &Secret) -> Option<Token> {
    text(object, TOKEN)?.parse().ok()
}

fn text<'a>(object: &'a Secret, key: &str) -> Option<&'a str> {
    std::str::from_utf8(&object.data.as_ref()?.get(key)?.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them_and_bounded() {
        let ttl = |text: &str| {
            let spec = PeeringInvitationSpec { ttl: text.to_owned(), ..PeeringInvitationSpec::default() };
            invitation_wish(&spec).map(|invitation| invitation.ttl.as_secs())
        };
        assert_eq!(ttl("15m"), Ok(900));
        assert_eq!(ttl("1h30m"), Ok(5400));
        assert!(ttl("15").unwrap_err().message.contains("such as 15m"));
        assert!(ttl("48h").unwrap_err().message.contains("24h"));
    }

    #[test]
    fn a_peering_names_the_field_that_is_wrong() {
        let identity = Some("ab".repeat(32));
        let spec = ClusterPeeringSpec {
            identity: identity.clone(),
            allowed_cidrs: vec!["10.2.0.1/16".to_owned()],
            ..ClusterPeeringSpec::default()
        };
        assert!(peering_wish(&spec).unwrap_err().message.starts_with("allowedCIDRs: "));
        let spec = ClusterPeeringSpec { identity: None, ..ClusterPeeringSpec::default() };
        assert_eq!(peering_wish(&spec).unwrap_err().reason, "InvalidIdentity");
        let spec = ClusterPeeringSpec { identity, ..ClusterPeeringSpec::default() };
        assert!(peering_wish(&spec).is_ok());
    }
}
