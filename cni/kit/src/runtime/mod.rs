// SPDX-License-Identifier: Apache-2.0
//! The runtime's side, so far in parts: finding and running a plugin, deriving what it is sent, and keeping what ADD
//! returned (CNI 1.1.0, section 3). Taking a container through a whole list is the caller's.

pub mod cache;
pub mod derive;
pub mod exec;
