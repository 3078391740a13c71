// SPDX-License-Identifier: Apache-2.0
//! What can be read between the clusters.

use isthmus_e2e::{Capture, EAST, WEST, other, peered, pod};

const BETWEEN_NODES: &str = "cave-canem-within-the-cluster";
const BETWEEN_CLUSTERS: &str = "cave-canem-between-the-clusters";

#[test]
fn nothing_of_what_pods_say_can_be_read_between_the_clusters() {
    let Some(_duo) = peered() else { return };
    let capture = Capture::start("wire");
    for cluster in [EAST, WEST] {
        for address in pod(cluster, "three").addresses() {
            let said = pod(cluster, "one")
                .get(address, &format!("/echo?msg={BETWEEN_NODES}"))
                .expect("an answer within the cluster");
            assert_eq!(said, BETWEEN_NODES);
        }
        for (from, to) in [("one", "one"), ("one", "three"), ("three", "three")] {
            for address in pod(other(cluster), to).addresses() {
                let said = pod(cluster, from)
                    .get(address, &format!("/echo?msg={BETWEEN_CLUSTERS}"))
                    .expect("an answer between the clusters");
                assert_eq!(said, BETWEEN_CLUSTERS);
            }
        }
    }

    // The capture reads what is in the clear: what nodes of one cluster say to each other.
    capture.sees(BETWEEN_NODES);
    assert!(
        !capture.holds(BETWEEN_CLUSTERS),
        "the words of pods can be read on the wire between the clusters"
    );
    // WireGuard's message type 4: data.
    let data = capture.count("udp port 51820 and udp[8:4] = 0x04000000");
    assert!(data >= 24, "only {data} WireGuard data packets were seen");
}
