// SPDX-License-Identifier: Apache-2.0
//! Gateways with more than one lane: flows spread over all, and whatever ends or is exchanged, each lane goes on as a single one would.

// Shared by whoever tests with two namespaces; not every test needs all of it.
#[allow(dead_code, unreachable_pub)]
mod lab;

use std::time::Duration;

use lab::agents::{Agents, all_up, rotates, survives_in_each_phase};
use lab::flows::{
    EAST_TO_WEST, all_flows, both_ways, carries_on_every_tunnel, nothing_is_lost, one_for_each_device,
    settled,
};
use lab::pinger::{a_while, replace_worker, say};
use lab::{Side, with_lanes, with_so_many, within};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn each_lane_of_two_has_a_tunnel_and_a_port_and_carries_flows_both_ways() {
    let Some(mut pair) = with_lanes("two and two", [2, 2]) else { return };
    carries_on_every_tunnel(&mut Agents::new(&mut pair), 2);
    for side in [&pair.east, &pair.west] {
        assert_eq!(ports(side), ["51820", "51822"]);
    }
}

#[test]
fn the_side_with_one_lane_has_a_tunnel_to_each_of_the_other_over_its_one_port() {
    let Some(mut pair) = with_lanes("three and one", [3, 1]) else { return };
    carries_on_every_tunnel(&mut Agents::new(&mut pair), 3);
    assert_eq!(ports(&pair.east), ["51820", "51822", "51823"]);
    assert_eq!(ports(&pair.west), ["51820"]);
}

#[test]
fn a_worker_that_is_killed_is_back_in_every_lane_with_the_same_devices_and_ports() {
    let Some(mut pair) = with_lanes("lanes, crash", [2, 2]) else { return };
    let mut agents = Agents::new(&mut pair);
    settled(&mut agents, 2);
    let east = &agents.pair().east;
    let kept = || {
        east.run(
            r"ip -o link | grep iw- | cut -d: -f1,2; awk '$2 ~ /:CA6[CE]$/ { print $10 }' /proc/net/udp6",
        )
    };
    let before = kept();
    assert_eq!(before.lines().count(), 4, "two devices and two ports: {before}");
    let pings = one_for_each_device(east, EAST_TO_WEST);
    assert_eq!(pings.len(), 2);
    a_while(east);
    let killed = east.kill_worker();
    within(PATIENCE, "another worker", || east.workers().into_iter().find(|worker| *worker != killed));
    a_while(east);
    all_flows(east, EAST_TO_WEST, "-c 1");
    for (device, pings) in pings {
        let pinged = pings.stop();
        say(&format!("by {device}"), &pinged);
        assert!(pinged.longest_gap < Duration::from_secs(1), "{device}: {pinged:?}\n{}", east.log());
    }
    assert_eq!(kept(), before);
    agents.reconnect_east();
    let state = agents.pair().east.state();
    assert!(all_up(&state, 2), "nobody heard that a path was down: {state:#?}");
}

#[test]
fn workers_with_lanes_take_over_from_one_another_and_nothing_is_lost() {
    let Some(mut pair) = with_lanes("lanes, taken over", [2, 2]) else { return };
    let mut agents = Agents::new(&mut pair);
    settled(&mut agents, 2);
    let pings = both_ways(&mut agents);
    replace_worker(&agents.pair().east, 5);
    nothing_is_lost(&mut agents, pings);
    agents.reconnect_east();
    let state = agents.pair().east.state();
    assert!(all_up(&state, 2), "{state:#?}");
}

#[test]
fn a_worker_with_fewer_lanes_carries_those_of_the_one_before_until_the_agent_wants_others() {
    let Some(mut pair) = with_lanes("fewer lanes", [3, 2]) else { return };
    let mut agents = Agents::new(&mut pair);
    let before = settled(&mut agents, 3);
    let pings = both_ways(&mut agents);
    let east = &mut agents.pair().east;
    east.encrypts = with_so_many(1);
    let left = east.start_beside();
    within(PATIENCE, "the new one works and the one before does not", || {
        (east.workers().len() == 1 && left.workers().is_empty()).then_some(())
    });
    a_while(east);
    nothing_is_lost(&mut agents, pings);
    assert!(left.end().success());
    agents.pair().east.hang_up();
    agents.pair().east.connect(false);
    let told = agents.pair().east.state();
    assert_eq!(
        (told.lanes.len(), &told.lanes[..]),
        (1, &before.lanes[..1]),
        "the first lane's key is the same"
    );
    assert_eq!(told.tunnels.keys().collect::<Vec<_>>(), before.tunnels.keys().collect::<Vec<_>>());
    agents.reconnect_east();
    carries_on_every_tunnel(&mut agents, 2);
    agents.pair().east.eventually("ip -o link | grep -c iw-", |count| count.trim() == "2");
}

#[test]
fn a_key_rotates_in_every_lane_without_a_packet_lost() {
    if let Some(mut pair) = with_lanes("lanes, rotation", [2, 2]) {
        rotates(&mut pair, 2);
    }
}

#[test]
fn a_rotation_with_lanes_survives_the_process_in_each_of_its_phases() {
    if let Some(mut pair) = with_lanes("lanes, rotation, killed", [2, 1]) {
        survives_in_each_phase(&mut pair);
    }
}

/// UDP ports of the range of tunnels that are open, but for that of the probes.
fn ports(side: &Side) -> Vec<String> {
    let open = side.run("awk 'NR > 1 { print $2 }' /proc/net/udp6 | cut -d: -f2");
    let numbers = open.lines().filter_map(|port| u16::from_str_radix(port, 16).ok());
    let mut numbers: Vec<u16> =
        numbers.filter(|port| (51820..51830).contains(port) && *port != 51821).collect();
    numbers.sort_unstable();
    numbers.iter().map(ToString::to_string).collect()
}
