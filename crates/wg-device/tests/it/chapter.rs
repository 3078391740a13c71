// SPDX-License-Identifier: Apache-2.0
//! The chapter's commands, as they stand there.

use std::path::Path;
use std::process::Command;

use isthmus_testkit::Lab;

/// Runs the script with namespaces and sockets of its own, so that names are nobody else's, and gives what it printed.
fn alone(script: &str) -> String {
    let script = format!(
        "set -eu\nmount -t tmpfs none /run\nmkdir -p /run/wireguard /run/netns\n\
         ls -d /var/run/wireguard >/dev/null\ncd \"$(mktemp -d)\"\n{script}\n"
    );
    let programs = Path::new(env!("CARGO_BIN_EXE_isthmus-wg")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private", "timeout", "60", "bash", "-c", &script])
        .env("PATH", path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn the_commands_of_the_chapter_do_what_it_says() {
    if Lab::new("wg-chapter").is_none() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let chapter = std::fs::read_to_string(root.join("docs/src/wireguard.md")).unwrap();
    let blocks = chapter.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let commands: String = blocks.collect();
    assert!(commands.contains("isthmus-wg wg-east"), "{commands}");
    let text = alone(&commands);
    assert!(text.contains("3 received") && text.contains("latest handshake"), "{text}");
}

#[test]
fn wg_quick_takes_it_where_the_kernel_has_no_wireguard_and_takes_it_down() {
    let Some(lab) = Lab::new("wg-quick") else { return };
    if lab.namespace("host").try_sh("ip link add wgq0 type wireguard").is_ok() {
        eprintln!("wg-quick: skipped: the kernel has WireGuard, which wg-quick prefers");
        return;
    }
    let text = alone(
        "umask 077\n\
         printf '[Interface]\\nPrivateKey = %s\\nAddress = 10.8.0.1/24\\n' \"$(wg genkey)\" > wgq0.conf\n\
         WG_QUICK_USERSPACE_IMPLEMENTATION=isthmus-wg wg-quick up ./wgq0.conf\n\
         wg show wgq0 listen-port\nip -o address show wgq0\n\
         wg-quick down ./wgq0.conf\nif ip link show wgq0; then exit 1; fi",
    );
    assert!(text.contains("isthmus-wg wgq0") && text.contains("inet 10.8.0.1/24"), "{text}");
}
