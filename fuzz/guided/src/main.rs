// SPDX-License-Identifier: Apache-2.0
//! libFuzzer around the target that `ISTHMUS_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use isthmus_fuzz::{Run, TARGETS};
use libfuzzer_sys::fuzz_target;

static RUN: LazyLock<Run> = LazyLock::new(|| {
    let name = std::env::var("ISTHMUS_FUZZ_TARGET").unwrap_or_default();
    isthmus_fuzz::target(&name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        panic!("ISTHMUS_FUZZ_TARGET={name:?} names no target; there are {}", names.join(", "))
    })
});

fuzz_target!(|bytes: &[u8]| RUN(bytes));
