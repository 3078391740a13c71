// SPDX-License-Identifier: Apache-2.0
//! Data plane processes for which the kernel encrypts, in two network namespaces. Where the kernel has no WireGuard these are
//! skipped; `make test-vm` runs them in a virtual machine whose kernel has it.

// Shared by whoever tests with two namespaces; not every test needs all of it.
#[allow(dead_code, unreachable_pub)]
mod lab;

use std::collections::BTreeSet;

use isthmus_model::dataplane::{DataplaneConfig, DataplaneState, Request, Tunnel, WireGuardMode};
use isthmus_model::ids::LinkName;
use lab::agents::{Agents, rotates, survives_in_each_phase};
use lab::crash::{another_than, gaps_of_a_crash};
use lab::flows::{both_ways, carries_on_every_tunnel, many_addresses, settled};
use lab::pinger::{a_while, nothing_is_lost, pings, replace_worker};
use lab::{Pair, TUNNEL, ping_loss, tunnel, with_kernel};

#[test]
fn the_kernel_here_and_this_process_there_carry_packets_of_both_families() {
    let Some(pair) = with_kernel("kernel to userspace", ["kernel", "userspace"]) else { return };
    carries(&pair);
    assert_eq!(pair.east.state().mode, WireGuardMode::Kernel);
    assert_eq!(pair.west.state().mode, WireGuardMode::Userspace);
    assert_eq!(tunnel(&pair.west.state()).listen_port, None);
}

#[test]
fn two_kernels_carry_packets_of_both_families_and_choosing_by_itself_chooses_the_kernel() {
    let Some(pair) = with_kernel("kernel to kernel", ["kernel", "auto"]) else { return };
    carries(&pair);
    assert_eq!(pair.west.state().mode, WireGuardMode::Kernel);
    let out = pair.east.run(&format!("ip -d link show {TUNNEL}"));
    assert!(out.contains("wireguard"), "{out}");
}

fn carries(pair: &Pair) {
    for side in [&pair.east, &pair.west] {
        let state = side.until("the probe is up and the path's size known", |state| {
            state.probes["tunnel"].up && state.probes["tunnel"].path_mtu.is_some()
        });
        assert_eq!(state.probes["tunnel"].path_mtu, Some(1420));
    }
    for target in ["10.2.0.0", "fd02::"] {
        let out = pair.east.run(&format!("ping -c 20 -i 0.05 -W 10 -s 200 {target}"));
        assert_eq!(ping_loss(&out), 0, "{out}");
    }
    let state = pair.east.until("a handshake and forty answers are told", |state| {
        tunnel(state).last_handshake_s.is_some() && tunnel(state).received_bytes > 40 * 228
    });
    assert_eq!(tunnel(&state).listen_port, Some(51820));
}

#[test]
fn packets_flow_while_the_process_is_dead_and_a_new_one_finds_session_port_and_key_as_they_were() {
    let Some(mut pair) = with_kernel("kernel, killed", ["kernel", "kernel"]) else { return };
    pair.east.until("the probe is up", |state| state.probes["tunnel"].up);
    let before = pair.east.until("a handshake", |state| tunnel(state).last_handshake_s.is_some());
    pair.east.kill();
    let out = pair.east.run("ping -c 20 -i 0.05 -W 10 10.2.0.0");
    assert_eq!(ping_loss(&out), 0, "{out}");
    pair.east.start();
    pair.east.connect(true);
    pair.configure();
    let after = pair.east.until("the probe is up again", |state| state.probes["tunnel"].up);
    assert_eq!(after.public_key, before.public_key);
    assert_eq!(tunnel(&after).last_handshake_s, tunnel(&before).last_handshake_s, "the session of before");
    assert_eq!(tunnel(&after).listen_port, tunnel(&before).listen_port);
}

#[test]
fn each_device_has_a_port_of_its_own_a_deleted_one_is_made_again_and_unwanted_ones_go() {
    let Some(mut pair) = with_kernel("kernel, devices", ["kernel", "userspace"]) else { return };
    let (second, config) = with_second_tunnel(&pair);
    pair.east.request(&Request::Configure(config.clone()));
    let ports = |state: &DataplaneState| -> Vec<Option<u16>> {
        state.tunnels.values().map(|tunnel| tunnel.listen_port).collect()
    };
    // 51821 is the probes'.
    pair.east.until("two ports", |state| ports(state) == [Some(51820), Some(51822)]);
    pair.east.run("ip link add foreign0 type wireguard; ip link add iw-00000000dead type wireguard");
    pair.east.run(&format!("ip link del {TUNNEL}"));
    pair.east.eventually(&format!("ip link show {TUNNEL}"), |shown| shown.contains(TUNNEL));
    pair.east.until("the same port again", |state| ports(state) == [Some(51820), Some(51822)]);
    pair.east.kill();
    pair.east.start();
    pair.east.connect(true);
    pair.east.request(&Request::Configure(pair.east_config()));
    pair.east.eventually("ip link", |links| !links.contains(second.as_str()) && !links.contains("dead"));
    let links = pair.east.run("ip link");
    assert!(links.contains("foreign0") && links.contains(TUNNEL), "{links}");
}

fn with_second_tunnel(pair: &Pair) -> (LinkName, DataplaneConfig) {
    let mut config = pair.east_config();
    let second: LinkName = "iw-ffffffffffff".parse().unwrap();
    let tunnel = Tunnel {
        peer_key: "Lu4tuWuzTqINYE7ABMCoJ5XGRDJ7GXpQjPyQyfTUKTU=".to_owned(),
        endpoint: Some("192.0.2.77:51820".parse().unwrap()),
        ..config.tunnels.values().next().unwrap().clone()
    };
    config.tunnels.insert(second.clone(), tunnel);
    (second, config)
}

#[test]
fn a_node_changes_from_the_kernel_to_the_process_and_back_and_its_peer_need_not_be_told() {
    let Some(mut pair) = with_kernel("kernel, changes", ["kernel", "userspace"]) else { return };
    pair.east.until("the probe is up", |state| state.probes["tunnel"].up);
    for choice in ["userspace", "kernel"] {
        pair.east.kill();
        pair.east.encrypts = choice;
        pair.east.start();
        pair.east.connect(true);
        pair.configure();
        // The device is another one now: what the agent does to it has to be done again.
        pair.east
            .run(&format!("ip link set {TUNNEL} up; ip route add 10.2.0.0/16 dev {TUNNEL} src 10.1.0.0"));
        pair.east.until(choice, |state| state.probes["tunnel"].up);
        let out = pair.east.run("ping -c 5 -i 0.05 -W 10 10.2.0.0");
        assert_eq!(ping_loss(&out), 0, "{choice}: {out}");
    }
}

#[test]
fn a_key_rotates_between_two_kernels_without_a_packet_lost() {
    if let Some(mut pair) = with_kernel("kernel to kernel, rotation", ["kernel", "kernel"]) {
        rotates(&mut pair, 1);
    }
}

#[test]
fn a_key_of_the_kernel_rotates_towards_a_process_without_a_packet_lost() {
    if let Some(mut pair) = with_kernel("kernel to userspace, rotation", ["kernel", "userspace"]) {
        rotates(&mut pair, 1);
    }
}

#[test]
fn a_key_of_a_process_rotates_towards_the_kernel_without_a_packet_lost() {
    if let Some(mut pair) = with_kernel("userspace to kernel, rotation", ["userspace", "kernel"]) {
        rotates(&mut pair, 1);
    }
}

#[test]
fn a_rotation_survives_the_process_in_each_of_its_phases() {
    if let Some(mut pair) = with_kernel("kernel, rotation, killed", ["kernel", "kernel"]) {
        survives_in_each_phase(&mut pair);
    }
}

#[test]
fn a_worker_is_replaced_with_the_kernel_as_its_peer_and_nothing_is_lost() {
    let Some(pair) = with_kernel("userspace to kernel, replaced", ["userspace", "kernel"]) else { return };
    let pings = pings(&pair);
    replace_worker(&pair.east, 2);
    nothing_is_lost(&pair, pings);
}

#[test]
fn a_worker_that_is_killed_is_back_with_the_kernel_as_its_peer() {
    let Some(mut pair) = with_kernel("userspace to kernel, crash", ["userspace", "kernel"]) else { return };
    gaps_of_a_crash(&mut pair);
}

#[test]
fn where_the_kernel_encrypts_a_worker_is_replaced_and_killed_and_nothing_is_lost() {
    for peer in ["kernel", "userspace"] {
        let Some(mut pair) = with_kernel("kernel, replaced and killed", ["kernel", peer]) else { return };
        let pings = pings(&pair);
        replace_worker(&pair.east, 2);
        let killed = pair.east.kill_worker();
        another_than(&pair.east, killed);
        a_while(&pair.east);
        nothing_is_lost(&pair, pings);
        pair.east.connect(false);
        let state = pair.east.until("the probe is up", |state| state.probes["tunnel"].up);
        assert_eq!(state.mode, WireGuardMode::Kernel, "with {peer} as its peer");
    }
}

#[test]
fn lanes_here_have_a_device_each_of_the_kernel_there_and_carry_flows_both_ways() {
    let Some(mut pair) = with_kernel("lanes to kernel", ["userspace 3", "kernel"]) else { return };
    many_addresses(&pair);
    let mut agents = Agents::new(&mut pair);
    carries_on_every_tunnel(&mut agents, 3);
    let west = agents.pair().west.state();
    assert_eq!((west.mode, west.lanes.len()), (WireGuardMode::Kernel, 1));
    let ports: BTreeSet<_> = west.tunnels.values().filter_map(|tunnel| tunnel.listen_port).collect();
    assert_eq!(ports.len(), 3, "each device has a port of its own: {west:#?}");
}

#[test]
fn a_worker_with_lanes_is_replaced_with_the_kernel_as_its_peer_and_nothing_is_lost() {
    let Some(mut pair) = with_kernel("lanes to kernel, replaced", ["userspace 2", "kernel"]) else { return };
    many_addresses(&pair);
    let mut agents = Agents::new(&mut pair);
    settled(&mut agents, 2);
    let pings = both_ways(&mut agents);
    replace_worker(&agents.pair().east, 2);
    lab::flows::nothing_is_lost(&mut agents, pings);
}

#[test]
fn a_key_rotates_in_every_lane_towards_the_kernel_without_a_packet_lost() {
    if let Some(mut pair) = with_kernel("lanes to kernel, rotation", ["userspace 2", "kernel"]) {
        rotates(&mut pair, 2);
    }
}

#[test]
fn a_key_of_the_kernel_rotates_towards_lanes_without_a_packet_lost() {
    if let Some(mut pair) = with_kernel("kernel to lanes, rotation", ["kernel", "userspace 2"]) {
        rotates(&mut pair, 2);
    }
}
