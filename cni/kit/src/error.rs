// SPDX-License-Identifier: Apache-2.0
//! The error object that plugins print and runtimes read (CNI 1.1.0, section 2, "Errors").

use std::fmt;

use serde_json::{Map, Value, json};

use crate::version::Version;

/// Codes with a meaning of their own. Those from 100 on are the plugin's.
pub mod code {
    /// The plugin does not speak the version asked for.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is not known, or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A variable of the environment is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// What came could not be decoded.
    pub const DECODING: u32 = 6;
    /// The configuration is not valid.
    pub const INVALID_CONFIG: u32 = 7;
    /// The network namespace is not valid (used by the Go library; not in the specification).
    pub const INVALID_NETNS: u32 = 8;
    /// The same call may succeed later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: no ADD can be served.
    pub const UNAVAILABLE: u32 = 50;
    /// STATUS: no ADD can be served, and running containers may lack connectivity.
    pub const LIMITED: u32 = 51;
    /// First of the codes that each plugin defines for itself.
    pub const FIRST_OWN: u32 = 100;
    /// Any other failure (used by the Go library).
    pub const INTERNAL: u32 = 999;
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// See [`code`].
    pub code: u32,
    /// One line for people.
    pub msg: String,
    /// More of it; may be empty.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with details.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The object to print. `version` is that of the call.
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = json!({"cniVersion": version, "code": self.code, "msg": self.msg});
        if !self.details.is_empty() {
            object["details"] = Value::from(self.details.as_str());
        }
        object
    }

    /// Reads an error object. None if `json` is not one.
    pub fn from_json(json: &Value) -> Option<Self> {
        let object: &Map<String, Value> = json.as_object()?;
        let code = object.get("code")?.as_u64()?.try_into().ok()?;
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self { code, msg: text("msg"), details: text("details") })
    }

    /// The error of a plugin that failed: the object on its standard output, else what it said on standard error.
    pub fn of_output(stdout: &[u8], stderr: &[u8]) -> Self {
        if let Some(error) = serde_json::from_slice(stdout).ok().as_ref().and_then(Self::from_json) {
            return error;
        }
        let said = [stderr, stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
        match said.into_iter().find(|text| !text.is_empty()) {
            Some(text) => {
                Self::new(code::INTERNAL, "the plugin failed without an error object").with_details(text)
            }
            None => Self::new(code::INTERNAL, "the plugin failed and said nothing"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p2_an_error_object_reads_back_as_itself() {
        let error = Error::new(code::TRY_AGAIN, "busy").with_details("lock held");
        let json = error.to_json(Version::V1_0_0);
        assert_eq!(json, json!({"cniVersion": "1.0.0", "code": 11, "msg": "busy", "details": "lock held"}));
        assert_eq!(Error::from_json(&json), Some(error));
    }

    #[test]
    fn p2_without_an_object_on_stdout_the_words_on_stderr_are_the_error() {
        assert_eq!(Error::of_output(b"{\"code\":7,\"msg\":\"bad\"}", b"noise"), Error::new(7, "bad"));
        assert_eq!(Error::of_output(b"", b"no such bridge\n").details, "no such bridge");
        assert_eq!(Error::of_output(b"{\"ips\":[]}", b"").code, code::INTERNAL);
        assert!(Error::of_output(b"", b"").msg.contains("nothing"));
    }
}
