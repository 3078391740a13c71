// SPDX-License-Identifier: Apache-2.0
//! Ours on one side, each of the others on the other. The kernel's own WireGuard is one of them where it is there, as in the virtual
//! machine of `make test-vm`.

use std::io::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use isthmus_testkit::{Lab, within};
use xtask::tools::{BORINGTUN_CLI, GOTATUN_CLI, WIREGUARD_GO, WIREGUARD_GO_TAILSCALE};

use crate::side::{PATIENCE, PORT, Program, Side, hosts};

const KERNEL: &str = "the kernel";
const TAILSCALE: &str = "tailscale's wireguard-go";
/// Where east and west are.
const OUTSIDE: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// After these a session's keys are replaced (WireGuard paper, 6.1: REKEY-AFTER-TIME), and then some.
const REKEY_AFTER: Duration = Duration::from_secs(120);

/// The others, built once. One that cannot be had (its registry does not answer) is named and left out, but for wireguard-go.
fn others() -> Vec<Program> {
    static BUILT: LazyLock<Vec<Program>> = LazyLock::new(|| {
        let places = xtask::places::Places::find().expect("the repository");
        let go =
            |group: &xtask::tools::ToolGroup| group.build(&places).map(|folder| folder.join("wireguard-go"));
        let first = go(&WIREGUARD_GO).expect("wireguard-go: make deps");
        let rust: &[&str] = &["--foreground", "--disable-drop-privileges"];
        let more = [
            (TAILSCALE, go(&WIREGUARD_GO_TAILSCALE), &["--foreground"][..]),
            ("boringtun-cli", BORINGTUN_CLI.build(&places), rust),
            ("gotatun", GOTATUN_CLI.build(&places), rust),
        ];
        let more = more.into_iter().filter_map(|(name, built, arguments)| match built {
            Ok(path) => Some(Program::other(name, path, arguments)),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "interoperability: left out: {name}: {error:#}");
                None
            }
        });
        std::iter::once(Program::other("wireguard-go", first, &["--foreground"])).chain(more).collect()
    });
    BUILT.clone()
}

/// The kernel's, or none and a word that the test is skipped.
fn kernel(lab: &Lab) -> Vec<Program> {
    let trial = lab.namespace("trial");
    if let Err(error) = trial.try_sh("ip link add trial type wireguard") {
        let _ = writeln!(std::io::stderr(), "interoperability: skipped: {error:#}; `make test-vm` has it");
        return Vec::new();
    }
    // Its device is nobody's process; the namespace takes it along when it ends.
    vec![Program::other(
        KERNEL,
        "/bin/sh".into(),
        &["-c", "ip link add \"$0\" type wireguard; exec sleep 600"],
    )]
}

/// Each of the others as west, ours as east, and the other way round. East knows where west is, and has `rest` set for it; both share
/// a key. All is said at once: boringtun changes no peer that is there.
fn pairs(
    lab: &Lab,
    others: Vec<Program>,
    outside: [&'static str; 2],
    rest: &'static str,
) -> impl Iterator<Item = (String, [Side; 2])> {
    let both =
        others.into_iter().flat_map(|other| [(Program::ours(), other.clone()), (other, Program::ours())]);
    both.map(move |(east, west)| {
        let [a, b] = hosts(lab);
        let name = format!("{} to {}", east.name, west.name);
        let sides = [Side::new(a, &east, PORT), Side::new(b, &west, PORT)];
        let psk = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(psk.path(), sides[0].host.sh("wg genpsk")).unwrap();
        let shared = format!("preshared-key {}", psk.path().display());
        for (number, side) in sides.iter().enumerate() {
            let (own, other) = (number + 1, 2 - number);
            let more = if number == 0 { rest } else { "" };
            // Tailscale's does not learn where a peer is from what it receives.
            let known = number == 0 || west.name == TAILSCALE;
            let endpoint =
                if known { format!("endpoint {}:{PORT}", outside[1 - number]) } else { String::new() };
            let allowed = format!("allowed-ips 10.8.0.{other}/32,fd08::{other}/128");
            side.peer(&sides[1 - number], &format!("{shared} {allowed} {endpoint} {more}"));
            side.up(&[&format!("10.8.0.{own}/24"), &format!("fd08::{own}/64")], 1420);
        }
        (name, sides)
    })
}

fn lost(printed: &str) -> bool {
    !printed.contains(" 0% packet loss")
}

#[test]
fn packets_of_every_size_go_both_ways_inside_and_outside_in_both_families() {
    let Some(lab) = Lab::new("wg-others") else { return };
    every_size_passes(&lab, &others());
}

#[test]
fn packets_of_every_size_go_to_the_kernel_and_back() {
    let Some(lab) = Lab::new("wg-kernel") else { return };
    every_size_passes(&lab, &kernel(&lab));
}

fn every_size_passes(lab: &Lab, others: &[Program]) {
    for outside in [OUTSIDE, ["[fd00:2::1]", "[fd00:2::2]"]] {
        for (name, [east, west]) in pairs(lab, others.to_vec(), outside, "") {
            east.reaches("10.8.0.2");
            for (side, target, header) in [(&east, "10.8.0.2", 28), (&west, "fd08::1", 48)] {
                for size in [0, 56, 1420 - header] {
                    let printed = side.ping(target, &format!("-c 5 -l 5 -i 2 -W 5 -M do -s {size}"));
                    assert!(!lost(&printed), "{name}, {outside:?}, {size} bytes: {printed}");
                }
            }
        }
    }
}

#[test]
fn jumbo_frames_pass() {
    let Some(lab) = Lab::new("wg-others-4") else { return };
    for (name, [east, west]) in pairs(&lab, others(), OUTSIDE, "") {
        // Its packet buffers have 4,096 bytes.
        if name.contains("gotatun") {
            continue;
        }
        for side in [&east, &west] {
            side.host.sh(&format!("ip link set wire mtu 9000; ip link set {} mtu 8920", side.name));
        }
        east.reaches("10.8.0.2");
        for (side, target, header) in [(&east, "10.8.0.2", 28), (&west, "fd08::1", 48)] {
            let size = 8920 - header;
            // boringtun-cli takes a moment to see that the device's MTU is another one.
            within(PATIENCE, || {
                let printed = side.ping(target, &format!("-c 1 -W 1 -M do -s {size}"));
                if lost(&printed) { Err(format!("{name}: {printed}")) } else { Ok(()) }
            });
            let printed = side.ping(target, &format!("-c 5 -l 5 -i 2 -W 5 -M do -s {size}"));
            assert!(!lost(&printed), "{name}: {printed}");
        }
    }
}

#[test]
fn keepalives_and_moves_are_understood() {
    let Some(lab) = Lab::new("wg-others-2") else { return };
    keepalives_and_moves(&lab, others());
}

#[test]
fn keepalives_and_moves_are_understood_by_the_kernel() {
    let Some(lab) = Lab::new("wg-kernel-2") else { return };
    keepalives_and_moves(&lab, kernel(&lab));
}

fn keepalives_and_moves(lab: &Lab, others: Vec<Program>) {
    for (name, [east, west]) in pairs(lab, others, OUTSIDE, "persistent-keepalive 1") {
        // East's keepalive alone says where it is.
        within(PATIENCE, || match west.shown("endpoints") {
            known if known == format!("192.0.2.1:{PORT}") => Ok(()),
            other => Err(format!("{name}: {other}")),
        });
        let printed = west.ping("10.8.0.1", "-c 5 -l 5 -i 2 -W 5");
        assert!(!lost(&printed), "{name}: {printed}");
        // One does not follow, the other cannot move itself: its socket stays connected from the address that is gone.
        if name.ends_with(TAILSCALE) || name.starts_with("boringtun-cli") {
            continue;
        }
        east.host.sh("ip addr del 192.0.2.1/24 dev wire; ip addr add 192.0.2.77/24 dev wire");
        within(PATIENCE, || east.host.ping("10.8.0.2").map_err(|error| format!("{name}: {error:#}")));
        within(PATIENCE, || match west.shown("endpoints") {
            known if known == format!("192.0.2.77:{PORT}") => Ok(()),
            other => Err(format!("{name}: {other}")),
        });
    }
}

#[test]
fn keys_are_replaced_under_traffic_and_nothing_is_lost() {
    let Some(lab) = Lab::new("wg-others-3") else { return };
    keys_are_replaced(&lab, others());
}

#[test]
fn keys_are_replaced_under_traffic_with_the_kernel() {
    let Some(lab) = Lab::new("wg-kernel-3") else { return };
    keys_are_replaced(&lab, kernel(&lab));
}

fn keys_are_replaced(lab: &Lab, others: Vec<Program>) {
    let pairs: Vec<_> = pairs(lab, others, OUTSIDE, "").collect();
    for (_, [east, _]) in &pairs {
        east.reaches("10.8.0.2");
    }
    let first: Vec<String> = pairs.iter().map(|(_, [east, _])| east.shown("latest-handshakes")).collect();
    // Ten a second in each direction until keys have been replaced.
    let count = (REKEY_AFTER.as_secs() + 12) * 10;
    let options = format!("-c {count} -i 0.1 -W 10");
    std::thread::scope(|scope| {
        for (name, [east, west]) in &pairs {
            for (side, target) in [(east, "10.8.0.2"), (west, "10.8.0.1")] {
                let options = &options;
                scope.spawn(move || {
                    let printed = side.ping(target, options);
                    assert!(!lost(&printed), "{name}: {printed}");
                });
            }
        }
    });
    for ((name, [east, _]), first) in pairs.iter().zip(first) {
        assert_ne!(east.shown("latest-handshakes"), first, "{name}: keys were not replaced");
    }
}
