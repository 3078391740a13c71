// SPDX-License-Identifier: Apache-2.0
//! The process that works dies, under a thousand pings a second; the one that started it starts another.

// Shared by whoever tests with two namespaces; not every test needs all of it.
#[allow(dead_code, unreachable_pub)]
mod lab;

use std::time::Duration;

use isthmus_model::dataplane::{DataplaneState, Request};
use lab::crash::{PATIENCE, another_than, gaps_of_a_crash, settled};
use lab::{as_root, ping_loss, within};

/// What is asked of a crash.
const BACK_WITHIN: Duration = Duration::from_millis(300);

#[test]
fn a_worker_that_is_killed_is_back_before_anybody_misses_it() {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let Some(mut pair) = as_root("crash") else { return };
        let [from, to, bare] = gaps_of_a_crash(&mut pair);
        seen.push((from.max(to), bare));
    }
    // One of the three had the processor when it needed it. Where the wire itself stands still, so does everything else.
    let in_time = |(gap, bare): &(Duration, Duration)| *gap < BACK_WITHIN.max(*bare * 10);
    assert!(seen.iter().any(in_time), "gaps, and those of the bare wire: {seen:?}");
}

#[test]
fn a_peer_that_roamed_and_has_no_known_place_is_found_again_after_a_crash() {
    let Some(mut pair) = as_root("crash, roamed") else { return };
    settled(&pair);
    let mut config = pair.east_config();
    config.tunnels.values_mut().for_each(|tunnel| tunnel.endpoint = None);
    pair.east.request(&Request::Configure(config));
    pair.west.run("ip addr del 192.0.2.2/24 dev wire; ip addr add 192.0.2.22/24 dev wire");
    let moved = |state: &DataplaneState| {
        lab::tunnel(state).endpoint.is_some_and(|endpoint| endpoint.ip().to_string() == "192.0.2.22")
    };
    pair.east.until("west is elsewhere", moved);
    let killed = pair.east.kill_worker();
    another_than(&pair.east, killed);
    pair.east.connect(false);
    let state = pair.east.until("a handshake", |state| lab::tunnel(state).last_handshake_s.is_some());
    assert!(moved(&state), "{state:#?}");
    pair.east.eventually("ping -c 1 -W 2 10.2.0.0", |out| ping_loss(out) == 0);
}

#[test]
fn workers_that_end_again_and_again_are_followed_by_one_that_waits_for_the_agent() {
    let Some(mut pair) = as_root("crashes") else { return };
    settled(&pair);
    let mut killed = pair.east.kill_worker();
    for _ in 0..5 {
        killed = another_than(&pair.east, killed);
        within(PATIENCE, "it can be killed", || (pair.east.workers() == [killed]).then_some(()));
        pair.east.kill_worker();
    }
    another_than(&pair.east, killed);
    pair.east.connect(true);
    assert!(pair.east.state().tunnels.is_empty(), "{:#?}", pair.east.state());
    pair.configure();
    pair.east.until("a handshake", |state| lab::tunnel(state).last_handshake_s.is_some());
    let out = pair.east.run("ping -c 5 -i 0.02 -W 10 10.2.0.0");
    assert_eq!(ping_loss(&out), 0, "{out}");
}

#[test]
fn the_worker_ends_with_its_parent() {
    let Some(mut pair) = as_root("parent killed") else { return };
    let workers = pair.east.workers();
    pair.east.kill();
    within(PATIENCE, "the worker has ended", || {
        let gone = |pid: &i32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
        workers.iter().all(gone).then_some(())
    });
}
