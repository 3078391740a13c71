// SPDX-License-Identifier: Apache-2.0
//! The chapter's commands, as they stand there.

use std::path::Path;
use std::process::Command;

use isthmus_testkit::Lab;

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
    // Namespaces and sockets of its own, so that names are nobody else's.
    let script = format!(
        "set -eu\nmount -t tmpfs none /run\nmkdir -p /run/wireguard /run/netns\n\
         ls -d /var/run/wireguard >/dev/null\ncd \"$(mktemp -d)\"\n{commands}\n"
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
    assert!(text.contains("3 received") && text.contains("latest handshake"), "{text}");
}
