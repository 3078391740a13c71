// SPDX-License-Identifier: Apache-2.0
//! `make test` and `make test-fast`: every stage in turn, and the counts at the end.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Packages whose tests need root, Go-built binaries or clusters.
const LABORATORY: [&str; 5] =
    ["isthmus-api-tests", "isthmus-netns-tests", "isthmus-plugins", "isthmus-wg-device", "isthmus-e2e"];

/// What a stage counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// One command of the suite.
struct Stage {
    name: &'static str,
    command: Vec<String>,
}

/// Runs the suite: all of it, or what needs neither root nor Go.
pub fn run(full: bool) -> Result<()> {
    let mut rows = Vec::new();
    let mut broken = Vec::new();
    for stage in stages(full) {
        println!("\n=== {}: {}", stage.name, stage.command.join(" "));
        let started = Instant::now();
        let (counts, success) = run_stage(&stage)?;
        if !success {
            broken.push(stage.name);
        }
        rows.push((stage.name, counts, started.elapsed(), success));
        if !success && stage.name == "build" {
            break;
        }
    }
    let total = report(&rows);
    // A stage that fails without a counted test (a build, a lint) is a failure too.
    let failed = total.failed.max(broken.len() as u64);
    println!("{} passed, {failed} failed, {} skipped", total.passed, total.ignored);
    if !broken.is_empty() {
        bail!("failed: {}", broken.join(", "));
    }
    Ok(())
}

fn stages(full: bool) -> Vec<Stage> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let stage = |name, text: &str| Stage { name, command: words(text) };
    let mut unit = words("cargo test --workspace --no-fail-fast");
    for package in LABORATORY {
        unit.extend(["--exclude".to_owned(), package.to_owned()]);
    }
    let mut all =
        vec![stage("format", "cargo fmt --all --check"), stage("build", "cargo build --workspace --bins")];
    all.push(Stage { name: "unit", command: unit });
    // A workspace of its own: boringtun's clock is another there.
    all.push(stage("wire", "cargo test --manifest-path fuzz/wire/Cargo.toml --target-dir target/wire"));
    if full {
        all.push(stage("lint", "cargo clippy --workspace --all-targets -- -D warnings"));
        all.push(stage("namespaces", "cargo test -p isthmus-netns-tests --no-fail-fast -- --test-threads=1"));
        all.push(stage("plugins", "cargo test -p isthmus-plugins --no-fail-fast"));
        all.push(stage("wireguard", "cargo test -p isthmus-wg-device --no-fail-fast"));
        all.push(stage("api", "cargo test -p isthmus-api-tests --no-fail-fast"));
        all.push(stage("operators", "cargo test -p isthmus-operator --test two_clusters"));
        all.push(stage(
            "clusters",
            "cargo test -p isthmus-e2e --lib --test duo --no-fail-fast -- --test-threads=1 --nocapture",
        ));
        all.push(stage(
            "chained",
            "cargo test -p isthmus-e2e --test chained --no-fail-fast -- --test-threads=1 --nocapture",
        ));
        // The demo once more, where a router lies between the clusters and one of them is behind address translation.
        all.push(stage("routed", "cargo run --quiet --package xtask -- demo --topology routed"));
        all.push(stage("lab down", "./lab down"));
    }
    all
}

fn run_stage(stage: &Stage) -> Result<(Counts, bool)> {
    let mut child = Command::new(&stage.command[0])
        .args(&stage.command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", stage.command[0]))?;
    let stdout = child.stdout.take().context("the stage's output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.unwrap_or_default();
        counts.add(parse_result(&line).unwrap_or_default());
        println!("{line}");
    }
    let status = child.wait().context("wait for the stage")?;
    Ok((counts, status.success()))
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// Reads libtest's closing line: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn parse_result(line: &str) -> Option<Counts> {
    let rest = line.trim_start().strip_prefix("test result: ")?;
    let (_, rest) = rest.split_once(". ")?;
    let mut counts = Counts::default();
    for part in rest.split(';') {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
        let Ok(number) = number.parse() else { continue };
        match what {
            "passed" => counts.passed = number,
            "failed" => counts.failed = number,
            "ignored" => counts.ignored = number,
            _ => {}
        }
    }
    Some(counts)
}

fn report(rows: &[(&str, Counts, Duration, bool)]) -> Counts {
    let mut total = Counts::default();
    println!("\n{:<12} {:>7} {:>7} {:>7} {:>8}", "stage", "passed", "failed", "ignored", "seconds");
    for (name, counts, took, success) in rows {
        let verdict = if *success { "" } else { "  FAILED" };
        let seconds = took.as_secs();
        println!(
            "{name:<12} {:>7} {:>7} {:>7} {seconds:>8}{verdict}",
            counts.passed, counts.failed, counts.ignored
        );
        total.add(*counts);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_a_test_program_is_counted() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";

        assert_eq!(parse_result(line), Some(Counts { passed: 12, failed: 2, ignored: 1 }));
        assert_eq!(parse_result("test something ... ok"), None);
    }

    #[test]
    fn the_fast_suite_needs_no_laboratory() {
        let text: Vec<String> = stages(false).into_iter().map(|stage| stage.command.join(" ")).collect();

        assert!(text.iter().all(|command| !command.contains("-p isthmus-e2e")), "{text:?}");
        assert!(text.iter().any(|command| command.contains("--exclude isthmus-e2e")), "{text:?}");
    }
}
