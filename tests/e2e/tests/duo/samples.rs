// SPDX-License-Identifier: Apache-2.0
//! Wrong objects are refused by the API server, with the way out.

use isthmus_e2e::{EAST, apply, duo};

/// Each with a fragment that the refusal must hold.
const WRONG: [(&str, &str, &str); 5] = [
    (
        "a pool that is no CIDR",
        "apiVersion: isthmus.dev/v1alpha1\nkind: IPPool\nmetadata: {name: wrong}\nspec: {cidr: 10.1.0.0}",
        "CIDR",
    ),
    (
        "a pool with host bits",
        "apiVersion: isthmus.dev/v1alpha1\nkind: IPPool\nmetadata: {name: wrong}\nspec: {cidr: 10.1.0.1/16}",
        "cidr",
    ),
    (
        "an identity that is no hash",
        "apiVersion: isthmus.dev/v1alpha1\nkind: ClusterPeering\nmetadata: {name: wrong}\nspec: {identity: west}",
        "identity",
    ),
    (
        "a time that is no duration",
        "apiVersion: isthmus.dev/v1alpha1\nkind: PeeringInvitation\nmetadata: {name: wrong}\nspec: {ttl: soon}",
        "ttl",
    ),
    (
        "an egress policy without an address",
        "apiVersion: isthmus.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: wrong}\nspec: {destinationCIDRs: [203.0.113.0/24], gatewaySelector: {}, egressIPs: []}",
        "egressIPs",
    ),
];

#[test]
fn wrong_objects_are_refused_with_a_message_that_names_the_field() {
    let Some(_duo) = duo() else { return };
    for (what, manifest, fragment) in WRONG {
        match apply(EAST, manifest) {
            Ok(answer) => panic!("{what} was accepted: {answer}"),
            Err(error) => {
                let text = format!("{error:#}");
                assert!(
                    text.contains(fragment) && text.contains("invalid") || text.contains("Invalid"),
                    "{what}: {text}"
                );
            }
        }
    }
}
