// SPDX-License-Identifier: Apache-2.0
//! Our process on one side, wireguard-go on the other. The program is named by `ISTHMUS_WIREGUARD_GO`
//! (`go install golang.zx2c4.com/wireguard@latest`); without it the test says that it is skipped.

// Shared by whoever tests with two namespaces; not every test needs all of it.
#[allow(dead_code, unreachable_pub)]
mod lab;

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use base64::Engine as _;
use lab::{as_root, ping_loss, skip, tunnel, within};

fn hex(base64_text: &str) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64_text.trim()).unwrap();
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn wireguard_go_and_we_understand_each_other() {
    let Some(program) = std::env::var_os("ISTHMUS_WIREGUARD_GO") else {
        return skip("interop", "needs wireguard-go, named by ISTHMUS_WIREGUARD_GO");
    };
    let Some(mut pair) = as_root("interop") else { return };
    let before = pair.east.until("a handshake", |state| tunnel(state).last_handshake_s.is_some());
    pair.west.kill();
    let device = format!("wgo{}", std::process::id() % 100_000);
    let _go =
        pair.west.spawn(&format!("ip link del {}; exec {} -f {device} 2>&1", lab::TUNNEL, program.display()));
    let socket = format!("/var/run/wireguard/{device}.sock");
    let key = std::fs::read_to_string(pair.west.state_dir().join("keys/wireguard.key")).unwrap();
    let settings = format!(
        "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\nallowed_ip=10.1.0.0/16\nallowed_ip=fd01::/64\n\n",
        hex(&key),
        hex(&pair.east_key)
    );
    let mut stream =
        within(Duration::from_secs(10), "wireguard-go listens", || UnixStream::connect(&socket).ok());
    stream.write_all(settings.as_bytes()).unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"errno=0\n");
    pair.west.run(&format!(
        "ip link set {device} up mtu 1420; ip route add 10.1.0.0/16 dev {device} src 10.2.0.0; ip -6 route add fd01::/64 dev {device}"
    ));
    // We have a session with who was there before: it is replaced when nothing comes back (15 s, KEEPALIVE + REKEY_TIMEOUT).
    pair.east.until("a handshake with wireguard-go", |state| {
        state.tunnels[&lab::TUNNEL.parse().unwrap()].last_handshake_s > tunnel(&before).last_handshake_s
    });
    for (side, target) in
        [(&pair.east, "10.2.0.0"), (&pair.west, "10.1.0.0"), (&pair.east, "fd02::"), (&pair.west, "fd01::")]
    {
        let out = side.run(&format!("ping -c 20 -i 0.02 -W 10 -s 1300 {target}"));
        assert_eq!(ping_loss(&out), 0, "{target}: {out}");
    }
    // wireguard-go ends when its socket goes, and leaves it behind when it is killed.
    std::fs::remove_file(&socket).unwrap();
}
