// SPDX-License-Identifier: Apache-2.0
//! `make bench`: Isthmus beside the others, in the same run, in turns. Results go into docs/benchmarks.md.

mod agent;
mod cni;
mod contenders;
mod duo;
mod machine;
mod report;
mod stats;
mod tools;
mod tunnel;
mod wireguard;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use isthmus_testkit::Lab;
use xtask::places::Places;

#[derive(Parser)]
#[command(name = "isthmus-bench", about = "Isthmus beside the others, on this machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, print, and write docs/benchmarks.md
    Run {
        /// Only these parts; the others keep what docs/benchmarks.md has
        #[arg(long, value_enum)]
        only: Vec<Part>,
        /// Rounds of each measurement; the medians of the rounds are told
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Print, and leave docs/benchmarks.md as it is
        #[arg(long)]
        dry_run: bool,
    },
    /// Be a node's agent that has no Kubernetes
    #[command(hide = true)]
    Agent {
        directory: PathBuf,
        #[arg(long)]
        dual_stack: bool,
    },
}

/// A part of the benchmark; each has a section of its own in docs/benchmarks.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Latency of the CNI plugin
    Cni,
    /// Throughput and latency of tunnels
    Tunnel,
    /// isthmus-wg beside other WireGuard programs
    Wg,
    /// Import latency and memory on the lab `duo`
    Duo,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Agent { directory, dual_stack } => agent::run(&directory, dual_stack),
        Command::Run { only, rounds, dry_run } => run(&only, rounds, dry_run),
    }
}

fn run(only: &[Part], rounds: usize, dry_run: bool) -> Result<()> {
    ensure!(rounds > 0, "give at least one round: --rounds 1");
    let Some(lab) = Lab::new("bench") else {
        anyhow::bail!("network namespaces are made: run as root");
    };
    let places = Places::find()?;
    let wanted = |part: Part| only.is_empty() || only.contains(&part);
    let mut sections = Vec::new();
    if wanted(Part::Cni) {
        sections.push(("cni", cni::measure(&lab, &places, rounds)?));
    }
    if wanted(Part::Tunnel) {
        sections.push(("tunnel", tunnel::measure(&lab, &places, rounds)?));
    }
    if wanted(Part::Wg) {
        sections.push(("wg", wireguard::measure(&lab, &places, rounds)?));
    }
    if wanted(Part::Duo) {
        sections.push(("duo", duo::measure(&places, rounds)?));
    }
    let document = places.repo.join("docs/benchmarks.md");
    for (section, text) in sections {
        let text = format!("{}\n\n{text}", machine::describe()?);
        println!("\n## {section}\n\n{text}");
        if !dry_run {
            report::replace_section(&document, section, &text)?;
        }
    }
    Ok(())
}
