// SPDX-License-Identifier: Apache-2.0
//! Throughput and round trips between two hosts, with each tunnel and with none.

use anyhow::{Context, Result};
use isthmus_testkit::Lab;
use serde_json::Value;
use xtask::places::Places;
use xtask::tools::{BORINGTUN_CLI, WIREGUARD_GO};

use crate::cni::until;
use crate::contenders::{Carrier, Pair, drain};
use crate::report::table;
use crate::stats::{in_turn, median, percentile, shown};
use crate::tools;

/// Seconds of one iperf3 run.
const SECONDS: u32 = 3;
const STREAMS: [u32; 2] = [1, 8];
/// Echo requests of one run, 5 ms apart.
const ECHOES: u32 = 200;

/// What one contender achieved, one value a round but for the round trips.
#[derive(Clone, Default)]
struct Samples {
    gbits: [Vec<f64>; STREAMS.len()],
    cpu_seconds_per_gb: Vec<f64>,
    round_trips_ms: Vec<f64>,
    lost: u64,
}

/// Measures and returns the table.
///
/// # Errors
/// A program is missing and cannot be built, or a tunnel does not come up.
pub(crate) fn measure(lab: &Lab, places: &Places, rounds: usize) -> Result<String> {
    tools::need(&["iperf3", "wireguard-tools", "iputils-ping", "iproute2"])?;
    let boringtun = Carrier::Wireguard {
        program: BORINGTUN_CLI.build(places)?,
        arguments: vec!["--foreground", "--disable-drop-privileges"],
        device: "bt",
    };
    let go = Carrier::Wireguard {
        program: WIREGUARD_GO.build(places)?.join("wireguard-go"),
        arguments: vec!["--foreground"],
        device: "wgo",
    };
    let pairs = [
        Pair::new(lab, "no tunnel", &Carrier::Wire)?,
        Pair::new(lab, "isthmus-dataplane", &Carrier::Isthmus)?,
        Pair::new(lab, "boringtun-cli", &boringtun)?,
        Pair::new(lab, "wireguard-go", &go)?,
    ];
    for pair in &pairs {
        // It ends with its namespace.
        let mut server = pair.hosts[1].spawn("iperf3", &["--server"])?;
        drain(&mut server);
        until(|| pair.hosts[0].try_sh(&format!("iperf3 -c {} -t 1", pair.target)).map(drop))
            .with_context(|| format!("{}: iperf3", pair.name))?;
    }
    let mut samples = vec![Samples::default(); pairs.len()];
    for round in 0..rounds {
        for turn in 0..pairs.len() {
            let index = in_turn(round, turn, pairs.len());
            eprintln!("  tunnel: round {}, {}", round + 1, pairs[index].name);
            samples[index].take(&pairs[index])?;
        }
    }
    let text = format!(
        "iperf3 over TCP for {SECONDS} s, {rounds} rounds in turns, medians; round trips of {} echoes, sent while nothing else runs. \
         Both ends of a tunnel and both of iperf3 share the cores. boringtun-cli {}, wireguard-go {}. \
         CPU is what both tunnel processes use for 10^9 bytes of payload; memory is of one of them at the end.\n\n",
        rounds as u32 * ECHOES,
        BORINGTUN_CLI.version,
        WIREGUARD_GO.version(places, "golang.zx2c4.com/wireguard")?,
    );
    Ok(text + &rows(&pairs, &samples))
}

fn rows(pairs: &[Pair], samples: &[Samples]) -> String {
    let go = pairs.iter().position(|pair| pair.name == "wireguard-go");
    let go = go.map_or(f64::NAN, |index| median(&samples[index].gbits[0]));
    let rows = pairs.iter().zip(samples).map(|(pair, taken)| {
        let carried = !pair.processes.is_empty();
        let tunnel_only = |value: f64| if carried { shown(value) } else { "–".to_owned() };
        let mut row = vec![pair.name.clone()];
        row.extend(taken.gbits.iter().map(|rates| shown(median(rates))));
        row.push(format!("{}x", shown(median(&taken.gbits[0]) / go)));
        row.push(tunnel_only(median(&taken.cpu_seconds_per_gb)));
        row.push(shown(percentile(&taken.round_trips_ms, 0.5)));
        row.push(shown(percentile(&taken.round_trips_ms, 0.99)));
        row.push(taken.lost.to_string());
        row.push(tunnel_only(pair.resident_mb()));
        row
    });
    let rows: Vec<_> = rows.collect();
    table(
        &[
            "path",
            "1 stream, Gb/s",
            "8 streams, Gb/s",
            "1 stream : wireguard-go",
            "CPU s per GB",
            "round trip p50, ms",
            "p99, ms",
            "echoes lost",
            "memory, MB",
        ],
        &rows,
    )
}

impl Samples {
    fn take(&mut self, pair: &Pair) -> Result<()> {
        for (which, streams) in STREAMS.iter().enumerate() {
            let cpu = pair.cpu_seconds();
            let printed =
                pair.hosts[0].try_sh(&format!("iperf3 -J -c {} -t {SECONDS} -P {streams}", pair.target))?;
            let cpu = pair.cpu_seconds() - cpu;
            let result: Value = serde_json::from_str(&printed).context("iperf3 prints JSON")?;
            let received = &result["end"]["sum_received"];
            let value = |key: &str| received[key].as_f64().with_context(|| format!("iperf3 tells no {key}"));
            self.gbits[which].push(value("bits_per_second")? / 1e9);
            if which == 0 {
                self.cpu_seconds_per_gb.push(cpu / (value("bytes")? / 1e9));
            }
        }
        let printed =
            pair.hosts[0].try_sh(&format!("ping -n -i 0.005 -c {ECHOES} -W 1 {} || true", pair.target))?;
        let round_trips = round_trips_ms(&printed);
        self.lost += u64::from(ECHOES).saturating_sub(round_trips.len() as u64);
        self.round_trips_ms.extend(round_trips);
        Ok(())
    }
}

/// The round trips that ping(8) tells, one a line.
pub(crate) fn round_trips_ms(printed: &str) -> Vec<f64> {
    let of = |line: &str| line.split("time=").nth(1)?.split_whitespace().next()?.parse().ok();
    printed.lines().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_read_from_the_lines_of_answers_only() {
        let printed = "PING 10.200.0.2 (10.200.0.2) 56(84) bytes of data.\n\
                       64 bytes from 10.200.0.2: icmp_seq=1 ttl=64 time=0.061 ms\n\
                       From 10.200.0.1 icmp_seq=2 Destination Host Unreachable\n\
                       64 bytes from 10.200.0.2: icmp_seq=3 ttl=64 time=12 ms\n\
                       4 packets transmitted, 2 received, 50% packet loss, time 15ms\n";
        assert_eq!(round_trips_ms(printed), [0.061, 12.0]);
    }
}
