// SPDX-License-Identifier: Apache-2.0
//! Names that come from outside, and what they may be made of.

use crate::error::{Error, code};

/// Longest name of an interface, in bytes.
pub const MAX_IFNAME: usize = 15;

fn is_identifier(text: &str) -> bool {
    let mut letters = text.bytes();
    letters.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, b'_' | b'.' | b'-'))
}

/// A container id: a letter or digit, then letters, digits, `_`, `.` and `-`. Otherwise code 4.
pub fn check_container_id(text: &str) -> Result<(), Error> {
    if is_identifier(text) {
        return Ok(());
    }
    Err(Error::new(code::INVALID_ENVIRONMENT, format!("invalid container id {text:?}"))
        .with_details("a letter or digit, then letters, digits, '_', '.' and '-'"))
}

/// A network's name: of the same letters as a container id. Otherwise code 7.
pub fn check_network_name(text: &str) -> Result<(), Error> {
    if is_identifier(text) {
        return Ok(());
    }
    Err(Error::new(code::INVALID_CONFIG, format!("invalid network name {text:?}"))
        .with_details("a letter or digit, then letters, digits, '_', '.' and '-'"))
}

/// An interface's name: 1 to 15 bytes, not `.` or `..`, without `/`, `:` and white space. Otherwise code 4.
pub fn check_ifname(text: &str) -> Result<(), Error> {
    let bad_letter =
        |letter: char| letter == '/' || letter == ':' || letter.is_whitespace() || letter == '\0';
    let fault = match text {
        "" => "it is empty",
        "." | ".." => "it means a directory",
        long if long.len() > MAX_IFNAME => "it has more than 15 bytes",
        bad if bad.contains(bad_letter) => "it has a '/', a ':' or white space",
        _ => return Ok(()),
    };
    Err(Error::new(code::INVALID_ENVIRONMENT, format!("invalid interface name {text:?}")).with_details(fault))
}

/// A plugin's type: the name of a file, never a path. Otherwise code 7.
pub fn check_plugin_type(text: &str) -> Result<(), Error> {
    if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\\', '\0']) {
        return Err(Error::new(code::INVALID_CONFIG, format!("invalid plugin type {text:?}"))
            .with_details("the name of a file, without a path"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p4_a_container_id_with_a_slash_is_refused_with_code_4() {
        for bad in ["a/b", "", "-a", ".a", "a b", "ä", "a\n"] {
            assert_eq!(check_container_id(bad).map_err(|error| error.code), Err(4), "{bad:?}");
        }
        assert_eq!(check_container_id("a0_.-B"), Ok(()));
    }

    #[test]
    fn p4_a_network_name_with_a_slash_is_refused_with_code_7() {
        assert_eq!(check_network_name("../x").map_err(|error| error.code), Err(7));
        assert_eq!(check_network_name("my-net.1"), Ok(()));
    }

    #[test]
    fn p4_an_interface_name_that_the_kernel_would_refuse_is_refused_with_code_4() {
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "abcdefghijklmnop"] {
            assert_eq!(check_ifname(bad).map_err(|error| error.code), Err(4), "{bad:?}");
        }
        assert_eq!(check_ifname("abcdefghijklmno"), Ok(()));
    }
}
