// SPDX-License-Identifier: Apache-2.0
//! A steady ping between two pods, counted packet by packet.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use isthmus_testkit::within;

use crate::lab::on_node;
use crate::pod::{IN_POD, Pod};

/// Seconds between two packets: with the coarsest of timers it still gives 100 packets a second.
const INTERVAL: &str = "0.008";

/// Packets that follow a flow's end, so that what was sent before it is not taken for lost while it is under way.
const LATER: u32 = 25;
const TAIL: Duration = Duration::from_secs(10);

/// A running ping, 100 packets a second.
pub struct Flow {
    node: String,
    file: String,
    about: String,
}

/// What became of a flow's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Packets that were sent.
    pub sent: u32,
    /// Sequence numbers that never came back.
    pub lost: Vec<u32>,
    /// The longest run of lost packets, as time.
    pub longest_gap: Duration,
}

impl Flow {
    /// Starts a flow and waits until its first packets come back.
    #[track_caller]
    pub fn start(from: &Pod, address: &str) -> Self {
        Self::start_with(from, address, &[])
    }

    /// As [`Flow::start`], with further options of `ping(8)`.
    #[track_caller]
    pub fn start_with(from: &Pod, address: &str, options: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let file = format!("/run/e2e-flow-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // The shell's own number is that of ping, since each `exec` replaces it.
        let script = format!(
            "file=$1; shift; ( echo $BASHPID > $file.pid; {IN_POD} ) > $file.log 2>&1 < /dev/null & for i in $(seq 150); do grep -q 'icmp_seq=3' $file.log && exit 0; sleep 0.1; done; cat $file.log >&2; exit 4"
        );
        let about = format!("{}/{} to {address}", from.cluster, from.name);
        let ping = [file.as_str(), &from.ipv4, "ping", "-n", "-i", INTERVAL, "-s", "64"];
        let arguments: Vec<&str> = ping.iter().chain(options).chain(&[address]).copied().collect();
        on_node(&from.node, &script, &arguments)
            .unwrap_or_else(|error| panic!("the flow from {about} does not start: {error:#}"));
        Self { node: from.node.clone(), file, about }
    }

    /// Ends the flow and counts. Every packet that was sent before this call has its time to come back: the flow goes on until a
    /// later one came, or the deadline says that none does.
    #[track_caller]
    pub fn stop(self) -> Tally {
        let until = Instant::now() + TAIL;
        let mut judged = None;
        if let Some(reached) = self.answered() {
            while judged.is_none() && Instant::now() < until {
                judged = self.answered().filter(|last| *last >= reached + LATER);
            }
        }
        on_node(&self.node, "kill -INT $(cat $1.pid)", &[&self.file])
            .unwrap_or_else(|error| panic!("{error:#}"));
        let log = within(Duration::from_secs(5), || {
            let log =
                on_node(&self.node, "cat $1.log", &[&self.file]).map_err(|error| format!("{error:#}"))?;
            if log.contains("packets transmitted") {
                Ok(log)
            } else {
                Err("ping has not ended yet".to_owned())
            }
        });
        // Only a leftover file of our own; the node goes with the lab.
        let _ = on_node(&self.node, "rm -f $1.pid $1.log", &[&self.file]);
        let tally =
            Tally::read(&log, judged).unwrap_or_else(|| panic!("ping's output cannot be read: {log}"));
        eprintln!(
            "flow from {}: {} sent, {} lost, longest gap {:?}",
            self.about,
            tally.sent,
            tally.lost.len(),
            tally.longest_gap
        );
        tally
    }
}

impl Flow {
    /// The highest sequence number that came back so far.
    fn answered(&self) -> Option<u32> {
        let log = on_node(&self.node, "tail -n 50 $1.log", &[&self.file]).ok()?;
        log.lines().filter(|line| line.contains(" bytes from ")).filter_map(sequence).max()
    }
}

fn sequence(line: &str) -> Option<u32> {
    line.split("icmp_seq=").nth(1)?.split_whitespace().next()?.parse().ok()
}

impl Drop for Flow {
    /// A test that fails in between leaves no ping behind. After [`Flow::stop`] there is nothing left to end.
    fn drop(&mut self) {
        let script = "[ -f $1.pid ] && kill -INT $(cat $1.pid) && rm -f $1.pid $1.log; true";
        let _ = on_node(&self.node, script, &[&self.file]);
    }
}

impl Tally {
    /// Reads ping's output and judges packets up to this one. Without one, all but the last two: these may still have been under way
    /// when it ended.
    fn read(log: &str, judged: Option<u32>) -> Option<Self> {
        let answered = log.lines().filter(|line| line.contains(" bytes from "));
        let came: BTreeSet<u32> = answered.filter_map(sequence).collect();
        let summary = log.lines().find(|line| line.contains("packets transmitted"))?;
        let sent: u32 = summary.split_whitespace().next()?.parse().ok()?;
        let took_ms: u64 = summary.rsplit("time ").next()?.trim().strip_suffix("ms")?.parse().ok()?;
        let last = judged.unwrap_or(sent.saturating_sub(2)).min(sent);
        let lost: Vec<u32> = (1..=last).filter(|sequence| !came.contains(sequence)).collect();
        let mut longest: u64 = 0;
        let mut run = 0;
        let mut before = None;
        for &sequence in &lost {
            run = if before == Some(sequence.wrapping_sub(1)) { run + 1 } else { 1 };
            longest = longest.max(run);
            before = Some(sequence);
        }
        Some(Self {
            sent,
            lost,
            longest_gap: Duration::from_millis(longest * took_ms / u64::from(sent.max(1))),
        })
    }

    /// Fails unless every packet came back.
    #[track_caller]
    pub fn nothing_lost(&self) {
        assert!(self.sent >= 20, "only {} packets were sent, that proves nothing", self.sent);
        assert!(
            self.lost.is_empty(),
            "{} of {} packets were lost, longest gap {:?}: {:?}",
            self.lost.len(),
            self.sent,
            self.longest_gap,
            self.lost
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_packets_are_counted_by_their_sequence_numbers() {
        let log = "\
PING 10.2.0.1 (10.2.0.1) 64(92) bytes of data.
72 bytes from 10.2.0.1: icmp_seq=1 ttl=61 time=0.9 ms
From 10.1.0.1 icmp_seq=2 Destination Host Unreachable
72 bytes from 10.2.0.1: icmp_seq=5 ttl=61 time=0.9 ms
--- 10.2.0.1 ping statistics ---
7 packets transmitted, 2 received, 71% packet loss, time 70ms
";
        let tally = Tally::read(log, None).expect("a tally");

        assert_eq!(tally, Tally { sent: 7, lost: vec![2, 3, 4], longest_gap: Duration::from_millis(30) });
        let until_the_third = Tally::read(log, Some(3)).expect("a tally");
        assert_eq!(
            until_the_third.lost,
            [2, 3],
            "what came later than the last that is judged may still come"
        );
    }
}
