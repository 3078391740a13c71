// SPDX-License-Identifier: Apache-2.0
//! Keys change, traffic flows.

use std::time::Duration;

use isthmus_e2e::{EAST, Flow, WEST, json, kubectl, peered, pod, within};

/// Tunnels with the new key come up on both sides and are used for ten seconds before the old ones are left.
const ROTATION: Duration = Duration::from_secs(90);

#[test]
fn a_gateways_key_rotates_on_request_and_no_packet_is_lost() {
    let Some(duo) = peered() else { return };
    let gateway = json(EAST, &["clusterpeering", WEST]).expect("the peering")["status"]["localGateways"][0]
        .as_str()
        .expect("a gateway of east")
        .to_owned();
    let network = json(EAST, &["nodenetwork", &gateway]).expect("the gateway's network");
    let before = network["status"]["publicKey"].as_str().expect("its key").to_owned();
    let generation = network["spec"]["keyGeneration"].as_i64().unwrap_or(0) + 1;
    let (from, to) = (pod(EAST, "one"), pod(WEST, "three"));
    let flows = [Flow::start(&from, &to.ipv4), Flow::start(&from, &to.ipv6)];

    let patch = format!(r#"{{"spec":{{"keyGeneration":{generation}}}}}"#);
    kubectl(EAST, &["patch", "nodenetwork", &gateway, "--type=merge", "-p", &patch]).expect("the request");

    let after = within(ROTATION, || {
        let network = json(EAST, &["nodenetwork", &gateway]).map_err(|error| format!("{error:#}"))?;
        let key = network["status"]["publicKey"].as_str().unwrap_or_default().to_owned();
        let followed = network["status"]["keyGeneration"].as_i64() == Some(generation) && key != before;
        if followed { Ok(key) } else { Err(format!("{gateway} still has {}", network["status"])) }
    });
    within(ROTATION, || {
        let peering = json(WEST, &["clusterpeering", EAST]).map_err(|error| format!("{error:#}"))?;
        let gateways = peering["status"]["remoteGateways"].to_string();
        let moved = gateways.contains(&after) && !gateways.contains(&before);
        if moved { Ok(()) } else { Err(format!("west has {gateways}, not {after} in place of {before}")) }
    });
    duo.condition(EAST, "TunnelsUp", "True", ROTATION);
    duo.condition(WEST, "TunnelsUp", "True", ROTATION);
    for tally in flows.map(Flow::stop) {
        tally.nothing_lost();
    }
}
