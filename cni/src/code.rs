// SPDX-License-Identifier: Apache-2.0
//! Error codes of the CNI specification 1.1.0, section "Error".

/// The configuration's `cniVersion` is not supported, or the command does not exist in it.
pub const INCOMPATIBLE_VERSION: u32 = 1;
/// A field of the configuration is not supported; the message names it and its value.
pub const UNSUPPORTED_FIELD: u32 = 2;
/// The container is unknown or does not exist.
pub const UNKNOWN_CONTAINER: u32 = 3;
/// Environment variables are missing or invalid; the message names all of them.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// Reading or writing failed.
pub const IO_FAILURE: u32 = 5;
/// What came in could not be decoded.
pub const DECODING_FAILURE: u32 = 6;
/// The network configuration is invalid.
pub const INVALID_CONFIG: u32 = 7;
/// The network namespace is not usable (libcni's code, not in the specification).
pub const INVALID_NETNS: u32 = 8;
/// Something that heals by itself is missing: try again later.
pub const TRY_AGAIN: u32 = 11;
/// STATUS: ADD cannot be served now.
pub const UNAVAILABLE: u32 = 50;
/// STATUS: ADD cannot be served now, and existing containers are limited.
pub const LIMITED: u32 = 51;
/// The kernel refused (our own range begins at 100).
pub const KERNEL: u32 = 100;
