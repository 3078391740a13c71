// SPDX-License-Identifier: Apache-2.0
//! Pings that are sent at a fixed rate whether or not they are answered, and when which was.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::Side;

/// A running ping(8), a thousand a second.
pub struct Pinger(Child);

/// What came of it.
#[derive(Debug)]
pub struct Pinged {
    /// How many were sent.
    pub sent: usize,
    /// How many were not answered.
    pub lost: usize,
    /// The longest time between two answers.
    pub longest_gap: Duration,
    /// How long it took from the first answer to the last.
    pub span: Duration,
}

/// A thousand pings a second, until it is stopped.
pub fn pinger(side: &Side, to: &str) -> Pinger {
    let mut command = side.command(&format!("exec ping -n -D -i 0.001 -W 10 {to}"));
    Pinger(command.stdout(Stdio::piped()).spawn().unwrap())
}

impl Pinger {
    /// Ends it, once what is on its way has come back.
    ///
    /// # Panics
    /// When ping(8) says something else than it does.
    pub fn stop(mut self) -> Pinged {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.wait().unwrap();
        read(&text)
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines of answers are `[1700000000.123456] 64 bytes from 10.2.0.0: icmp_seq=1 ttl=64 time=0.123 ms`.
fn read(text: &str) -> Pinged {
    let answers: Vec<f64> = text
        .lines()
        .filter(|line| line.contains("icmp_seq=") && line.contains("time="))
        .map(|line| line.trim_start_matches('[').split(']').next().unwrap().parse().unwrap())
        .collect();
    let sent = text.lines().find(|line| line.contains("packets transmitted")).expect(text);
    let sent: usize = sent.split_whitespace().next().unwrap().parse().unwrap();
    let gaps = answers.windows(2).map(|pair| pair[1] - pair[0]);
    let span = answers.last().unwrap_or(&0.0) - answers.first().unwrap_or(&0.0);
    Pinged {
        sent,
        lost: sent - answers.len().min(sent),
        longest_gap: Duration::from_secs_f64(gaps.fold(0.0, f64::max)),
        span: Duration::from_secs_f64(span),
    }
}
