// SPDX-License-Identifier: Apache-2.0
//! Wrong objects are refused by the API server, with the way out.

use isthmus_e2e::{EAST, apply, duo};

/// Each with a fragment that the refusal must hold.
const WRONG: [(&str, &str, &str); 6] = [
    (
        "a pool without a prefix",
        "kind: IPPool\nmetadata: {name: wrong}\nspec: {cidr: 10.1.0.0}",
        "must be a network in CIDR notation",
    ),
    (
        "a pool with host bits",
        "kind: IPPool\nmetadata: {name: wrong}\nspec: {cidr: 10.1.0.1/16}",
        "write the network's first address",
    ),
    (
        "an identity that is no hash",
        "kind: ClusterPeering\nmetadata: {name: wrong}\nspec: {identity: west}",
        "64 hexadecimal digits",
    ),
    (
        "a grant that is a wildcard",
        "kind: ClusterPeering\nmetadata: {name: wrong}\nspec: {allowedNamespaces: ['*']}",
        "there are no wildcards",
    ),
    (
        "a time that is no duration",
        "kind: PeeringInvitation\nmetadata: {name: wrong}\nspec: {ttl: soon}",
        "must be a duration such as 15m",
    ),
    (
        "an egress policy with a destination of another family",
        "kind: EgressPolicy\nmetadata: {name: wrong}\nspec: {destinationCIDRs: ['2001:db8::/32'], gatewaySelector: {matchLabels: {a: b}}, egressIPs: [192.0.2.1]}",
        "without an egress address of its family",
    ),
];

#[test]
fn wrong_objects_are_refused_by_the_api_server_with_a_message_that_says_what_to_do() {
    let Some(_duo) = duo() else { return };
    for (what, manifest, fragment) in WRONG {
        let manifest = format!("apiVersion: isthmus.dev/v1alpha1\n{manifest}");
        match apply(EAST, &manifest) {
            Ok(answer) => panic!("{what} was accepted: {answer}"),
            Err(error) => assert!(format!("{error:#}").contains(fragment), "{what}: {error:#}"),
        }
    }
}
