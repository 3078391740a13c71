// SPDX-License-Identifier: Apache-2.0
//! Configurations: of one plugin, of a list of plugins, and the files they lie in.

pub mod args;
pub mod capabilities;
pub mod list;
pub mod load;
pub mod net_conf;

use std::io::Read;

use serde_json::{Map, Value};

use crate::error::{Error, code};

/// Largest configuration, result or answer that is read, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// Reads to the end. Code 5 if reading fails, code 6 if there is more than [`MAX_BYTES`].
pub fn read_bounded(from: &mut dyn Read, what: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = from.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| {
        Error::new(code::IO, format!("{what} cannot be read")).with_details(error.to_string())
    })?;
    if bytes.len() > MAX_BYTES {
        return Err(Error::new(code::DECODING, format!("{what} has more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Reads a JSON object of at most [`MAX_BYTES`]; `serde_json` bounds the nesting to 128 levels. Otherwise code 6.
pub fn object(bytes: &[u8], what: &str) -> Result<Map<String, Value>, Error> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::new(code::DECODING, format!("{what} has more than {MAX_BYTES} bytes")));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(code::DECODING, format!("{what} is not a JSON object")).with_details(error.to_string())
    })
}
