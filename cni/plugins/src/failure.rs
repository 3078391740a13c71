// SPDX-License-Identifier: Apache-2.0
//! Codes of the plugins' own errors (CNI 1.1.0, section 2, "Errors": 100 and up).

use std::io;

use isthmus_cni_kit::error::{Error, code};
use isthmus_netlink::Refusal;

/// The kernel refused a step.
pub(crate) const REFUSED: u32 = code::FIRST_OWN;
/// The kernel lacks a feature.
pub(crate) const NO_FEATURE: u32 = code::FIRST_OWN + 1;
/// CHECK found something other than what ADD made.
pub(crate) const NOT_AS_ADDED: u32 = code::FIRST_OWN + 2;
/// There is an interface of the name already.
pub(crate) const EXISTS: u32 = code::FIRST_OWN + 3;

/// The kernel said no.
pub(crate) fn refused(step: &str, refusal: &Refusal) -> Error {
    let code = if refusal.errno == libc::EOPNOTSUPP { NO_FEATURE } else { REFUSED };
    Error::new(code, format!("the kernel refused to {step}: {refusal}"))
}

/// A file or a socket failed.
pub(crate) fn io(what: &str, error: &io::Error) -> Error {
    Error::new(code::IO, format!("{what}: {error}"))
}

/// CHECK's finding.
pub(crate) fn changed(what: impl Into<String>) -> Error {
    Error::new(NOT_AS_ADDED, what)
}

/// A configuration that cannot be.
pub(crate) fn invalid(what: impl Into<String>) -> Error {
    Error::new(code::INVALID_CONFIG, what)
}
