// SPDX-License-Identifier: Apache-2.0
//! Kernel settings below /proc/sys, written only where they differ.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::LazyLock;
use std::{fs, io};

use isthmus_delta::Outcome;
use isthmus_model::ownership::HOST_PROC_SYS;

/// Brings every setting to its value.
pub(crate) fn apply(wanted: &BTreeMap<String, String>) -> Outcome<String> {
    let mut outcome = Outcome::default();
    for (path, value) in wanted {
        match write(path, value) {
            Ok(false) => {}
            Ok(true) => outcome.record(path.clone(), Ok::<_, io::Error>(())),
            Err(error) => outcome.record(path.clone(), Err(error)),
        }
    }
    outcome
}

/// Writes one setting unless it has the value already; returns whether it was written.
pub(crate) fn write(path: &str, value: &str) -> io::Result<bool> {
    let relative = Path::new(path);
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path below /proc/sys"));
    }
    let full = root().join(relative);
    if same(&fs::read_to_string(&full)?, value) {
        return Ok(false);
    }
    fs::write(&full, value)?;
    Ok(true)
}

/// In an unprivileged container `/proc/sys` is read-only; the node's is mounted at another place then. Both show the
/// settings of the calling thread's network namespace.
fn root() -> &'static Path {
    static ROOT: LazyLock<&Path> = LazyLock::new(|| {
        let host = Path::new(HOST_PROC_SYS);
        if host.join("net").is_dir() { host } else { Path::new("/proc/sys") }
    });
    *ROOT
}

/// The kernel separates the numbers of one setting by tabs.
fn same(read: &str, wanted: &str) -> bool {
    read.split_ascii_whitespace().eq(wanted.split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_differ_only_in_white_space_are_the_same() {
        assert!(same("32768\t60999\n", "32768 60999"));
        assert!(!same("1\n", "0"));
    }

    #[test]
    fn a_path_that_leaves_proc_sys_is_refused() {
        for path in ["../kcore", "/etc/passwd", "net/../../x", ""] {
            assert!(write(path, "1").is_err(), "{path:?} was accepted");
        }
    }
}
