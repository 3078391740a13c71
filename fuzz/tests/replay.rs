// SPDX-License-Identifier: Apache-2.0
//! Every input of the corpus, and mutations of them that are the same for the same seed.
//!
//! `ISTHMUS_FUZZ_SEED=<number>` chooses another series, `ISTHMUS_FUZZ_ROUNDS=<number>` how many mutations of each target,
//! `ISTHMUS_FUZZ_TARGET=<name>` one target.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use isthmus_fuzz::mutate::{Generator, mutate};
use isthmus_fuzz::{Run, SEEDS, TARGETS, corpus};

const SEED: u64 = 7300;
const ROUNDS: u64 = 2000;
/// Targets of public keys: each of their inputs takes a millisecond.
const SLOW: [&str; 4] = ["mesh-certificates", "root-key", "wg-datagrams", "wg-packets"];
const SLOW_ROUNDS: u64 = 500;
/// More of an input is not shown.
const SHOWN_BYTES: usize = 4096;

thread_local! {
    static WHERE: RefCell<String> = const { RefCell::new(String::new()) };
}

#[test]
fn no_input_of_the_corpus_and_no_mutation_of_one_breaks_a_target() {
    let seed = number("ISTHMUS_FUZZ_SEED").unwrap_or(SEED);
    println!("ISTHMUS_FUZZ_SEED={seed}");
    let report = take_hook();
    set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        WHERE.with(|told| *told.borrow_mut() = place);
    }));
    let only = std::env::var("ISTHMUS_FUZZ_TARGET").ok();
    let targets: Vec<_> =
        TARGETS.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)).collect();
    assert!(!targets.is_empty(), "ISTHMUS_FUZZ_TARGET={only:?} names no target");
    let (next, failures) = (AtomicUsize::new(0), std::sync::Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(targets.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((name, run)) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    failures.lock().unwrap().extend(replay(name, *run, seed).err());
                }
            });
        }
    });
    set_hook(report);
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "\n{}", failures.join("\n\n"));
}

/// Runs everything of one target, up to the first failure.
fn replay(name: &str, run: Run, seed: u64) -> Result<(), String> {
    let started = Instant::now();
    let inputs = corpus::read(name).map_err(|error| format!("{name} has no corpus: {error}"))?;
    for (file, input) in &inputs {
        attempt(run, input).map_err(|fault| told(name, &format!("file {file}"), input, &fault))?;
    }
    let inputs: Vec<Vec<u8>> = inputs.into_iter().map(|(_, input)| input).collect();
    let rounds =
        number("ISTHMUS_FUZZ_ROUNDS").unwrap_or(if SLOW.contains(&name) { SLOW_ROUNDS } else { ROUNDS });
    // Each target has a series of its own, whichever run beside it.
    let mut generator =
        Generator::new(name.bytes().fold(seed, |mixed, byte| mixed.wrapping_mul(31) ^ u64::from(byte)));
    for round in 0..rounds {
        let input = mutate(&inputs, &mut generator);
        let from = || format!("seed {seed}, mutation {round}");
        attempt(run, &input).map_err(|fault| told(name, &from(), &input, &fault))?;
    }
    println!("{name}: {} inputs, {rounds} mutations, {} ms", inputs.len(), started.elapsed().as_millis());
    Ok(())
}

fn attempt(run: Run, input: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| run(input))).map_err(|payload| {
        let place = WHERE.with(|told| told.borrow().clone());
        format!("{}\n  at {place}", message(payload.as_ref()))
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn told(target: &str, from: &str, input: &[u8], fault: &str) -> String {
    let shown = hex::encode(&input[..input.len().min(SHOWN_BYTES)]);
    let rest = if input.len() > SHOWN_BYTES { " (the rest is not shown)" } else { "" };
    format!("target {target} ({from}): {fault}\n  input of {} bytes: {shown}{rest}", input.len())
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")))
}

#[test]
fn every_target_has_inputs_to_begin_with_and_they_are_the_committed_ones() {
    let names = |table: Vec<&str>| table.join(" ");
    let targets = names(TARGETS.iter().map(|(name, _)| *name).collect());
    assert_eq!(names(SEEDS.iter().map(|(name, _)| *name).collect()), targets);
    for (target, seeds) in SEEDS {
        let committed = corpus::read(target).unwrap();
        for (name, bytes) in seeds() {
            let found = committed.iter().find(|(file, _)| file == name).map(|(_, bytes)| bytes);
            assert!(
                found == Some(&bytes),
                "corpus/{target}/{name}: `cargo run -p isthmus-fuzz --example corpus` writes it"
            );
        }
    }
}

#[test]
fn the_corpus_is_small() {
    let bytes: usize = TARGETS
        .iter()
        .flat_map(|(target, _)| corpus::read(target).unwrap())
        .map(|(_, input)| input.len())
        .sum();
    assert!(bytes < 200 * 1024, "{bytes} bytes of inputs");
}

#[test]
fn the_same_seed_makes_the_same_mutations() {
    let inputs = [b"one".to_vec(), b"another".to_vec()];
    let series = |seed| {
        let mut generator = Generator::new(seed);
        (0..50).map(|_| mutate(&inputs, &mut generator)).collect::<Vec<_>>()
    };
    assert_eq!(series(1), series(1));
    assert_ne!(series(1), series(2));
}
