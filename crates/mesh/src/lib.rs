// SPDX-License-Identifier: Apache-2.0
//! What two clusters tell each other, and the channel it travels through.
//!
//! ```text
//!  Kubernetes --> Announcement --> [wire] --frames--> [link] ==mutual TLS==> peer
//!                                  Session             tls + tokio
//!  peer ==> [link] --frames--> [wire] --> Announcement --> [grant] --> Accepted + Refusals --> plan
//! ```
//!
//! `record`, `grant`, `invitation` and `wire` are pure: time and randomness come as arguments. `identity` and
//! `tls` prove who speaks; only `link` touches sockets, clock and tasks.

pub mod grant;
pub mod identity;
pub mod invitation;
pub mod link;
pub mod record;
pub mod tls;
pub mod wire;
