// SPDX-License-Identifier: Apache-2.0
//! Mutations of inputs, the same for the same seed.

/// Longest input that is made, in bytes.
const MAX_BYTES: usize = 16 * 1024;
/// Lengths and counts that parsers get wrong.
const NUMBERS: [u32; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x10_0000, 0x7fff_ffff, 0xffff_ffff];

/// Numbers that look random (SplitMix64).
#[derive(Clone, Copy, Debug)]
pub struct Generator(u64);

impl Generator {
    /// The series of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % (end.max(1) as u64)) as usize
    }
}

/// An input of the corpus with one to four changes.
pub fn mutate(corpus: &[Vec<u8>], generator: &mut Generator) -> Vec<u8> {
    let mut input = one_of(corpus, generator).to_vec();
    for _ in 0..=generator.below(4) {
        change(&mut input, corpus, generator);
    }
    input.truncate(MAX_BYTES);
    input
}

fn one_of<'a>(corpus: &'a [Vec<u8>], generator: &mut Generator) -> &'a [u8] {
    corpus.get(generator.below(corpus.len())).map_or(&[], Vec::as_slice)
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], generator: &mut Generator) {
    let at = generator.below(input.len());
    match generator.below(8) {
        0 | 1 => {
            let bit = generator.below(8);
            input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
        }
        2 => {
            let new = generator.number() as u8;
            input.iter_mut().skip(at).take(1).for_each(|byte| *byte = new);
        }
        3 => input.truncate(at),
        4 => {
            let end = (at + 1 + generator.below(16)).min(input.len());
            input.drain(at..end.max(at));
        }
        5 => {
            let end = (at + 1 + generator.below(64)).min(input.len());
            let again = input[at..end.max(at)].to_vec();
            insert(input, at, &again);
        }
        6 => {
            let number = NUMBERS[generator.below(NUMBERS.len())].to_be_bytes();
            let width = [1, 2, 4][generator.below(3)];
            put(input, at, &number[4 - width..], generator.below(2) == 0);
        }
        _ => {
            let other = one_of(corpus, generator);
            let from = generator.below(other.len());
            let to = (from + 1 + generator.below(256)).min(other.len());
            let part = other[from..to].to_vec();
            put(input, at, &part, generator.below(2) == 0);
        }
    }
}

/// Writes the bytes there: between what is there, or over it.
fn put(input: &mut Vec<u8>, at: usize, bytes: &[u8], between: bool) {
    if between {
        insert(input, at, bytes);
    } else {
        for (to, byte) in input.iter_mut().skip(at).zip(bytes) {
            *to = *byte;
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}
