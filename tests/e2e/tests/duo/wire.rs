// SPDX-License-Identifier: Apache-2.0
//! What can be read between the clusters.

use isthmus_e2e::{Capture, EAST, WEST, on_node, other, peered, pod};

const CANARY: &str = "cave-canem-says-the-pod";
const CONTROL: &str = "cave-canem-says-the-node";

#[test]
fn nothing_of_what_pods_say_can_be_read_between_the_clusters() {
    let Some(_duo) = peered() else { return };
    let capture = Capture::between_clusters("wire");
    for cluster in [EAST, WEST] {
        for (from, to) in [("one", "one"), ("one", "three"), ("three", "three")] {
            for address in pod(other(cluster), to).addresses() {
                let said = pod(cluster, from).get(address, &format!("/echo?msg={CANARY}"));
                assert_eq!(said.expect("an answer between the clusters"), CANARY);
            }
        }
    }
    // What a node says in the clear to a node of the other cluster is in the capture.
    let west = on_node("west-worker", "hostname -I", &[]).expect("addresses");
    let west = west.split_whitespace().next().expect("an address");
    on_node("east-worker", "echo $2 > /dev/udp/$1/9", &[west, CONTROL]).expect("a datagram in the clear");

    capture.sees(CONTROL);
    assert!(!capture.holds(CANARY), "the words of pods can be read on the wire between the clusters");
    // WireGuard's message type 4: data; whichever lanes it takes. Each request is several packets each way.
    let data = capture.count("udp portrange 51820-51828 and udp[8:4] = 0x04000000");
    assert!(data >= 48, "only {data} WireGuard data packets were seen");
}
