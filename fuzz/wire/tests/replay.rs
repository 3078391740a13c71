// SPDX-License-Identifier: Apache-2.0
//! Every input of the corpus, and mutations of them that are the same for the same seed.
//!
//! `ISTHMUS_FUZZ_SEED=<number>` chooses another series, `ISTHMUS_FUZZ_ROUNDS=<number>` how many mutations.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use isthmus_fuzz_wire::mutate::{Generator, mutate};
use isthmus_fuzz_wire::target::{recovers, seeds};

const SEED: u64 = 7300;
const ROUNDS: u64 = 1000;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../corpus/wg-wire")
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut inputs: Vec<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    inputs.sort();
    inputs
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")))
}

#[test]
fn whatever_the_wire_does_packets_pass_when_it_is_good_again() {
    let seed = number("ISTHMUS_FUZZ_SEED").unwrap_or(SEED);
    let rounds = number("ISTHMUS_FUZZ_ROUNDS").unwrap_or(ROUNDS);
    println!("ISTHMUS_FUZZ_SEED={seed}");
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    let inputs = corpus();
    for (name, input) in &inputs {
        println!("file {name}");
        longest = longest.max(recovers(input));
    }
    let inputs: Vec<Vec<u8>> = inputs.into_iter().map(|(_, input)| input).collect();
    let mut generator = Generator::new(seed);
    for round in 0..rounds {
        let input = mutate(&inputs, &mut generator);
        // Shown when it panics.
        println!("mutation {round}: {input:02x?}");
        longest = longest.max(recovers(&input));
    }
    println!("{rounds} mutations in {:?}, at most {longest:?} until packets passed", began.elapsed());
}

#[test]
fn the_committed_inputs_are_those_to_begin_with() {
    let committed = corpus();
    for (name, bytes) in seeds() {
        let found = committed.iter().find(|(file, _)| file == name).map(|(_, bytes)| bytes);
        let hint = "`cargo run --example corpus` in fuzz/wire writes it";
        assert!(found == Some(&bytes), "fuzz/corpus/wg-wire/{name}: {hint}");
    }
    let size: usize = committed.iter().map(|(_, input)| input.len()).sum();
    assert!(size < 16 * 1024, "{size} bytes of inputs");
}
