// SPDX-License-Identifier: Apache-2.0
//! `isthmus peer`: invite, list, delete.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use isthmus_api::condition::{READY, STALLED};
use isthmus_api::v1alpha1::{ClusterPeering, PeeringInvitation, PeeringInvitationSpec};
use isthmus_model::ids::PeerName;
use isthmus_model::ownership::SYSTEM_NAMESPACE;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::args::{Invite, Manifest, Output};
use crate::out::{put, say};
use crate::report::condition;
use crate::{failure, table, yaml};

/// Field manager of what this program writes.
const FIELD_MANAGER: &str = "isthmus-cli";
/// How long the operator may take to write the manifest.
const INVITATION_TIMEOUT: Duration = Duration::from_secs(60);

/// Creates the invitation, waits for its manifest and prints it; hints go to stderr. Returns the exit code.
pub(crate) async fn invite(client: Client, wanted: &Invite) -> Result<u8> {
    let invitations: Api<PeeringInvitation> = Api::all(client.clone());
    let name = wanted.name.as_str();
    clear_the_way(&invitations, name, wanted.renew).await?;
    let tried = format!("invite {name}");
    let object = PeeringInvitation::new(name, spec(wanted));
    invitations
        .patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&object))
        .await
        .map_err(|error| failure::explain(error, &tried))?;
    let waiting = await_condition(invitations.clone(), name, answered);
    let Ok(answer) = tokio::time::timeout(INVITATION_TIMEOUT, waiting).await else {
        eprintln!(
            "isthmus: the operator did not answer the invitation {name} within {} s.",
            INVITATION_TIMEOUT.as_secs()
        );
        eprintln!(
            "Look at it: kubectl -n {SYSTEM_NAMESPACE} get pods; kubectl describe peeringinvitation {name}"
        );
        return Ok(crate::NOT_READY);
    };
    let invitation = answer
        .context("watch the invitation")?
        .with_context(|| format!("the invitation {name} was deleted"))?;
    let status = invitation.status.clone().unwrap_or_default();
    if let Some(stalled) = condition(&status.conditions, STALLED).filter(|stalled| stalled.status == "True") {
        eprintln!(
            "isthmus: the operator cannot make the invitation {name}: {}: {}",
            stalled.reason, stalled.message
        );
        return Ok(crate::NOT_READY);
    }
    let secret = status
        .manifest_secret
        .context("the invitation is ready but names no manifest Secret; update the operator")?;
    put!("{}", rendered(&manifest(client, &secret).await?, wanted.output)?);
    hint(wanted, status.expires_at.as_deref());
    Ok(crate::OK)
}

/// An invitation of this name that is used up must be taken away first: its token cannot be redeemed again.
async fn clear_the_way(invitations: &Api<PeeringInvitation>, name: &str, renew: bool) -> Result<()> {
    let found = match invitations.get_opt(name).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(()),
        Err(error) => return Err(failure::explain(error, &format!("look for an invitation {name}"))),
    };
    let Some(end) = spent(&found) else { return Ok(()) };
    if !renew {
        bail!("the invitation {name} was already {end}; to make a new one, give --renew");
    }
    // The uid guards against deleting an invitation that somebody else renewed meanwhile.
    let params = DeleteParams {
        preconditions: found
            .uid()
            .map(|uid| kube::api::Preconditions { uid: Some(uid), resource_version: None }),
        ..DeleteParams::default()
    };
    invitations
        .delete(name, &params)
        .await
        .map_err(|error| failure::explain(error, &format!("renew the invitation {name}")))?;
    let gone =
        await_condition(invitations.clone(), name, |object: Option<&PeeringInvitation>| object.is_none());
    tokio::time::timeout(INVITATION_TIMEOUT, gone)
        .await
        .context("the spent invitation is not going away")??;
    Ok(())
}

fn spec(wanted: &Invite) -> PeeringInvitationSpec {
    PeeringInvitationSpec {
        ttl: wanted.ttl.clone(),
        endpoints: wanted.endpoints.clone(),
        allowed_cidrs: wanted.allow_cidrs.clone(),
        allowed_namespaces: wanted.allow_namespaces.clone(),
    }
}

/// `redeemed` or `expired`, if the invitation's token is of no use any more.
fn spent(invitation: &PeeringInvitation) -> Option<&'static str> {
    let conditions =
        invitation.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let holds = |kind: &str| condition(conditions, kind).is_some_and(|condition| condition.status == "True");
    [("Redeemed", "redeemed"), ("Expired", "expired")]
        .into_iter()
        .find(|(kind, _)| holds(kind))
        .map(|(_, word)| word)
}

/// Whether the operator has answered this generation of the invitation, with a manifest or with a refusal.
fn answered(invitation: Option<&PeeringInvitation>) -> bool {
    let Some(invitation) = invitation else { return true };
    let generation = invitation.metadata.generation;
    let conditions =
        invitation.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let is_true = |kind: &str| {
        let current = |found: &&Condition| {
            found.status == "True" && found.observed_generation.is_none_or(|seen| Some(seen) == generation)
        };
        condition(conditions, kind).filter(current).is_some()
    };
    is_true(READY) || is_true(STALLED)
}

async fn manifest(client: Client, secret: &str) -> Result<String> {
    let secrets: Api<Secret> = Api::namespaced(client, SYSTEM_NAMESPACE);
    let found = secrets.get(secret).await.map_err(|error| {
        failure::explain(error, &format!("read the manifest in Secret {SYSTEM_NAMESPACE}/{secret}"))
    })?;
    let bytes = found.data.and_then(|mut data| data.remove("manifest.yaml"));
    let bytes =
        bytes.with_context(|| format!("Secret {SYSTEM_NAMESPACE}/{secret} has no key manifest.yaml"))?;
    String::from_utf8(bytes.0).context("the manifest is not text")
}

fn rendered(manifest: &str, output: Manifest) -> Result<String> {
    Ok(match output {
        Manifest::Yaml => format!("{}\n", manifest.trim_end()),
        Manifest::Json => {
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": yaml::documents(manifest)? });
            format!("{}\n", serde_json::to_string_pretty(&list)?)
        }
    })
}

fn hint(wanted: &Invite, expires_at: Option<&str>) {
    let until = expires_at.map(|time| format!(" before {time}")).unwrap_or_default();
    eprintln!("Apply this manifest in the invited cluster{until}: kubectl --context <other> apply -f -");
    eprintln!("It holds a single-use token; who applies it first becomes the peer {}.", wanted.name);
    if wanted.allow_cidrs.is_empty() {
        eprintln!(
            "Note: without --allow-cidr the peer may announce no pod addresses here; add them to ClusterPeering {} later.",
            wanted.name
        );
    }
    if wanted.allow_namespaces.is_empty() {
        eprintln!(
            "Note: without --allow-namespace the peer may share no services; add them to ClusterPeering {} later.",
            wanted.name
        );
    }
}

/// Prints the peerings and the invitations that are still open.
pub(crate) async fn list(client: Client, output: Output) -> Result<()> {
    let every = ListParams::default();
    let peerings = Api::<ClusterPeering>::all(client.clone()).list(&every).await;
    let peerings = peerings.map_err(|error| failure::explain(error, "list the peerings"))?.items;
    let invitations = Api::<PeeringInvitation>::all(client).list(&every).await;
    let invitations = invitations.map_err(|error| failure::explain(error, "list the invitations"))?.items;
    let objects = json!({ "apiVersion": "v1", "kind": "List", "items": peerings.iter().map(|p| json!(p)).chain(invitations.iter().map(|i| json!(i))).collect::<Vec<_>>() });
    match output {
        Output::Json => say!("{}", serde_json::to_string_pretty(&objects)?),
        Output::Yaml => put!("{}", yaml::print(&objects)?),
        Output::Table => put!("{}", listing(&peerings, &invitations)),
    }
    Ok(())
}

fn listing(peerings: &[ClusterPeering], invitations: &[PeeringInvitation]) -> String {
    let mut rows = Vec::new();
    for peering in peerings {
        let status = peering.status.clone().unwrap_or_default();
        let (state, reason) = verdict(&status.conditions);
        let cluster = status.cluster_id.unwrap_or_else(|| "-".to_owned());
        rows.push(vec![peering.name_any(), "peering".to_owned(), state, cluster, reason]);
    }
    for invitation in invitations {
        let status = invitation.status.clone().unwrap_or_default();
        let state =
            spent(invitation).unwrap_or(if status.manifest_secret.is_some() { "open" } else { "pending" });
        let until = status.expires_at.map(|time| format!("expires {time}")).unwrap_or_default();
        let about = if state == "open" { until } else { String::new() };
        rows.push(vec![
            invitation.name_any(),
            "invitation".to_owned(),
            state.to_owned(),
            "-".to_owned(),
            about,
        ]);
    }
    if rows.is_empty() {
        return "No peerings. Invite a cluster: isthmus peer invite NAME --allow-cidr CIDR --allow-namespace NAMESPACE\n".to_owned();
    }
    table::render(&["NAME", "KIND", "STATE", "CLUSTER", "ABOUT"], &rows)
}

fn verdict(conditions: &[Condition]) -> (String, String) {
    match condition(conditions, READY) {
        Some(ready) if ready.status == "True" => ("ready".to_owned(), String::new()),
        Some(ready) => ("not ready".to_owned(), format!("{}: {}", ready.reason, ready.message)),
        None => ("pending".to_owned(), "the operator has not looked at it yet".to_owned()),
    }
}

/// Deletes the peering of this name and the invitation that it came from.
pub(crate) async fn delete(client: Client, name: &PeerName) -> Result<()> {
    let name = name.as_str();
    let mut removed = Vec::new();
    let peerings: Api<ClusterPeering> = Api::all(client.clone());
    // The invitation goes first: an open one could otherwise bring the peering back.
    let invitations: Api<PeeringInvitation> = Api::all(client);
    match invitations.delete(name, &DeleteParams::default()).await {
        Ok(_) => removed.push("invitation"),
        Err(error) if failure::is_absent(&error) => {}
        Err(error) => return Err(failure::explain(error, &format!("delete the invitation {name}"))),
    }
    match peerings.delete(name, &DeleteParams::default()).await {
        Ok(_) => removed.push("peering"),
        Err(error) if failure::is_absent(&error) => {}
        Err(error) => return Err(failure::explain(error, &format!("delete the peering {name}"))),
    }
    if removed.is_empty() {
        bail!("there is no peering or invitation {name}; `isthmus peer list` shows what there is");
    }
    say!("{} {name} deleted", removed.join(" and "));
    eprintln!("The other cluster keeps its own ClusterPeering; delete it there as well.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_api::condition::{Wanted, set};
    use isthmus_api::v1alpha1::{ClusterPeeringSpec, PeeringInvitationStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn invitation(generation: i64, kind: &'static str, seen: i64) -> PeeringInvitation {
        let mut object = PeeringInvitation::new("west", PeeringInvitationSpec::default());
        object.metadata.generation = Some(generation);
        let mut status = PeeringInvitationStatus::default();
        let wanted = Wanted { kind, status: Some(true), reason: "Because", message: "it is".to_owned() };
        set(&mut status.conditions, &wanted, Some(seen), &Time(jiff::Timestamp::UNIX_EPOCH));
        object.status = Some(status);
        object
    }

    #[test]
    fn an_answer_to_an_older_generation_is_waited_past() {
        assert!(answered(Some(&invitation(2, READY, 2))));
        assert!(!answered(Some(&invitation(2, READY, 1))));
        assert!(!answered(Some(&PeeringInvitation::new("west", PeeringInvitationSpec::default()))));
    }

    #[test]
    fn a_refusal_by_the_operator_ends_the_waiting() {
        assert!(answered(Some(&invitation(1, STALLED, 1))));
        assert!(answered(None), "deleted by somebody");
    }

    #[test]
    fn a_redeemed_or_expired_invitation_is_spent() {
        assert_eq!(spent(&invitation(1, "Redeemed", 1)), Some("redeemed"));
        assert_eq!(spent(&invitation(1, "Expired", 1)), Some("expired"));
        assert_eq!(spent(&invitation(1, READY, 1)), None);
    }

    #[test]
    fn a_manifest_as_json_is_one_list_that_kubectl_applies() {
        let text = rendered("kind: ClusterPeering\n---\nkind: Secret\n", Manifest::Json).unwrap();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();

        assert_eq!(list["kind"], "List");
        assert_eq!(list["items"][1]["kind"], "Secret");
    }

    #[test]
    fn the_listing_names_what_each_peering_waits_for() {
        let peerings = [ClusterPeering::new("west", ClusterPeeringSpec::default())];
        let invitations = [invitation(1, "Expired", 1)];

        assert_eq!(
            listing(&peerings, &invitations),
            "NAME  KIND        STATE    CLUSTER  ABOUT\n\
             west  peering     pending  -        the operator has not looked at it yet\n\
             west  invitation  expired  -\n"
        );
    }
}
