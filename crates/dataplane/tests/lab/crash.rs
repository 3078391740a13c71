// SPDX-License-Identifier: Apache-2.0
//! A worker is killed, and what the pings that go on meanwhile see of it.

use std::time::Duration;

use super::pinger::{self, pinger, say};
use super::{Pair, Side, TUNNEL, ping_loss, within};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Both know the way and its size.
pub fn settled(pair: &Pair) {
    for side in [&pair.east, &pair.west] {
        side.until("the probe is up and the path's size known", |state| {
            state.probes.get("tunnel").is_some_and(|probe| probe.up && probe.path_mtu.is_some())
        });
    }
}

/// Another process works than this one, and carries.
pub fn another_than(side: &Side, before: i32) -> i32 {
    within(PATIENCE, "another worker", || side.workers().into_iter().find(|worker| *worker != before))
}

/// The longest times without an answer, from and to the side whose worker is killed, and beside the tunnel.
pub fn gaps_of_a_crash(pair: &mut Pair) -> [Duration; 3] {
    settled(pair);
    let (owner, key) = (pair.east.owner_port(), pair.east.state().public_key);
    // The device's index, and the inode of the socket with port 51820.
    let kept = || {
        let port = r"awk '$2 ~ /:CA6C$/ { print $10 }' /proc/net/udp6";
        format!("ip -o link show {TUNNEL} | cut -d: -f1; {port}")
    };
    let before = pair.east.run(&kept());
    assert_eq!(before.lines().count(), 2, "{before}");
    let targets = [(&pair.east, "10.2.0.0"), (&pair.west, "fd01::"), (&pair.east, "192.0.2.2")];
    let pings = targets.map(|(side, to)| pinger(side, to));
    pair.east.run("ping -q -c 300 -i 0.001 -W 10 10.2.0.0");
    let killed = pair.east.kill_worker();
    another_than(&pair.east, killed);
    // Half a second later, by the clock of pings that no tunnel carries.
    pair.east.run("ping -q -c 500 -i 0.001 -W 1 192.0.2.2");
    let answered = pair.east.run("ping -c 1 -W 10 10.2.0.0");
    assert_eq!(ping_loss(&answered), 0, "{answered}\n{}", pair.east.log());
    let pinged = pings.map(pinger::Pinger::stop);
    say("IPv4 from the side whose worker was killed", &pinged[0]);
    say("IPv6 to it", &pinged[1]);
    say("on the bare wire", &pinged[2]);
    pair.east.connect(false);
    let state = pair.east.state();
    let logs = || format!("{}\n\n{}", pair.east.log(), pair.west.log());
    assert!(state.probes["tunnel"].up, "nobody heard that a path was down: {state:#?}\n{}", logs());
    assert_eq!(state.probes["tunnel"].path_mtu, Some(1420));
    assert_eq!((pair.east.owner_port(), &state.public_key), (owner, &key));
    assert_eq!(pair.east.run(&kept()), before, "the same device and the same port");
    pinged.map(|pinged| pinged.longest_gap)
}
