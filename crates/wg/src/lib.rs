// SPDX-License-Identifier: Apache-2.0
//! A WireGuard engine without sockets or devices: datagrams and packets are handed in, what is to be sent or delivered comes out.
//!
//! One [`Engine`] serves every device of a process over one UDP port. A device has any number of peers, each with networks of its
//! own; the longest prefix says whose a packet is. `handle_*` takes an event, [`Engine::poll_transmit`] gives what else is due,
//! [`Engine::poll_timeout`] says when to come back. Time is an argument; only the session timers inside `boringtun` read the clock
//! themselves.

mod accept;
mod address;
mod allowed;
mod engine;
mod gate;
mod key;
mod peer;

#[cfg(test)]
mod tests;

pub use accept::{Refusal, accept};
pub use engine::{Action, Addressee, DeviceId, Drop, Engine, Half, PeerFacts, TunnelFacts, addressee};
pub use key::{InvalidKey, PresharedKey, PrivateKey, PublicKey};
pub use peer::PeerConfig;

/// Bytes that a tunnel adds to an inner packet, without IP and UDP headers: type, receiver, counter, tag.
pub const OVERHEAD_BYTES: usize = 32;
/// The least size of a buffer that takes any message of the protocol itself (a handshake initiation has 148 bytes).
pub const MESSAGE_BYTES: usize = 148;
