// SPDX-License-Identifier: Apache-2.0
//! Error codes that the program gives without the agent (CNI specification 1.1.0, section "Error").

/// Environment variables are missing or invalid; the message names all of them.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// The network configuration is invalid.
pub const INVALID_CONFIG: u32 = 7;
/// Something that heals by itself is missing: try again later.
pub const TRY_AGAIN: u32 = 11;
/// STATUS: ADD cannot be served now.
pub const UNAVAILABLE: u32 = 50;
