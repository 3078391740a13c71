// SPDX-License-Identifier: Apache-2.0
//! Two data plane processes in two network namespaces, joined by a veth pair, each with an agent that is this test.

// Shared by whoever tests with two namespaces; not every test needs all of it.
#[allow(dead_code, unreachable_pub)]
mod lab;

use std::time::{Duration, Instant};

use isthmus_model::dataplane::DataplaneState;
use lab::agents::{rotates, survives_in_each_phase};
use lab::{TUNNEL, as_root, ping_loss, tunnel};

#[test]
fn where_segmented_sends_are_lost_datagrams_leave_one_by_one() {
    let Some(pair) = as_root("segmented sends are lost") else { return };
    let reached = |state: &DataplaneState| state.probes.get("tunnel").is_some_and(|probe| probe.up);
    pair.east.until("the probe is up", reached);
    // What is longer than the wire's MTU has yet to be cut. It is lost where it arrives: the sender is told of none.
    pair.west.run(
        "nft 'add table inet wire; add chain inet wire in { type filter hook prerouting priority 0; }; \
         add counter inet wire lost; \
         add rule inet wire in iifname wire udp dport 51820 meta length > 1600 counter name lost drop'",
    );
    let lost = || pair.west.run("nft list counter inet wire lost");
    let state = pair.east.until("datagrams leave one by one", |state| state.probes["tunnel"].unsegmented);
    assert!(state.probes["tunnel"].up, "{state:#?}");
    assert!(!lost().contains("packets 0 "), "{}", lost());
    // By then it is done: eight at once pass, as one by one they always did.
    pair.east.eventually("ping -c 8 -l 8 -i 2 -W 2 -s 1300 10.2.0.0", |out| ping_loss(out) == 0);
    let before = lost();
    let out = pair.east.run("ping -c 64 -l 64 -i 2 -W 5 -s 1300 10.2.0.0");
    assert_eq!((ping_loss(&out), lost()), (0, before), "{out}");
}

#[test]
fn packets_of_both_families_cross_the_tunnel_and_nothing_of_them_is_readable_on_the_wire() {
    let Some(pair) = as_root("crossing") else { return };
    let state = pair.west.until("the tunnel's probe is up", |state| state.probes["tunnel"].up);
    // What every kernel has that runs this test.
    for feature in ["recvmmsg", "sendmmsg", "vnet-hdr", "tso"] {
        assert!(state.offload.contains(feature), "{feature} is not in {:?}", state.offload);
    }
    let capture = pair.capture();
    let pattern = "6973746873656372"; // "isthsecr"
    for target in ["10.2.0.0", "fd02::"] {
        let out = pair.east.run(&format!("ping -c 20 -i 0.02 -W 10 -s 200 -p {pattern} {target}"));
        assert_eq!(ping_loss(&out), 0, "{out}\n{}\n\n{}", pair.east.log(), pair.west.log());
    }
    let wire = capture.stop();
    let seen = |needle: &[u8]| wire.windows(needle.len()).filter(|window| *window == needle).count();
    assert_eq!(seen(b"isthsecr"), 0, "plain text on the wire");
    // WireGuard data messages, by their port and type: 40 requests and 40 answers at least.
    assert!(
        seen(&51820u16.to_be_bytes()) >= 160,
        "only {} times the port of WireGuard",
        seen(&51820u16.to_be_bytes())
    );
    pair.east.until("forty answers counted", |state| tunnel(state).received_bytes > 40 * 228);
}

#[test]
fn a_cut_link_is_seen_within_a_second_and_so_is_its_return() {
    let Some(pair) = as_root("cut") else { return };
    let state = pair.east.until("the probe is up and the path's size known", |state| {
        state.probes["tunnel"].up && state.probes["tunnel"].path_mtu.is_some()
    });
    assert_eq!(state.probes["tunnel"].path_mtu, Some(1420));
    assert!(state.probes["tunnel"].rtt_us.is_some_and(|rtt| rtt < 50_000));
    pair.east.until("west says that it reaches us", |state| state.probes["tunnel"].reaches.contains("east"));
    pair.west.run("ip link set wire down");
    let cut = Instant::now();
    pair.east.until("the probe is down", |state| !state.probes["tunnel"].up);
    assert!(cut.elapsed() < Duration::from_millis(1200), "seen after {:?}", cut.elapsed());
    pair.west.run("ip link set wire up");
    pair.east.until("the probe is up again", |state| state.probes["tunnel"].up);
}

#[test]
fn a_tunnel_is_probed_there_and_back_though_no_route_leads_through_it() {
    let Some(pair) = as_root("unrouted") else { return };
    for (side, theirs) in [(&pair.east, 2), (&pair.west, 1)] {
        side.run(&format!("ip route del 10.{theirs}.0.0/16; ip route add unreachable 10.{theirs}.0.0/16"));
    }
    pair.east.until("the probe is up", |state| state.probes["tunnel"].up);
    pair.west.until("the probe is up", |state| state.probes["tunnel"].up);
}

#[test]
fn an_agent_that_goes_and_comes_finds_the_tunnels_as_they_were_and_its_owner_socket() {
    let Some(mut pair) = as_root("agent") else { return };
    let before = pair.east.until("a handshake", |state| tunnel(state).last_handshake_s.is_some());
    let owner = pair.east.owner_port();
    pair.east.hang_up();
    let out = pair.east.run("ping -c 20 -i 0.02 -W 10 10.2.0.0");
    assert_eq!(ping_loss(&out), 0, "{out}");
    pair.east.connect(false);
    assert_eq!(pair.east.owner_port(), owner, "the same netlink socket");
    pair.configure();
    let after = pair.east.state();
    let handshakes = [&before, &after].map(|state| tunnel(state).last_handshake_s.unwrap());
    assert!(handshakes[1].abs_diff(handshakes[0]) <= 1, "the session of before: {handshakes:?}");
}

#[test]
fn a_killed_data_plane_comes_back_to_its_devices_and_to_the_agents_owner_socket() {
    let Some(mut pair) = as_root("killed") else { return };
    pair.east.until("the probe is up", |state| state.probes["tunnel"].up);
    let (owner, key) = (pair.east.owner_port(), pair.east.state().public_key);
    pair.east.kill();
    let links = pair.east.run(&format!("ip route get 10.2.0.0; ip -d link show {TUNNEL}"));
    assert!(links.contains(TUNNEL) && links.contains("persist on"), "device and route stay: {links}");
    pair.east.start();
    pair.east.connect(true);
    assert_eq!(pair.east.owner_port(), owner, "the agent's socket is kept");
    pair.configure();
    assert_eq!(pair.east.state().public_key, key, "and the key");
    pair.east.until("the probe is up again", |state| state.probes["tunnel"].up);
    let out = pair.east.run("ping -c 5 -i 0.02 -W 10 10.2.0.0");
    assert_eq!(ping_loss(&out), 0, "{out}");
}

#[test]
fn a_deleted_device_is_made_again_and_unwanted_ones_of_ours_are_swept() {
    let Some(mut pair) = as_root("deleted") else { return };
    pair.east.run(&format!("ip link del {TUNNEL}"));
    pair.east.eventually(&format!("ip link show {TUNNEL}"), |shown| shown.contains(TUNNEL));
    pair.east.kill();
    pair.east.run("ip tuntap add iw-00000000dead mode tun; ip tuntap add foreign0 mode tun");
    pair.east.start();
    pair.east.connect(true);
    assert!(
        pair.east.run("ip link").contains("iw-00000000dead"),
        "nothing is swept before the first configuration"
    );
    pair.configure();
    pair.east.eventually("ip link", |shown| !shown.contains("iw-00000000dead"));
    let links = pair.east.run("ip link");
    assert!(links.contains("foreign0") && links.contains(TUNNEL), "{links}");
}

#[test]
fn a_key_rotates_under_traffic_without_a_packet_lost() {
    if let Some(mut pair) = as_root("rotates") {
        rotates(&mut pair, 1);
    }
}

#[test]
fn a_rotation_survives_the_process_in_each_of_its_phases() {
    if let Some(mut pair) = as_root("rotation, killed") {
        survives_in_each_phase(&mut pair);
    }
}

#[test]
fn the_size_that_a_narrow_path_passes_is_found() {
    let Some(pair) = as_root("narrow") else { return };
    pair.east.run("ip link set wire mtu 1400");
    pair.west.run("ip link set wire mtu 1400");
    let narrow = 1400 - 20 - 8 - 32;
    let state = pair
        .west
        .until("a smaller size", |state| state.probes["tunnel"].path_mtu.is_some_and(|mtu| mtu < 1420));
    let found = state.probes["tunnel"].path_mtu.unwrap();
    assert!((narrow - 4..=narrow).contains(&found), "{found} found, {narrow} pass");
}

#[test]
#[ignore = "takes two and a half minutes: a session lives for two"]
fn a_session_is_renewed_under_traffic_without_a_packet_lost() {
    let Some(pair) = as_root("renewed") else { return };
    let first = pair.east.until("a handshake", |state| tunnel(state).last_handshake_s.is_some());
    let out = pair.east.run("ping -c 7500 -i 0.02 -W 10 -q 10.2.0.0");
    assert_eq!(ping_loss(&out), 0, "{out}");
    let handshake =
        |state: &isthmus_model::dataplane::DataplaneState| tunnel(state).last_handshake_s.unwrap();
    pair.east.until("a later handshake", |state| handshake(state) > handshake(&first) + 60);
}
