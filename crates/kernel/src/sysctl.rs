// SPDX-License-Identifier: Apache-2.0
//! Kernel settings below /proc/sys, written only where they differ.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use isthmus_delta::Outcome;
use isthmus_model::ownership::HOST_PROC_SYS;

/// The kernel gives a setting out at once, and no more than a page of it.
const TEXT_LEN: usize = 4096;

/// Brings every setting to its value. Those that are `known` to have it are left alone, and become more.
pub(crate) fn apply(
    wanted: &BTreeMap<String, String>,
    known: &mut BTreeMap<String, String>,
) -> Outcome<String> {
    known.retain(|path, value| wanted.get(path) == Some(value));
    let mut outcome = Outcome::default();
    for (path, value) in wanted {
        if known.contains_key(path) {
            continue;
        }
        match write(path, value) {
            Ok(changed) => {
                known.insert(path.clone(), value.clone());
                if changed {
                    outcome.record(path.clone(), Ok::<_, io::Error>(()));
                }
            }
            Err(error) => outcome.record(path.clone(), Err(error)),
        }
    }
    outcome
}

/// Writes one setting unless it has the value already; returns whether it was written.
pub(crate) fn write(path: &str, value: &str) -> io::Result<bool> {
    let full = full(path)?;
    let mut text = [0; TEXT_LEN];
    let length = File::open(&full)?.read(&mut text)?;
    if same(&String::from_utf8_lossy(&text[..length]), value) {
        return Ok(false);
    }
    fs::write(&full, value)?;
    Ok(true)
}

/// Writes one setting that is likely to have another value.
pub(crate) fn put(path: &str, value: &str) -> io::Result<bool> {
    fs::write(full(path)?, value)?;
    Ok(true)
}

fn full(path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path below /proc/sys"));
    }
    Ok(root().join(relative))
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
            assert!(put(path, "1").is_err(), "{path:?} was accepted");
        }
    }
}
