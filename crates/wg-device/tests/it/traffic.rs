// SPDX-License-Identifier: Apache-2.0
//! Traffic between two of ours.

use std::time::SystemTime;

use isthmus_testkit::{Lab, within};

use crate::side::{PATIENCE, PORT, Program, Side, hosts, pair};

/// All echoes came back.
#[track_caller]
fn none_lost(printed: &str) {
    assert!(printed.contains(" 0% packet loss"), "{printed}");
}

#[test]
fn both_families_go_both_ways_inside_and_outside_in_every_size() {
    let Some(lab) = Lab::new("wg-families") else { return };
    let [east, west] = pair(&lab, &Program::ours(), &Program::ours(), 1420);
    for outside in ["192.0.2.2", "[fd00:2::2]"] {
        east.peer(&west, &format!("endpoint {outside}:{PORT}"));
        east.reaches("10.8.0.2");
        assert_eq!(east.shown("endpoints"), format!("{outside}:{PORT}"));
        // 1420 is what a datagram of 1500 holds over IPv6; 0 is the least.
        for (side, target, header) in
            [(&east, "10.8.0.2", 28), (&east, "fd08::2", 48), (&west, "10.8.0.1", 28), (&west, "fd08::1", 48)]
        {
            for size in [0, 1, 56, 1280 - header, 1420 - header] {
                none_lost(&side.ping(target, &format!("-c 3 -l 3 -i 2 -W 5 -M do -s {size}")));
            }
        }
    }
    let seen: u64 = west.shown("latest-handshakes").parse().unwrap();
    assert!(seen > 1_600_000_000, "{seen}");
    assert!(east.shown("transfer").split('\t').all(|bytes| bytes.parse::<u64>().unwrap() > 1000));
}

#[test]
fn jumbo_frames_pass() {
    let Some(lab) = Lab::new("wg-jumbo") else { return };
    let [east, west] = pair(&lab, &Program::ours(), &Program::ours(), 8920);
    for side in [&east, &west] {
        side.host.sh("ip link set wire mtu 9000");
    }
    east.reaches("10.8.0.2");
    none_lost(&east.ping("10.8.0.2", "-c 5 -l 5 -i 2 -W 5 -M do -s 8892"));
    none_lost(&west.ping("fd08::1", "-c 5 -l 5 -i 2 -W 5 -M do -s 8872"));
}

#[test]
fn a_pre_shared_key_changes_under_traffic_and_nothing_is_lost() {
    let Some(lab) = Lab::new("wg-psk") else { return };
    let [east, west] = pair(&lab, &Program::ours(), &Program::ours(), 1420);
    let share = |side: &Side, other: &Side, seed: u8| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let psk = side.host.sh(&format!("printf '%032d' {seed} | base64 -w0"));
        std::fs::write(file.path(), psk).unwrap();
        side.peer(other, &format!("preshared-key {}", file.path().display()));
    };
    share(&east, &west, 1);
    share(&west, &east, 1);
    east.reaches("10.8.0.2");
    let handshake: u64 = east.shown("latest-handshakes").parse().unwrap();
    // wg tells whole seconds: the next handshake shall not lie in the same one.
    within(PATIENCE, || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        if now > handshake { Ok(()) } else { Err(format!("it is {now}")) }
    });
    let flow = std::thread::scope(|scope| {
        let flow = scope.spawn(|| east.ping("10.8.0.2", "-c 400 -i 0.01 -W 10"));
        share(&east, &west, 2);
        share(&west, &east, 2);
        flow.join().unwrap()
    });
    none_lost(&flow);
    // A handshake under the new key is asked for again after five seconds at the latest.
    within(PATIENCE, || {
        east.host.ping("10.8.0.2").map_err(|error| error.to_string())?;
        let latest: u64 = east.shown("latest-handshakes").parse().unwrap_or_default();
        if latest > handshake { Ok(()) } else { Err(format!("the last handshake was at {latest}")) }
    });
    share(&east, &west, 3);
    none_lost(&east.ping("10.8.0.2", "-c 20 -l 20 -i 2 -W 10"));
}

#[test]
fn a_peer_that_moves_is_followed() {
    let Some(lab) = Lab::new("wg-roaming") else { return };
    let [east, west] = pair(&lab, &Program::ours(), &Program::ours(), 1420);
    east.reaches("10.8.0.2");
    assert_eq!(west.shown("endpoints"), format!("192.0.2.1:{PORT}"));
    east.host.sh("ip addr del 192.0.2.1/24 dev wire; ip addr add 192.0.2.77/24 dev wire");
    east.reaches("10.8.0.2");
    assert_eq!(west.shown("endpoints"), format!("192.0.2.77:{PORT}"));
    none_lost(&west.ping("10.8.0.1", "-c 5 -l 5 -i 2 -W 5"));
    // A new port is a move, too.
    east.host.sh(&format!("wg set {} listen-port 40000", east.name));
    east.reaches("10.8.0.2");
    assert_eq!(west.shown("endpoints"), "192.0.2.77:40000");
}

#[test]
fn a_new_private_key_begins_new_sessions_with_those_who_know_it() {
    let Some(lab) = Lab::new("wg-key") else { return };
    let [east, west] = pair(&lab, &Program::ours(), &Program::ours(), 1420);
    east.reaches("10.8.0.2");
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display();
    let public = east.host.sh(&format!("wg genkey > {path}; wg pubkey < {path}")).trim().to_owned();
    east.host.sh(&format!("wg set {} private-key {path}", east.name));
    assert!(east.host.ping("10.8.0.2").is_err(), "west does not know the key");
    west.host.sh(&format!(
        "wg set {} peer {} remove peer {public} allowed-ips 10.8.0.1/32",
        west.name, east.public_key
    ));
    east.reaches("10.8.0.2");
}

#[test]
fn keepalives_come_as_often_as_they_were_asked_for_and_open_the_way_back() {
    let Some(lab) = Lab::new("wg-keepalive") else { return };
    let [east, west] = pair(&lab, &Program::ours(), &Program::ours(), 1420);
    assert_eq!(west.shown("endpoints"), "(none)");
    east.peer(&west, "persistent-keepalive 1");
    // No packet was sent inside, and west knows where east is.
    within(PATIENCE, || match west.shown("endpoints") {
        known if known == format!("192.0.2.1:{PORT}") => Ok(()),
        other => Err(other),
    });
    none_lost(&west.ping("10.8.0.1", "-c 5 -l 5 -i 2 -W 5"));
}

#[test]
fn of_three_peers_each_gets_what_is_its_own() {
    let Some(lab) = Lab::new("wg-hub") else { return };
    let hub_host = lab.namespace("hub");
    let spokes: Vec<_> = (1..=3)
        .map(|number| {
            let host = lab.namespace("spoke");
            let (link, hub_end, spoke_end) =
                (format!("to{number}"), format!("192.0.{number}.1/24"), format!("192.0.{number}.2/24"));
            lab.cable((&hub_host, &link, &[&hub_end]), (&host, "wire", &[&spoke_end]));
            (number, Side::new(host, &Program::ours(), 0))
        })
        .collect();
    let hub = Side::new(hub_host, &Program::ours(), PORT);
    hub.up(&["10.8.0.254/24"], 1420);
    for (number, spoke) in &spokes {
        hub.peer(spoke, &format!("allowed-ips 10.8.0.{number}/32"));
        spoke.peer(&hub, &format!("allowed-ips 10.8.0.0/24 endpoint 192.0.{number}.1:{PORT}"));
        spoke.up(&[&format!("10.8.0.{number}/24")], 1420);
    }
    for (number, spoke) in &spokes {
        spoke.reaches("10.8.0.254");
        none_lost(&hub.ping(&format!("10.8.0.{number}"), "-c 5 -l 5 -i 2 -W 5"));
    }
    // From spoke to spoke, through the hub.
    hub.host.sh("sysctl -qw net.ipv4.ip_forward=1");
    spokes[0].1.reaches("10.8.0.3");
    // One with another's address is not heard.
    spokes[1].1.host.sh(&format!("ip addr add 10.8.0.99/32 dev {}", spokes[1].1.name));
    let forged = spokes[1].1.ping("10.8.0.254", "-c 3 -i 0.1 -W 1 -I 10.8.0.99");
    assert!(forged.contains("100% packet loss"), "{forged}");
}

/// So many words that no offload may change in a bit.
fn stream(from: &Side, to: &Side, address: &'static str, words: u32) {
    let data: Vec<u8> = (0..words).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let listener = to.host.run(move || std::net::TcpListener::bind((address, 7000)).unwrap());
    let expected = data.clone();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut received = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut received).unwrap();
        assert!(received == expected, "{} of {} bytes, or others", received.len(), expected.len());
    });
    from.host.run(move || {
        let mut stream = std::net::TcpStream::connect((address, 7000)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        std::io::Write::write_all(&mut stream, &data).unwrap();
    });
    reader.join().unwrap();
}

#[test]
fn a_stream_passes_whole() {
    let Some(lab) = Lab::new("wg-stream") else { return };
    let [east, west] = pair(&lab, &Program::ours(), &Program::ours(), 1420);
    east.reaches("10.8.0.2");
    stream(&east, &west, "10.8.0.2", 8 << 20);
}

#[test]
fn without_any_of_the_kernels_features_streams_pass_whole_and_datagrams_too() {
    const WITHOUT: [(&str, &[&str]); 5] = [
        ("wg-plain-1", &["--foreground", "--without", "udp-segment,udp-gro"]),
        ("wg-plain-2", &["--foreground", "--without", "sendmmsg,recvmmsg"]),
        ("wg-plain-3", &["--foreground", "--without", "uso"]),
        ("wg-plain-4", &["--foreground", "--without", "tso,uso"]),
        ("wg-plain-5", &["--foreground", "--without", "vnet-hdr,udp-segment,udp-gro,sendmmsg,recvmmsg"]),
    ];
    for (name, without) in WITHOUT {
        let Some(lab) = Lab::new(name) else { return };
        let [east, west] = pair(&lab, &Program::ours_with(without), &Program::ours(), 1420);
        east.reaches("10.8.0.2");
        for size in [0, 56, 1280 - 28, 1420 - 28] {
            none_lost(&east.ping("10.8.0.2", &format!("-c 20 -l 20 -i 2 -W 5 -M do -s {size}")));
        }
        stream(&east, &west, "10.8.0.2", 2 << 20);
        stream(&west, &east, "10.8.0.1", 2 << 20);
    }
}

#[test]
fn a_zone_in_an_endpoint_is_followed() {
    let Some(lab) = Lab::new("wg-zone") else { return };
    let [a, b] = hosts(&lab);
    let address = |host: &isthmus_testkit::Namespace| {
        within(PATIENCE, || {
            let printed = host.sh("ip -o -6 addr show dev wire scope link -tentative");
            let found = printed.split_whitespace().find(|word| word.starts_with("fe80"));
            found.map(|word| word.trim_end_matches("/64").to_owned()).ok_or(printed.clone())
        })
    };
    let (at_a, at_b) = (address(&a), address(&b));
    let sides = [Side::new(a, &Program::ours(), PORT), Side::new(b, &Program::ours(), PORT)];
    for (number, (side, there)) in sides.iter().zip([at_b, at_a]).enumerate() {
        let (own, other) = (number + 1, 2 - number);
        side.peer(
            &sides[1 - number],
            &format!("allowed-ips 10.8.0.{other}/32 endpoint [{there}%wire]:{PORT}"),
        );
        side.up(&[&format!("10.8.0.{own}/24")], 1420);
    }
    sides[0].reaches("10.8.0.2");
}

#[test]
fn a_peer_is_answered_from_the_address_that_it_asked_at() {
    let Some(lab) = Lab::new("wg-sticky") else { return };
    let [east, west] = pair(&lab, &Program::ours(), &Program::ours(), 1420);
    // The routes of west have its first addresses as their source.
    west.host.sh("ip addr add 192.0.2.20/24 dev wire; ip addr add fd00:2::20/64 dev wire nodad");
    for (asked, family) in [("192.0.2.20", "ip"), ("fd00:2::20", "ip6")] {
        // As a NAT on the way has it, or a firewall that knows flows.
        east.host.sh("nft flush ruleset");
        east.host
            .sh("nft add table inet way; nft 'add chain inet way in { type filter hook input priority 0; }'");
        east.host.sh(&format!("nft add rule inet way in udp sport {PORT} {family} saddr != {asked} drop"));
        let brackets = if family == "ip6" { format!("[{asked}]") } else { asked.to_owned() };
        east.peer(&west, &format!("endpoint {brackets}:{PORT}"));
        east.reaches("10.8.0.2");
        none_lost(&east.ping("10.8.0.2", "-c 20 -l 20 -i 2 -W 5"));
        none_lost(&west.ping("10.8.0.1", "-c 20 -l 20 -i 2 -W 5"));
        assert_eq!(east.shown("endpoints"), format!("{brackets}:{PORT}"));
    }
    // The address goes: west answers from another one, and nothing is lost.
    east.host.sh("nft flush ruleset");
    west.host.sh("ip addr del fd00:2::20/64 dev wire");
    none_lost(&west.ping("10.8.0.1", "-c 20 -l 20 -i 2 -W 5"));
    assert_eq!(east.shown("endpoints"), format!("[fd00:2::2]:{PORT}"));
}
