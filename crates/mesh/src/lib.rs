// SPDX-License-Identifier: Apache-2.0
//! What two clusters tell each other, and what each of them may say.
//!
//! ```text
//!  Kubernetes --> Announcement --> [wire] --frames--> (isthmus-mesh-link) ==mutual TLS==> peer
//!                                  Session
//!  peer ==> frames --> [wire] --> Announcement --> [grant] --> Accepted + Refusals --> plan
//! ```
//!
//! Pure: time and randomness come as arguments, but for the keys that `identity` and `invitation` make.

pub mod grant;
pub mod identity;
pub mod invitation;
pub mod record;
pub mod wire;
