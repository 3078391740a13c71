// SPDX-License-Identifier: Apache-2.0
//! Flows between many addresses, which spread over all tunnels of two gateways.

use std::collections::BTreeMap;

use isthmus_model::dataplane::DataplaneState;
use isthmus_model::ids::LinkName;

use super::agents::{Agents, all_up};
use super::pinger::{Pinger, pinger, say};
use super::{Pair, Side};

/// Addresses of each side that have no tunnel of their own: pings to them spread over all.
const FLOWS: u8 = 48;
/// How addresses begin: those of the side that pings, and those that it pings. None is one that a single tunnel leads to.
pub const EAST_TO_WEST: [&str; 2] = ["10.1.0.", "10.2.0."];
const WEST_TO_EAST: [&str; 2] = ["10.2.0.", "10.1.0."];
const SIX: [&str; 2] = ["fd01::", "fd02::"];

/// Gives both sides addresses enough for flows over all of their tunnels.
pub fn many_addresses(pair: &Pair) {
    for (side, number) in [(&pair.east, 1), (&pair.west, 2)] {
        side.run(&format!(
            "for n in $(seq 1 {FLOWS}); do ip addr add 10.{number}.0.$n/32 dev lo; ip addr add fd0{number}::$n/128 dev lo; done; \
             echo 1 > /proc/sys/net/ipv4/fib_multipath_hash_policy; echo 1 > /proc/sys/net/ipv6/fib_multipath_hash_policy"
        ));
    }
}

/// All tunnels are up and their sizes known, on both sides; east's state.
///
/// # Panics
/// When they are not, in time.
pub fn settled(agents: &mut Agents<'_>, tunnels: usize) -> DataplaneState {
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
///
/// # Panics
/// When a flow loses something, or a tunnel carries none.
pub fn carries_on_every_tunnel(agents: &mut Agents<'_>, tunnels: usize) {
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

/// Pings between all addresses that begin so, one after the other: each ping(8) is handed the answers to all, and its queue is short.
///
/// # Panics
/// When one is not answered.
pub fn all_flows(side: &Side, [from, to]: [&str; 2], how: &str) {
    let ping = format!("ping -q {how} -W 10 -I {from}$n {to}$n");
    let printed = side.run(&format!("for n in $(seq 1 {FLOWS}); do {ping}; done"));
    let whole = printed.matches(" 0% packet loss").count();
    assert_eq!(whole, usize::from(FLOWS), "{printed}\n{}", side.log());
}

/// A thousand pings a second by each tunnel of the side, by the name of its device.
///
/// # Panics
/// When no flow takes some tunnel.
pub fn one_for_each_device(side: &Side, ends: [&str; 2]) -> BTreeMap<String, Pinger> {
    start(side, ends, flows_of_devices(side, ends))
}

/// For each device a flow that takes it. Nothing else may be sent meanwhile, since it is told by what the device has sent.
fn flows_of_devices(side: &Side, [from, to]: [&str; 2]) -> BTreeMap<String, u8> {
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
    assert_eq!(chosen.len(), all, "some device has no flow of {FLOWS}: {chosen:?}\n{}", side.run("ip route"));
    chosen
}

fn start(side: &Side, [from, to]: [&str; 2], flows: BTreeMap<String, u8>) -> BTreeMap<String, Pinger> {
    let pings = |number| pinger(side, &format!("-I {from}{number} {to}{number}"));
    flows.into_iter().map(|(device, number)| (device, pings(number))).collect()
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

/// A thousand pings a second by each tunnel, from either side.
pub fn both_ways(agents: &mut Agents<'_>) -> Vec<(String, Pinger)> {
    let pair = agents.pair();
    let there = flows_of_devices(&pair.east, EAST_TO_WEST);
    let back = flows_of_devices(&pair.west, WEST_TO_EAST);
    let there = start(&pair.east, EAST_TO_WEST, there).into_iter();
    let back = start(&pair.west, WEST_TO_EAST, back).into_iter();
    let named = there.map(|(device, pings)| (format!("from east by {device}"), pings));
    named.chain(back.map(|(device, pings)| (format!("from west by {device}"), pings))).collect()
}

/// Ends the pings.
///
/// # Panics
/// When one was not answered.
pub fn nothing_is_lost(agents: &mut Agents<'_>, pings: Vec<(String, Pinger)>) {
    for (what, pings) in pings {
        let pinged = pings.stop();
        say(&what, &pinged);
        assert_eq!(pinged.lost, 0, "{what}: {pinged:?}\n{}", agents.pair().east.log());
    }
}
