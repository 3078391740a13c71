// SPDX-License-Identifier: Apache-2.0
//! How the program begins and ends.

use isthmus_testkit::{Lab, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::side::{PATIENCE, Program, Side};

/// Whether the process has ended, and well.
fn ended(side: &mut Side) -> Result<(), String> {
    match side.process().try_wait() {
        Ok(Some(status)) if status.success() => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn leaves_nothing(side: &Side) {
    assert!(!side.socket().exists(), "the socket's file is still there");
    let links = side.host.sh("ip -o link");
    assert!(!links.contains(&side.name), "{links}");
}

#[test]
fn it_ends_with_sigterm_and_takes_device_and_socket_along() {
    let Some(lab) = Lab::new("wg-term") else { return };
    let mut side = Side::new(lab.namespace("host"), &Program::ours(), 0);
    kill(Pid::from_raw(side.id().cast_signed()), Signal::SIGTERM).unwrap();
    within(PATIENCE, || ended(&mut side));
    leaves_nothing(&side);
}

#[test]
fn it_ends_with_its_device() {
    let Some(lab) = Lab::new("wg-device") else { return };
    let mut side = Side::new(lab.namespace("host"), &Program::ours(), 0);
    side.host.sh(&format!("ip link del {}", side.name));
    within(PATIENCE, || ended(&mut side));
    leaves_nothing(&side);
}

#[test]
fn it_ends_with_the_file_of_its_socket() {
    let Some(lab) = Lab::new("wg-socket") else { return };
    let mut side = Side::new(lab.namespace("host"), &Program::ours(), 0);
    std::fs::remove_file(side.socket()).unwrap();
    within(PATIENCE, || ended(&mut side));
    leaves_nothing(&side);
}

#[test]
fn a_second_one_for_the_same_interface_says_so_and_the_first_goes_on() {
    let Some(lab) = Lab::new("wg-second") else { return };
    let side = Side::new(lab.namespace("host"), &Program::ours(), 0);
    let line = format!("{} -f {} 2>&1", env!("CARGO_BIN_EXE_isthmus-wg"), side.name);
    let told = side.host.try_sh(&line).unwrap_err().to_string();
    assert!(told.contains("busy") || told.contains("another process"), "{told}");
    assert_eq!(side.host.sh(&format!("wg show {} public-key", side.name)).trim(), side.public_key);
}

#[test]
fn in_the_background_it_returns_when_wg_can_be_run() {
    let Some(lab) = Lab::new("wg-background") else { return };
    let host = lab.namespace("host");
    let name = format!("w{}bg", std::process::id() % 1_000_000);
    let program = env!("CARGO_BIN_EXE_isthmus-wg");
    host.sh(&format!("{program} {name}; wg show {name} listen-port; ip link show {name}"));
    host.sh(&format!("ip link del {name}"));
    let socket = std::path::PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
    within(PATIENCE, || if socket.exists() { Err("it still serves its socket") } else { Ok(()) });
}
