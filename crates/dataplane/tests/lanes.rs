// SPDX-License-Identifier: Apache-2.0
//! Gateways with more than one lane: flows spread over all, and whatever ends or is exchanged, each lane goes on as a single one would.

// Shared by whoever tests with two namespaces; not every test needs all of it.
#[allow(dead_code, unreachable_pub)]
mod lab;

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_model::dataplane::DataplaneState;
use isthmus_model::ids::LinkName;
use lab::agents::{Agents, all_up, rotates, survives_in_each_phase};
use lab::pinger::{Pinger, a_while, pinger, replace_worker, say};
use lab::{FLOWS, Side, with_lanes, with_so_many, within};

const PATIENCE: Duration = Duration::from_secs(30);
/// How addresses begin: those of the side that pings, and those that it pings. None is one that a single tunnel leads to.
const EAST_TO_WEST: [&str; 2] = ["10.1.0.", "10.2.0."];
const WEST_TO_EAST: [&str; 2] = ["10.2.0.", "10.1.0."];
const SIX: [&str; 2] = ["fd01::", "fd02::"];

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

/// All tunnels are up and their sizes known, on both sides; east's state.
fn settled(agents: &mut Agents<'_>, tunnels: usize) -> DataplaneState {
    let known = |state: &DataplaneState| {
        all_up(state, tunnels) && state.probes.values().all(|probe| probe.path_mtu.is_some())
    };
    let [east, _] =
        agents.until("every tunnel is up and its size known", |east, west| known(east) && known(west));
    let pair = agents.pair();
    for side in [&pair.east, &pair.west] {
        // A device holds five hundred packets: a machine that is busy with other things would lose some without us.
        side.run("for d in $(ip -o link | grep -o 'iw-[0-9a-f]*'); do ip link set $d txqueuelen 20000; done");
    }
    east
}

/// Flows to many addresses: each tunnel carries some, there and back.
fn carries_on_every_tunnel(agents: &mut Agents<'_>, tunnels: usize) {
    settled(agents, tunnels);
    let bytes = |state: &DataplaneState| -> BTreeMap<LinkName, (u64, u64)> {
        let counted = state.tunnels.iter();
        counted.map(|(name, tunnel)| (name.clone(), (tunnel.sent_bytes, tunnel.received_bytes))).collect()
    };
    let before = bytes(&agents.pair().east.state());
    for ends in [EAST_TO_WEST, SIX] {
        // At once: after its last one, ping(8) waits for the interval only.
        all_flows(&agents.pair().east, ends, "-c 20 -l 20 -i 2 -s 1000");
    }
    // Of 96 flows of 20 packets; probes come to some 5 KB a second.
    let enough =
        |before: &(u64, u64), now: &(u64, u64)| now.0 > before.0 + 200_000 && now.1 > before.1 + 200_000;
    agents.pair().east.until("every tunnel has carried flows both ways", |state| {
        let now = bytes(state);
        now.len() == tunnels && before.iter().all(|(name, before)| enough(before, &now[name]))
    });
}

/// Pings between all addresses that begin so, at once. All are answered.
fn all_flows(side: &Side, [from, to]: [&str; 2], how: &str) {
    let ping = format!("ping -q {how} -W 10 -I {from}$n {to}$n");
    let printed = side.run(&format!("for n in $(seq 1 {FLOWS}); do {ping} & done; wait"));
    let whole = printed.matches(" 0% packet loss").count();
    assert_eq!(whole, usize::from(FLOWS), "{printed}\n{}", side.log());
}

/// A thousand pings a second by each tunnel of the side.
fn one_for_each_device(side: &Side, [from, to]: [&str; 2]) -> BTreeMap<String, Pinger> {
    let all = sent_by(side).len();
    let mut chosen = BTreeMap::new();
    for number in 1..=FLOWS {
        let before = sent_by(side);
        side.run(&format!("ping -q -c 20 -i 0.002 -s 1000 -W 10 -I {from}{number} {to}{number}"));
        let grown = sent_by(side).into_iter().map(|(device, bytes)| (bytes - before[&device], device));
        let (bytes, device) = grown.max().expect("a device");
        assert!(bytes >= 20_000, "no device has sent 20 pings to {to}{number}");
        chosen.entry(device).or_insert(number);
        if chosen.len() == all {
            break;
        }
    }
    assert_eq!(chosen.len(), all, "some device has no flow of {FLOWS}: {chosen:?}");
    chosen
        .into_iter()
        .map(|(device, number)| (device, pinger(side, &format!("-I {from}{number} {to}{number}"))))
        .collect()
}

/// Bytes that each tunnel device was given to send.
fn sent_by(side: &Side) -> BTreeMap<String, u64> {
    let device = |line: &str| {
        let (name, counters) = line.trim().split_once(':')?;
        let sent = counters.split_whitespace().nth(8)?.parse().ok()?;
        name.starts_with("iw-").then(|| (name.to_owned(), sent))
    };
    side.run("cat /proc/net/dev").lines().filter_map(device).collect()
}

fn both_ways(agents: &mut Agents<'_>) -> Vec<(String, Pinger)> {
    let pair = agents.pair();
    let there = one_for_each_device(&pair.east, EAST_TO_WEST).into_iter();
    let back = one_for_each_device(&pair.west, WEST_TO_EAST).into_iter();
    let named = there.map(|(device, pings)| (format!("from east by {device}"), pings));
    named.chain(back.map(|(device, pings)| (format!("from west by {device}"), pings))).collect()
}

fn nothing_is_lost(agents: &mut Agents<'_>, pings: Vec<(String, Pinger)>) {
    for (what, pings) in pings {
        let pinged = pings.stop();
        say(&what, &pinged);
        assert_eq!(pinged.lost, 0, "{what}: {pinged:?}\n{}", agents.pair().east.log());
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
