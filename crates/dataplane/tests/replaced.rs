// SPDX-License-Identifier: Apache-2.0
//! A worker takes over from another, of the same parent or of a new one, under a thousand pings a second: nothing is lost.

// Shared by whoever tests with two namespaces; not every test needs all of it.
#[allow(dead_code, unreachable_pub)]
mod lab;

use std::time::Duration;

use isthmus_packet_io::{connect_record, receive_record, send_record};
use lab::pinger::{a_while, nothing_is_lost, pings, replace_worker};
use lab::{as_root, ping_loss, tunnel, within};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn ten_workers_take_over_from_one_another_and_nothing_is_lost() {
    let Some(mut pair) = as_root("ten workers") else { return };
    let pings = pings(&pair);
    let owner = pair.east.owner_port();
    replace_worker(&pair.east, 10);
    nothing_is_lost(&pair, pings);
    pair.east.connect(false);
    assert_eq!(pair.east.owner_port(), owner);
    let state = pair.east.state();
    assert!(state.probes["tunnel"].up && state.probes["tunnel"].path_mtu == Some(1420), "{state:#?}");
    assert!(tunnel(&state).last_handshake_s.is_some(), "{state:#?}");
}

#[test]
fn a_new_process_takes_over_from_the_one_that_runs_and_nothing_is_lost() {
    let Some(mut pair) = as_root("upgrade") else { return };
    let pings = pings(&pair);
    let owner = pair.east.owner_port();
    for _ in 0..3 {
        a_while(&pair.east);
        let before = pair.east.start_beside();
        within(PATIENCE, "the new one works and the one before does not", || {
            (pair.east.workers().len() == 1 && before.workers().is_empty()).then_some(())
        });
        assert!(before.end().success());
    }
    a_while(&pair.east);
    nothing_is_lost(&pair, pings);
    pair.east.connect(false);
    assert_eq!(pair.east.owner_port(), owner);
    assert!(pair.east.state().probes["tunnel"].up, "{:#?}\n{}", pair.east.state(), pair.east.log());
    pair.configure();
}

#[test]
fn a_process_that_was_taken_over_from_carries_again_when_the_new_one_is_gone() {
    let Some(mut pair) = as_root("undone") else { return };
    let before = pair.east.start_beside();
    within(PATIENCE, "the new one works and the one before does not", || {
        (pair.east.workers().len() == 1 && before.workers().is_empty()).then_some(())
    });
    pair.east.kill();
    within(PATIENCE, "the one before works again", || (before.workers().len() == 1).then_some(()));
    pair.east.connect(true);
    pair.configure();
    pair.east.until("the probe is up", |state| state.probes["tunnel"].up);
    let out = pair.east.run("ping -c 5 -i 0.02 -W 10 10.2.0.0");
    assert_eq!(ping_loss(&out), 0, "{out}");
}

#[test]
fn who_asks_for_everything_and_goes_leaves_the_worker_as_it_was() {
    let Some(mut pair) = as_root("asked in vain") else { return };
    let pings = pings(&pair);
    let workers = pair.east.workers();
    for hello in [&b"H1"[..], b"H9", b"nonsense", b"C"] {
        let connection = connect_record(&pair.east.handover_socket()).unwrap();
        send_record(&connection, hello, None).unwrap();
        let (mut record, mut names) = ([0; 128], Vec::new());
        while let Ok((length, attached)) = receive_record(&connection, &mut record) {
            names.push((String::from_utf8_lossy(&record[..length]).into_owned(), attached.is_some()));
            if record[..length] == *b"." {
                break;
            }
        }
        let names: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
        let all = ["Kagents", "Kmemory", "Kowner", "Krelay", "Ktun/iw-0123456789ab", "Kudp/51820", "."];
        assert_eq!(names, if hello == b"H1" { &all[..] } else { &[] }, "{}", String::from_utf8_lossy(hello));
        drop(connection);
        a_while(&pair.east);
    }
    nothing_is_lost(&pair, pings);
    assert_eq!(pair.east.workers(), workers);
    // Agents had to connect anew: what they asked for meanwhile may have been refused.
    pair.east.connect(false);
    pair.configure();
    pair.east.until("a handshake", |state| tunnel(state).last_handshake_s.is_some());
}
