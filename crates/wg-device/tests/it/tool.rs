// SPDX-License-Identifier: Apache-2.0
//! What wg(8) sets is what wg(8) shows.

use isthmus_testkit::Lab;

use crate::side::{Program, Side, run};

#[test]
fn what_is_set_is_shown_in_every_way_that_wg_has() {
    let Some(lab) = Lab::new("wg-tool") else { return };
    let side = Side::new(lab.namespace("host"), &Program::ours(), 0);
    let sh = |script: &str| side.host.sh(&script.replace("DEV", &side.name));
    let port: u16 = sh("wg show DEV listen-port").trim().parse().unwrap();
    assert_ne!(port, 0, "any port was asked for, and there is one");
    assert_eq!(sh("wg show DEV public-key").trim(), side.public_key);

    let [one, two] = ["1", "2"].map(|_| side.host.sh("wg genkey | wg pubkey").trim().to_owned());
    let psk = side.host.sh("wg genpsk").trim().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wg.conf");
    let write = |text: String| std::fs::write(&file, text).unwrap();
    let key = std::fs::read_to_string(side.key_file()).unwrap();
    write(format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 40123\nFwMark = 0x51\n\n\
         [Peer]\nPublicKey = {one}\nPresharedKey = {psk}\nAllowedIPs = 10.1.0.0/16, fd01::/64\nEndpoint = 192.0.2.9:51820\nPersistentKeepalive = 25\n",
        key.trim()
    ));
    sh(&format!("wg setconf DEV {}", file.display()));
    let shown = sh("wg showconf DEV");
    for line in [
        "ListenPort = 40123",
        "FwMark = 0x51",
        &format!("PublicKey = {one}"),
        &format!("PresharedKey = {psk}"),
        "AllowedIPs = 10.1.0.0/16, fd01::/64",
        "Endpoint = 192.0.2.9:51820",
        "PersistentKeepalive = 25",
    ] {
        assert!(shown.contains(line), "{line} is missing in {shown}");
    }
    // What is shown, set again, is the same.
    write(shown.clone());
    sh(&format!("wg setconf DEV {}", file.display()));
    assert_eq!(sh("wg showconf DEV"), shown);

    write(format!("[Peer]\nPublicKey = {two}\nAllowedIPs = 10.1.0.0/16\n"));
    sh(&format!("wg addconf DEV {}", file.display()));
    let allowed = sh("wg show DEV allowed-ips");
    assert!(allowed.contains(&format!("{two}\t10.1.0.0/16")), "the network has moved: {allowed}");
    assert!(allowed.contains(&format!("{one}\tfd01::/64")), "{allowed}");

    write(shown);
    sh(&format!("wg syncconf DEV {}", file.display()));
    assert_eq!(sh("wg show DEV peers").trim(), one, "the other peer is gone");
    sh(&format!("wg set DEV peer {one} remove"));
    assert_eq!(sh("wg show DEV peers"), "");
}

#[test]
fn a_port_or_mark_that_cannot_be_had_is_an_error_and_the_interface_stays() {
    let Some(lab) = Lab::new("wg-port") else { return };
    let host = lab.namespace("host");
    let side = Side::new(host, &Program::ours(), 40200);
    let holder = side.host.run(|| std::net::UdpSocket::bind("0.0.0.0:40201").unwrap());
    let before = side.host.sh(&format!("wg showconf {}", side.name));
    let refused = side.host.try_sh(&format!("wg set {} listen-port 40201 fwmark 7", side.name));
    let told = refused.unwrap_err().to_string();
    assert!(told.contains("Address already in use"), "{told}");
    assert_eq!(side.host.sh(&format!("wg showconf {}", side.name)), before);
    drop(holder);
    side.host.sh(&format!("wg set {} listen-port 40201", side.name));
}

#[test]
fn a_port_that_stays_keeps_its_socket_and_one_that_changes_is_listened_on() {
    let Some(lab) = Lab::new("wg-listen") else { return };
    let side = Side::new(lab.namespace("host"), &Program::ours(), 40300);
    let ports = || side.host.sh("cat /proc/net/udp6").matches(":9D6C").count();
    assert_eq!(ports(), 1, "40300 is open");
    side.host.sh(&format!("wg set {} listen-port 40301", side.name));
    assert_eq!(ports(), 0, "40300 is closed");
    assert!(side.host.sh("cat /proc/net/udp6").contains(":9D6D"), "40301 is open");
}

#[test]
fn the_command_line_says_what_is_wrong() {
    let (code, text) = run(&[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("which interface?"), "{text}");
    let (code, text) = run(&["--help"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Usage: isthmus-wg [-f] ") && text.contains("--without"), "{text}");
}
