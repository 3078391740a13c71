// SPDX-License-Identifier: Apache-2.0
//! The error object of CNI 1.1.0.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a failed call prints on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniError {
    /// One of [`crate::code`].
    pub code: u32,
    /// What is wrong.
    pub msg: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error with a message.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same with the way out.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// As printed, in the given version of the specification.
    pub fn to_json(&self, cni_version: &str) -> Vec<u8> {
        let object = serde_json::json!({
            "cniVersion": cni_version, "code": self.code, "msg": self.msg, "details": self.details,
        });
        object.to_string().into_bytes()
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for CniError {}
