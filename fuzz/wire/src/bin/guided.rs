// SPDX-License-Identifier: Apache-2.0
//! libFuzzer around the target.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| isthmus_fuzz_wire::target::run(bytes));
