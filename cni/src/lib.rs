// SPDX-License-Identifier: Apache-2.0
//! Both sides of the CNI plugin: the thin program that runtimes execute, and what the agent needs to answer it.
//!
//! Runtimes start the plugin for every call: it uses the standard library, and `nix` for the one call that the library lacks.

pub mod code;
mod delegate;
pub mod plugin;
pub mod wire;

/// Versions of the CNI specification that are spoken, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version in which results are made before they are converted to an older one.
pub const NEWEST_VERSION: &str = "1.1.0";
