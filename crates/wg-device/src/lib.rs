// SPDX-License-Identifier: Apache-2.0
//! WireGuard devices in userspace.
//!
//! [`Carrier`] is the loop that carries packets between TUN devices and a UDP port through an engine; the thread that calls it owns
//! all three, so no packet takes a lock. The data plane process of Isthmus runs one; so does [`program`], which is `isthmus-wg`: one
//! device, configured by `wg(8)`.

mod bell;
mod carrier;
pub mod program;
mod relay;

pub use bell::{Bell, Ear, bell, sleep_until};
pub use carrier::{Carrier, Heard};
pub use relay::{Begins, Relay};
