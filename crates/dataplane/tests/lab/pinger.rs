// SPDX-License-Identifier: Apache-2.0
//! Pings, a thousand a second while they are answered, and what became of each.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Pair, Side, TUNNEL, within};

/// A running ping(8).
pub struct Pinger(Child, Option<JoinHandle<String>>);

/// What came of it.
#[derive(Debug)]
pub struct Pinged {
    /// How many were answered.
    pub answered: usize,
    /// How many were not, before the last that was.
    pub lost: usize,
    /// The longest time between two answers.
    pub longest_gap: Duration,
    /// How long it took from the first answer to the last.
    pub span: Duration,
}

/// A thousand pings a second, until it is stopped.
pub fn pinger(side: &Side, to: &str) -> Pinger {
    let mut command = side.command(&format!("exec ping -n -D -i 0.001 -W 10 {to} 2>&1"));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut printed = child.stdout.take().unwrap();
    // Read as it comes: it would wait for a reader, and send nothing meanwhile.
    let text = std::thread::spawn(move || {
        let mut text = String::new();
        printed.read_to_string(&mut text).unwrap();
        text
    });
    Pinger(child, Some(text))
}

impl Pinger {
    /// Ends it.
    ///
    /// # Panics
    /// When ping(8) says something else than it does.
    pub fn stop(mut self) -> Pinged {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let text = self.1.take().unwrap().join().unwrap();
        self.0.wait().unwrap();
        read(&text)
    }
}

/// Both ways, both families.
pub fn pings(pair: &Pair) -> Vec<(Pinger, &'static str)> {
    for side in [&pair.east, &pair.west] {
        side.until("the probe is up and the path's size known", |state| {
            state.probes.get("tunnel").is_some_and(|probe| probe.up && probe.path_mtu.is_some())
        });
        // A device holds five hundred packets: a machine that is busy with other things would lose some without us.
        side.run(&format!("ip link set {TUNNEL} txqueuelen 20000"));
    }
    vec![
        (pinger(&pair.east, "10.2.0.0"), "IPv4 from the side that changes"),
        (pinger(&pair.east, "fd02::"), "IPv6 from it"),
        (pinger(&pair.west, "10.1.0.0"), "IPv4 to it"),
        (pinger(&pair.west, "fd01::"), "IPv6 to it"),
    ]
}

/// Ends them.
///
/// # Panics
/// When one was not answered.
pub fn nothing_is_lost(pair: &Pair, pings: Vec<(Pinger, &'static str)>) {
    for (pings, what) in pings {
        let pinged = pings.stop();
        say(what, &pinged);
        assert!(pinged.lost == 0, "{what}: {pinged:?}\n{}", pair.east.log());
    }
}

/// Half a second, by the clock of pings that no tunnel carries.
pub fn a_while(side: &Side) {
    side.run("ping -q -c 500 -i 0.001 -W 1 192.0.2.2");
}

/// So many times another worker takes over.
///
/// # Panics
/// When one does not, within half a minute.
pub fn replace_worker(side: &Side, times: usize) {
    let mut seen = side.workers();
    for _ in 0..times {
        a_while(side);
        side.ask_for_another_worker();
        let another = || match side.workers()[..] {
            [worker] if !seen.contains(&worker) => Some(worker),
            _ => None,
        };
        let worker = within(Duration::from_secs(30), "one worker, and another than before", another);
        seen.push(worker);
    }
    a_while(side);
}

/// Says what was seen, past the test runner.
pub fn say(what: &str, pinged: &Pinged) {
    let _ = writeln!(std::io::stderr(), "{what}: {pinged:?}");
}

impl Drop for Pinger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines of answers are `[1700000000.123456] 64 bytes from 10.2.0.0: icmp_seq=1 ttl=64 time=0.123 ms`; numbers begin again after 65535.
fn read(text: &str) -> Pinged {
    let number = |line: &str, word: &str| -> Option<f64> {
        line.split_once(word)?.1.split([' ', ']']).next()?.parse().ok()
    };
    let lines = text.lines().filter(|line| line.contains(" time=") && !line.contains("DUP!"));
    let answers: Vec<(f64, f64)> =
        lines.filter_map(|line| Some((number(line, "[")?, number(line, "icmp_seq=")?))).collect();
    // An answer may overtake another: what counts is how far the numbers have come.
    let (mut last, mut furthest) = (0, 0i64);
    for (_, sequence) in &answers {
        let step = (*sequence as i64 - last).rem_euclid(65536);
        let step = if step > 32768 { step - 65536 } else { step };
        last = *sequence as i64;
        furthest += step;
    }
    assert!(!answers.is_empty(), "nothing was answered: {text}");
    let times: Vec<f64> = answers.iter().map(|(at, _)| *at).collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    let span = times.last().unwrap_or(&0.0) - times.first().unwrap_or(&0.0);
    Pinged {
        answered: answers.len(),
        lost: usize::try_from(furthest).unwrap_or_default().saturating_sub(answers.len()),
        longest_gap: Duration::from_secs_f64(gaps.fold(0.0, f64::max)),
        span: Duration::from_secs_f64(span),
    }
}
