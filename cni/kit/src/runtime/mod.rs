// SPDX-License-Identifier: Apache-2.0
//! The runtime's side: finding and running plugins, taking a container through a list of them, and keeping what ADD
//! returned (CNI 1.1.0, section 3).

pub mod cache;
pub mod chain;
pub mod derive;
pub mod exec;
mod lock;
