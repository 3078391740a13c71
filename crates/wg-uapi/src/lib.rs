// SPDX-License-Identifier: Apache-2.0
//! The configuration protocol of userspace WireGuard (<https://www.wireguard.com/xplatform/>), as `wg(8)` speaks it.
//!
//! ```text
//!  bytes --> [Reader] --> Request::Set --> [apply] --> Interface, Changes --> answer_to_set --> bytes
//!                         Request::Get --> Interface::answer_to_get ----------------------------> bytes
//! ```
//!
//! Pure: no socket, no clock, no curve. The program that owns the socket carries the [`Changes`] out, and tells what only it
//! knows: the port that was bound, the public half of a key, handshakes and counters.
//!
//! Where the protocol's text is silent, wireguard-go decides (`device/uapi.go`, as of May 2026), with these differences: a
//! refused request changes nothing; a request takes effect with its empty line and never by the end of the stream; the all-zero
//! public key is refused; and a refused `get` is answered with a positive number, because that is the one `wg(8)` reads.

mod answer;
mod endpoint;
mod interface;
mod key;
mod reader;
mod refusal;
mod request;
#[cfg(test)]
mod tests;

pub use answer::{PeerFacts, answer_to_set};
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use interface::{Changes, Interface, Peer, PeerChange, PeerFields, apply};
pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use reader::Reader;
pub use refusal::{Errno, Operation, Reason, Refusal};
pub use request::{AllowedIp, Request, SetPeer, SetRequest, parse};

/// Peers of an interface, and sections of a request. The same as wireguard-go's.
pub const MAX_PEERS: usize = 1 << 16;
/// Bytes of a line without its end. The longest line that means anything has under 100.
pub const MAX_LINE_BYTES: usize = 256;
/// Lines of a request.
pub const MAX_LINES: usize = 1 << 20;
/// Bytes of a request. One that sets a full interface, with eight networks for each peer, has less.
pub const MAX_REQUEST_BYTES: usize = 32 << 20;
