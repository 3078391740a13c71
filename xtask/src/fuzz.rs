// SPDX-License-Identifier: Apache-2.0
//! `make fuzz`: looks for inputs that break a fuzz target, led by what they reach (libFuzzer).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::places::Places;
use crate::run::{command, logged, output, step, succeeds};

/// What the compiler puts into the program for libFuzzer: a counter at each branch, comparisons, and the address sanitizer.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address";
/// The target whose time is virtual, which is a package of its own.
const WIRE: &str = "wg-wire";
/// An input that takes longer than this is a find.
const INPUT_S: u32 = 10;
const MEMORY_MB: u32 = 2048;

/// Runs the target for so many seconds, or until something is found.
pub fn run(places: &Places, target: &str, seconds: u32) -> Result<()> {
    let corpus = corpus(&places.repo.join("fuzz/corpus"), target)?;
    has_what_it_needs()?;
    let folder = places.repo.join("target/fuzz");
    let (built, log) = (build(places, target, &folder)?, places.log("fuzz"));
    let finds = folder.join("finds").join(target);
    fs::create_dir_all(&finds).with_context(|| format!("cannot make {}", finds.display()))?;
    let mut fuzzer = command(built, [format!("-max_total_time={seconds}"), format!("-timeout={INPUT_S}")]);
    fuzzer.arg(format!("-rss_limit_mb={MEMORY_MB}")).args(["-print_final_stats=1", "-print_funcs=0"]);
    fuzzer.arg(format!("-artifact_prefix={}/broken-", folder.join("finds").display()));
    fuzzer.args([&finds, &corpus]).env("ISTHMUS_FUZZ_TARGET", target);
    let ran = step(&format!("{target} for {seconds} s"), || logged(&mut fuzzer, &log));
    let said = fs::read_to_string(&log).unwrap_or_default();
    said.lines().filter(|line| line.starts_with("stat::")).for_each(|line| println!("{line}"));
    ran.with_context(|| format!("something was found; its input lies in {}/finds", folder.display()))
}

/// The committed inputs of the target.
fn corpus(folder: &Path, target: &str) -> Result<PathBuf> {
    let corpus = folder.join(target);
    if !target.is_empty() && corpus.is_dir() {
        return Ok(corpus);
    }
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    bail!("no target {target:?}: make fuzz TARGET=<one of {}>", names.join(", "))
}

fn has_what_it_needs() -> Result<()> {
    if !succeeds(&mut command("cargo", ["+nightly", "--version"])) {
        bail!("no nightly toolchain, whose compiler alone has these flags: rustup toolchain install nightly");
    }
    if !succeeds(&mut command("c++", ["--version"])) {
        bail!("no C++ compiler, which libFuzzer is built with: apt-get install g++");
    }
    Ok(())
}

fn build(places: &Places, target: &str, folder: &Path) -> Result<PathBuf> {
    let (package, program, features) = match target {
        WIRE => ("fuzz/wire", "isthmus-fuzz-wire-guided", "guided"),
        _ => ("fuzz/guided", "isthmus-fuzz-guided", ""),
    };
    let host = &host_of_nightly()?;
    // With a target named, build scripts and macros are built without the flags.
    let mut build = command("cargo", ["+nightly", "build", "--release", "--target", host, "--target-dir"]);
    build.arg(folder).args(["--bins", "--features", features]);
    build.current_dir(places.repo.join(package)).env("RUSTFLAGS", FLAGS);
    step("building the targets (minutes, once)", || logged(&mut build, &places.log("build-fuzz")))?;
    Ok(folder.join(host).join("release").join(program))
}

/// The machine that the nightly compiler builds for.
pub(crate) fn host_of_nightly() -> Result<String> {
    let version = output(&mut command("rustc", ["+nightly", "-vV"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say what machine it builds for")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_is_not_there_is_answered_with_those_that_are() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mesh-frames")).unwrap();
        assert!(corpus(folder.path(), "mesh-frames").is_ok());
        for wrong in ["", "mesh"] {
            let error = corpus(folder.path(), wrong).unwrap_err().to_string();
            assert!(error.contains("one of mesh-frames"), "{error}");
        }
    }
}
