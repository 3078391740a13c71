// SPDX-License-Identifier: Apache-2.0
//! WireGuard in userspace: `isthmus-wg` beside the others, each configured by wg(8).

use std::fmt::Write as _;

use anyhow::{Context, Result};
use isthmus_testkit::Lab;
use serde_json::Value;
use xtask::places::Places;
use xtask::tools::{BORINGTUN_CLI, GOTATUN_CLI, WIREGUARD_GO, WIREGUARD_GO_TAILSCALE};

use crate::cni::until;
use crate::contenders::{Carrier, Pair, drain};
use crate::report::table;
use crate::stats::{in_turn, median, percentile, shown};
use crate::tools;
use crate::tunnel::round_trips_ms;

const OURS: &str = "isthmus-wg";
const TAILSCALE: &str = "wireguard-go, tailscale's";
/// Seconds of one iperf3 run.
const SECONDS: u32 = 3;
const DATAGRAM_SECONDS: u32 = 2;
const STREAMS: u32 = 32;
/// Sizes of datagrams, bytes, and the rates at which they are offered, Mb/s of their content, one after the other. The best of what arrives
/// counts: a program that is offered more than it carries spends its time on what it drops, and each has another such limit.
const LARGE: (u32, [u32; 4]) = (1400, [150, 300, 600, 1200]);
const SMALL: (u32, [u32; 4]) = (64, [20, 40, 80, 160]);
/// Echo requests of one run, 5 ms apart.
const ECHOES: u32 = 200;
const MANY_PEERS: u32 = 1000;

/// What is measured, in the order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    Stream,
    Streams,
    Datagrams,
    Cpu,
    Small,
    Idle,
    Loaded,
    Cut,
    Memory,
    MemoryManyPeers,
}

/// With whom a goal compares, and the goal: at least, or at most, so many times.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Goal {
    AtLeast(f64, Whom),
    AtMost(f64, Whom),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    Named(&'static str),
    BestOther,
}

const METRICS: [Metric; 10] = [
    Metric::Stream,
    Metric::Streams,
    Metric::Datagrams,
    Metric::Cpu,
    Metric::Small,
    Metric::Idle,
    Metric::Loaded,
    Metric::Cut,
    Metric::Memory,
    Metric::MemoryManyPeers,
];

impl Metric {
    fn head(self) -> String {
        match self {
            Self::Stream => "1 TCP stream, Gb/s".into(),
            Self::Streams => format!("{STREAMS} TCP streams, Gb/s"),
            Self::Datagrams => "UDP 1400, Gb/s".into(),
            Self::Cpu => "CPU s per GB".into(),
            Self::Small => "UDP 64, 1000/s".into(),
            Self::Idle => "ping idle p50, ms".into(),
            Self::Loaded => "ping loaded p99, ms".into(),
            Self::Cut => "1 stream, datagrams cut, Gb/s".into(),
            Self::Memory => "memory, MB".into(),
            Self::MemoryManyPeers => format!("with {MANY_PEERS} peers, MB"),
        }
    }

    fn goals(self) -> Vec<Goal> {
        let (go, tun, boring) =
            (Whom::Named(TAILSCALE), Whom::Named("gotatun"), Whom::Named("boringtun-cli"));
        match self {
            Self::Stream | Self::Streams => {
                vec![Goal::AtLeast(2.0, go), Goal::AtLeast(9.0, tun), Goal::AtLeast(15.0, boring)]
            }
            Self::Datagrams => vec![Goal::AtLeast(1.5, go)],
            Self::Cpu => vec![Goal::AtMost(0.5, go)],
            Self::Small => vec![Goal::AtLeast(1.5, Whom::BestOther)],
            Self::Idle | Self::Loaded => vec![Goal::AtMost(0.8, Whom::BestOther)],
            Self::Cut => vec![Goal::AtLeast(1.2, Whom::BestOther)],
            Self::Memory | Self::MemoryManyPeers => vec![Goal::AtMost(1.0, Whom::BestOther)],
        }
    }
}

/// What one contender achieved: a value a round for each metric, and the round trips.
#[derive(Clone, Default)]
struct Samples {
    values: Vec<(Metric, f64)>,
    idle_ms: Vec<f64>,
    loaded_ms: Vec<f64>,
    /// Runs that ended with an error; they count for nothing else.
    failed: Vec<Metric>,
}

impl Samples {
    fn note(&mut self, metric: Metric, value: f64) {
        self.values.push((metric, value));
    }

    fn told(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Idle => percentile(&self.idle_ms, 0.5),
            Metric::Loaded => percentile(&self.loaded_ms, 0.99),
            _ => {
                let values = self.values.iter().filter(|(of, _)| *of == metric);
                median(&values.map(|(_, value)| *value).collect::<Vec<_>>())
            }
        }
    }

    /// One round. A run that fails is told and left out.
    fn take(&mut self, pair: &Pair) -> Result<()> {
        let cpu = pair.cpu_seconds();
        if let Some(stream) = self.attempt(Metric::Stream, iperf(pair, "")) {
            self.note(Metric::Stream, stream.gbits);
            self.note(Metric::Cpu, (pair.cpu_seconds() - cpu) / stream.gigabytes);
        }
        if let Some(streams) = self.attempt(Metric::Streams, iperf(pair, &format!("-P {STREAMS}"))) {
            self.note(Metric::Streams, streams.gbits);
        }
        if let Some(rate) = self.best_of(Metric::Datagrams, pair, LARGE, |carried| carried.gbits) {
            self.note(Metric::Datagrams, rate);
        }
        if let Some(rate) = self.best_of(Metric::Small, pair, SMALL, |carried| carried.datagrams_per_s / 1e3)
        {
            self.note(Metric::Small, rate);
        }
        self.idle_ms.extend(pings(pair)?);
        let loaded = std::thread::scope(|scope| {
            let load = scope.spawn(|| iperf(pair, ""));
            let round_trips = pings(pair);
            load.join().expect("iperf3 is run").and(round_trips)
        });
        let round_trips = self.attempt(Metric::Loaded, loaded).unwrap_or_default();
        self.loaded_ms.extend(round_trips);
        let cut = |how: &str| {
            pair.hosts.iter().try_for_each(|host| {
                host.try_sh(&format!("ethtool -K wire tx-udp-segmentation {how}")).map(drop)
            })
        };
        cut("off")?;
        let carried = iperf(pair, "");
        cut("on")?;
        if let Some(stream) = self.attempt(Metric::Cut, carried) {
            self.note(Metric::Cut, stream.gbits);
        }
        Ok(())
    }

    fn attempt<T>(&mut self, metric: Metric, outcome: Result<T>) -> Option<T> {
        outcome
            .inspect_err(|error| {
                eprintln!("    left out, {}: {error:#}", metric.head());
                self.failed.push(metric);
            })
            .ok()
    }

    /// The best of what arrives of datagrams of a size, over all rates at which they are offered. None if each run failed.
    fn best_of(
        &mut self,
        metric: Metric,
        pair: &Pair,
        (bytes, rates): (u32, [u32; 4]),
        of: impl Fn(&Carried) -> f64,
    ) -> Option<f64> {
        let mut best = None;
        for mbits in rates {
            let carried = iperf(pair, &format!("-u -b {mbits}M -l {bytes} -t {DATAGRAM_SECONDS}"));
            let arrived = self.attempt(metric, carried).map(|carried| of(&carried));
            best = arrived.into_iter().chain(best).max_by(f64::total_cmp);
        }
        best
    }
}

/// What one run of iperf3 carried, as its receiver saw it.
struct Carried {
    gbits: f64,
    gigabytes: f64,
    datagrams_per_s: f64,
}

fn iperf(pair: &Pair, options: &str) -> Result<Carried> {
    // Of -t given twice the last one holds.
    let printed = pair.hosts[0].try_sh(&format!("iperf3 -J -c {} -t {SECONDS} {options}", pair.target))?;
    let result: Value = serde_json::from_str(&printed).context("iperf3 prints JSON")?;
    carried(&result["end"])
}

fn carried(end: &Value) -> Result<Carried> {
    let received = &end["sum_received"];
    let value = |key: &str| received[key].as_f64().with_context(|| format!("iperf3 tells no {key}: {end}"));
    let (bits, seconds) = (value("bits_per_second")?, value("seconds")?);
    // Of datagrams it tells how many were sent and how many are lost.
    let arrived =
        received["packets"].as_f64().unwrap_or(0.0) - received["lost_packets"].as_f64().unwrap_or(0.0);
    Ok(Carried { gbits: bits / 1e9, gigabytes: value("bytes")? / 1e9, datagrams_per_s: arrived / seconds })
}

fn pings(pair: &Pair) -> Result<Vec<f64>> {
    let line = format!("ping -n -i 0.005 -c {ECHOES} -W 1 {} || true", pair.target);
    Ok(round_trips_ms(&pair.hosts[0].try_sh(&line)?))
}

/// Measures and returns tables and a plot.
///
/// # Errors
/// A program is missing and cannot be built, or a tunnel does not come up.
pub(crate) fn measure(lab: &Lab, places: &Places, rounds: usize) -> Result<String> {
    tools::need(&["iperf3", "wireguard-tools", "iputils-ping", "iproute2", "ethtool"])?;
    let contender = |program, device, arguments: &[&'static str]| Carrier::Wireguard {
        program,
        arguments: arguments.to_vec(),
        device,
    };
    let rust = ["--foreground", "--disable-drop-privileges"];
    let go = WIREGUARD_GO.build(places)?.join("wireguard-go");
    let tailscale = WIREGUARD_GO_TAILSCALE.build(places)?.join("wireguard-go");
    let contenders = [
        ("no tunnel", Carrier::Wire),
        (OURS, contender(tools::ours(OURS)?, "iwg", &["--foreground"])),
        (TAILSCALE, contender(tailscale, "tsg", &["--foreground"])),
        ("wireguard-go", contender(go, "wgo", &["--foreground"])),
        ("gotatun", contender(GOTATUN_CLI.build(places)?, "gtt", &rust)),
        ("boringtun-cli", contender(BORINGTUN_CLI.build(places)?, "brt", &rust)),
    ];
    let (mut pairs, mut absent) = (Vec::new(), Vec::new());
    for (name, carrier) in &contenders {
        match started(lab, name, carrier) {
            Ok(pair) => pairs.push(pair),
            Err(error) if *name == OURS || *carrier == Carrier::Wire => return Err(error),
            Err(error) => {
                eprintln!("  wireguard: left out: {error:#}");
                absent.push(*name);
            }
        }
    }
    let mut samples = vec![Samples::default(); pairs.len()];
    for (taken, pair) in samples.iter_mut().zip(&pairs) {
        taken.note(Metric::Memory, pair.resident_mb());
    }
    for round in 0..rounds {
        for turn in 0..pairs.len() {
            let index = in_turn(round, turn, pairs.len());
            eprintln!("  wireguard: round {}, {}", round + 1, pairs[index].name);
            samples[index].take(&pairs[index]).with_context(|| pairs[index].name.clone())?;
        }
    }
    for (taken, pair) in samples.iter_mut().zip(&pairs).filter(|(_, pair)| !pair.processes.is_empty()) {
        pair.add_peers(MANY_PEERS)?;
        taken.note(Metric::MemoryManyPeers, pair.resident_mb());
    }
    let named: Vec<(&str, &Samples)> = pairs.iter().map(|pair| pair.name.as_str()).zip(&samples).collect();
    Ok(about(places, rounds)?
        + &results(&named)
        + &left_out(&named)
        + &not_there(&absent)
        + "\n"
        + &goals(&named)
        + "\n"
        + &plot(&named))
}

/// Two hosts with the tunnel, which carries a stream.
fn started(lab: &Lab, name: &str, carrier: &Carrier) -> Result<Pair> {
    let pair = Pair::new(lab, name, carrier).with_context(|| name.to_owned())?;
    // It ends with its namespace.
    let mut server = pair.hosts[1].spawn("iperf3", &["--server"])?;
    drain(&mut server);
    until(|| pair.hosts[0].try_sh(&format!("iperf3 -c {} -t 1", pair.target)).map(drop))
        .with_context(|| format!("{name}: iperf3"))?;
    Ok(pair)
}

fn about(places: &Places, rounds: usize) -> Result<String> {
    Ok(format!(
        "iperf3 for {SECONDS} s, {rounds} rounds in turns, medians of what its receiver counts; round trips of {} echoes. Both ends of a \
         tunnel and both of iperf3 share the cores. CPU is what both tunnel processes use for 10^9 bytes of one TCP stream; memory \
         (VmRSS) is of the larger process, before the rounds, and at the end with {MANY_PEERS} peers more. Datagrams are offered at {} Mb/s ({} \
         bytes) and {} Mb/s ({} bytes), {DATAGRAM_SECONDS} s each; the best of what arrives counts. \"Datagrams cut\": the veth pair takes no \
         UDP segmentation. tailscale/wireguard-go {}, wireguard-go {}, gotatun-cli {}, boringtun-cli {}.\n\n",
        rounds as u32 * ECHOES,
        LARGE.1.map(|rate| rate.to_string()).join(", "),
        LARGE.0,
        SMALL.1.map(|rate| rate.to_string()).join(", "),
        SMALL.0,
        WIREGUARD_GO_TAILSCALE.version(places, "github.com/tailscale/wireguard-go")?,
        WIREGUARD_GO.version(places, "golang.zx2c4.com/wireguard")?,
        GOTATUN_CLI.version,
        BORINGTUN_CLI.version,
    ))
}

fn results(of: &[(&str, &Samples)]) -> String {
    let mut head = vec!["path".to_owned()];
    head.extend(METRICS.map(Metric::head));
    let rows: Vec<_> = of
        .iter()
        .map(|(name, taken)| {
            let values = METRICS.iter().map(|metric| shown(taken.told(*metric)));
            std::iter::once((*name).to_owned()).chain(values).collect()
        })
        .collect();
    table(&head.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
}

/// Runs that failed, by program and metric; nothing if none did.
fn left_out(of: &[(&str, &Samples)]) -> String {
    let mut told = Vec::new();
    for (name, taken) in of {
        for metric in METRICS {
            let count = taken.failed.iter().filter(|failed| **failed == metric).count();
            if count > 0 {
                told.push(format!("{name}, {}: {count}", metric.head()));
            }
        }
    }
    if told.is_empty() {
        String::new()
    } else {
        format!("\nRuns that failed and count for nothing: {}.\n", told.join("; "))
    }
}

/// Programs that did not start.
fn not_there(absent: &[&str]) -> String {
    if absent.is_empty() {
        String::new()
    } else {
        format!("\nDid not start, and are not in the table: {}.\n", absent.join(", "))
    }
}

fn goals(of: &[(&str, &Samples)]) -> String {
    let rows: Vec<_> = METRICS
        .iter()
        .flat_map(|metric| metric.goals().into_iter().map(|goal| goal_row(of, *metric, goal)))
        .collect();
    table(&["of isthmus-wg", "compared with", "ratio", "goal", "met"], &rows)
}

fn goal_row(of: &[(&str, &Samples)], metric: Metric, goal: Goal) -> Vec<String> {
    let told =
        |name: &str| of.iter().find(|(of, _)| *of == name).map_or(f64::NAN, |(_, taken)| taken.told(metric));
    let (factor, whom, least) = match goal {
        Goal::AtLeast(factor, whom) => (factor, whom, true),
        Goal::AtMost(factor, whom) => (factor, whom, false),
    };
    let others = of.iter().filter(|(name, _)| !matches!(*name, OURS | "no tunnel"));
    let best = others.map(|(name, taken)| (taken.told(metric), *name)).filter(|(value, _)| !value.is_nan());
    let best =
        if least { best.max_by(|a, b| a.0.total_cmp(&b.0)) } else { best.min_by(|a, b| a.0.total_cmp(&b.0)) };
    let (value, name) = match whom {
        Whom::Named(name) => (told(name), name.to_owned()),
        Whom::BestOther => {
            best.map_or((f64::NAN, "–".into()), |(value, name)| (value, format!("the best other, {name}")))
        }
    };
    let ratio = told(OURS) / value;
    let (sign, met) = if least { ("≥", ratio >= factor) } else { ("≤", ratio <= factor) };
    vec![
        metric.head(),
        name,
        format!("{}x", shown(ratio)),
        format!("{sign} {factor}x"),
        if met { "yes" } else { "no" }.into(),
    ]
}

/// A bar for each contender: one TCP stream.
fn plot(of: &[(&str, &Samples)]) -> String {
    let tunnels: Vec<_> = of.iter().filter(|(name, _)| *name != "no tunnel").collect();
    let names: Vec<String> = tunnels.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let values: Vec<String> = tunnels.iter().map(|(_, taken)| shown(taken.told(Metric::Stream))).collect();
    let mut text = String::from("```mermaid\nxychart-beta\n    title \"One TCP stream, Gb/s\"\n");
    let _ = writeln!(text, "    x-axis [{}]", names.join(", "));
    let _ = writeln!(
        text,
        "    y-axis \"Gb/s\" 0 --> {}",
        tunnels.iter().map(|(_, taken)| taken.told(Metric::Stream)).fold(1.0, f64::max).ceil()
    );
    let _ = writeln!(text, "    bar [{}]\n```", values.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: &[(Metric, f64)]) -> Samples {
        Samples { values: of.to_vec(), ..Samples::default() }
    }

    #[test]
    fn a_goal_is_met_by_the_ratio_to_whom_it_names() {
        let ours = samples(&[(Metric::Stream, 5.0), (Metric::Memory, 4.0)]);
        let go = samples(&[(Metric::Stream, 2.5), (Metric::Memory, 30.0)]);
        let boring = samples(&[(Metric::Stream, 0.4), (Metric::Memory, 3.0)]);
        let of = [("no tunnel", &ours), (OURS, &ours), (TAILSCALE, &go), ("boringtun-cli", &boring)];
        let row = |metric, goal| goal_row(&of, metric, goal);
        let faster = row(Metric::Stream, Goal::AtLeast(2.0, Whom::Named(TAILSCALE)));
        assert_eq!(faster[1..], [TAILSCALE, "2.00x", "≥ 2x", "yes"]);
        let smaller = row(Metric::Memory, Goal::AtMost(1.0, Whom::BestOther));
        assert_eq!(smaller[1..], ["the best other, boringtun-cli", "1.33x", "≤ 1x", "no"]);
        let unknown = row(Metric::Stream, Goal::AtLeast(9.0, Whom::Named("gotatun")));
        assert_eq!(unknown[4], "no", "what was not measured is not met");
    }

    #[test]
    fn a_run_that_fails_is_told_and_counts_for_nothing() {
        let mut taken = samples(&[(Metric::Small, 40.0)]);
        assert_eq!(taken.attempt(Metric::Small, anyhow::Ok(1)), Some(1));
        assert_eq!(left_out(&[(OURS, &taken)]), "");
        assert_eq!(taken.attempt(Metric::Small, Err::<u8, _>(anyhow::anyhow!("no answer"))), None);
        assert_eq!(taken.told(Metric::Small), 40.0);
        assert!(left_out(&[(OURS, &taken)]).contains("isthmus-wg, UDP 64, 1000/s: 1."));
        assert_eq!(not_there(&[]), "");
        assert!(
            not_there(&["gotatun", "boringtun-cli"]).contains("not in the table: gotatun, boringtun-cli.")
        );
    }

    #[test]
    fn what_arrived_of_datagrams_is_what_was_sent_less_what_was_lost() {
        let end = serde_json::json!({"sum_received": {
            "bits_per_second": 2e9, "seconds": 2.0, "bytes": 5e8, "packets": 1000, "lost_packets": 100
        }});
        let carried = carried(&end).unwrap();
        assert_eq!((carried.gbits, carried.gigabytes, carried.datagrams_per_s), (2.0, 0.5, 450.0));
    }
}
