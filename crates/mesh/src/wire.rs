// SPDX-License-Identifier: Apache-2.0
//! The conversation of two clusters over one stream, without the stream.
//!
//! ```text
//!   both:    Hello{versions, epoch, have}          where the other left off, if it remembers
//!   both:    Snapshot… Snapshot{done}  or Delta    the whole, or what changed since `have`
//!   both:    Delta, Delta, …   Ping every second   until Bye or silence
//!   invited: Redeem{token} -> Redeemed | Refused   only where the inviter does not know it yet
//! ```
//!
//! Pure: frames in, frames out, `now` as an argument. The time is that of any clock that never goes back, counted
//! from any moment.

mod frame;
mod inbox;
mod message;
mod outbox;
mod rate;
mod session;

pub use frame::{Decoder, FRAME_BYTES_MAX, FrameError, encode};
pub use inbox::Inbox;
pub use message::{ByeReason, Hello, Message, Position, RefusedReason, Versions};
pub use outbox::Outbox;
pub use rate::Rate;
pub use session::{Event, Memory, ProtocolError, Session, Timings};
