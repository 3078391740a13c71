// SPDX-License-Identifier: Apache-2.0
//! The cluster's ID in its clusterset (KEP-2149): an alias, never an identity.

use isthmus_api::about::{CLUSTER_ID, ClusterProperty, ClusterPropertySpec};
use isthmus_model::ids::ClusterId;
use sha2::{Digest, Sha256};

use crate::plan::Plan;
use crate::snapshot::{ClusterFacts, Problem, Snapshot};

/// The cluster's ID: what the ClusterProperty says, else what the installation asks for, else one derived from
/// the UID of kube-system, which no two clusters share.
///
/// # Errors
/// The ClusterProperty (or the installation's wish) is not an RFC 1123 label.
pub fn cluster_id(facts: &ClusterFacts) -> Result<ClusterId, Problem> {
    let given = facts.property.as_ref().or(facts.wished_id.as_ref());
    let text = given.cloned().unwrap_or_else(|| derived(&facts.system_uid));
    text.parse().map_err(|error| Problem {
        reason: "InvalidClusterID",
        message: format!("{error}; set ClusterProperty {CLUSTER_ID} to one"),
    })
}

fn derived(system_uid: &str) -> String {
    let digest = Sha256::digest(system_uid.as_bytes());
    format!("cluster-{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2])
}

/// Writes the ClusterProperty where there is none; one that exists is the user's.
pub(crate) fn plan(snapshot: &Snapshot, plan: &mut Plan) {
    if snapshot.cluster.property.is_some() {
        return;
    }
    if let Ok(id) = cluster_id(&snapshot.cluster) {
        plan.ensure(&ClusterProperty::new(CLUSTER_ID, ClusterPropertySpec { value: id.into() }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_property_outweighs_what_the_installation_asks_for() {
        let facts = ClusterFacts {
            property: Some("east".to_owned()),
            wished_id: Some("west".to_owned()),
            system_uid: "u".to_owned(),
            ..ClusterFacts::default()
        };
        assert_eq!(cluster_id(&facts).unwrap().as_str(), "east");
        assert!(crate::plan(&Snapshot { cluster: facts, ..Snapshot::default() }).ensure.is_empty());
    }

    #[test]
    fn a_cluster_that_nobody_named_gets_a_short_name_of_its_own() {
        let facts = ClusterFacts { system_uid: "6f1c".to_owned(), ..ClusterFacts::default() };
        let id = cluster_id(&facts).unwrap();
        assert!(id.as_str().starts_with("cluster-"), "{id}");
        assert_eq!(id, cluster_id(&facts).unwrap());
        assert_eq!(crate::plan(&Snapshot { cluster: facts, ..Snapshot::default() }).ensure.len(), 1);
    }

    #[test]
    fn an_id_that_is_no_label_is_refused_with_the_rule() {
        let facts = ClusterFacts { property: Some("East.1".to_owned()), ..ClusterFacts::default() };
        assert!(cluster_id(&facts).unwrap_err().message.contains("RFC 1123"));
    }
}
