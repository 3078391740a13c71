// SPDX-License-Identifier: Apache-2.0
//! Two WireGuard engines and a wire between them, in virtual time: days of a protocol in milliseconds.
//!
//! [`target`] is the fuzz target `wg-wire`, whose inputs say what a hostile wire does; `tests/time.rs` holds what the protocol says
//! of time. The engines are the product's; only the clock inside `boringtun` is another.

#[path = "../../src/changed.rs"]
mod changed;
mod clock;
pub mod forge;
mod host;
#[allow(dead_code, reason = "more is there than this target reads")]
#[path = "../../src/input.rs"]
mod input;
#[path = "../../src/mutate.rs"]
pub mod mutate;
pub mod target;
mod world;

pub use clock::Clock;
pub use host::{Host, Kind};
pub use world::{EAST, Flying, STRANGER, WEST, World};
