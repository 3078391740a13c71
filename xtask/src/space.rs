// SPDX-License-Identifier: Apache-2.0
//! Room on the disk: a full one is told before the work begins, not by whichever step happens to write last.

use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::statvfs::statvfs;

const GIB: u64 = 1 << 30;

/// What a lab takes in the cache: its tools, images, and what its nodes write.
pub const OF_A_LAB: u64 = 10 * GIB;

/// Fails where fewer than `needed` bytes are free in the file system of `folder`, or of its nearest parent that exists.
pub fn ensure(folder: &Path, needed: u64, what: &str) -> Result<()> {
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat =
        statvfs(there).with_context(|| format!("cannot ask how much is free in {}", there.display()))?;
    enough(stat.blocks_available() * stat.fragment_size(), needed, &format!("{what} in {}", folder.display()))
}

fn enough(free: u64, needed: u64, what: &str) -> Result<()> {
    if free < needed {
        let gib = |bytes: u64| bytes as f64 / GIB as f64;
        bail!("{what} needs {:.0} GiB, and {:.1} are free: make room on the disk", gib(needed), gib(free));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_is_told_with_both_figures() {
        assert!(enough(OF_A_LAB, OF_A_LAB, "the lab").is_ok());
        let error = enough(OF_A_LAB - GIB / 2, OF_A_LAB, "the lab in here").unwrap_err().to_string();
        assert_eq!(error, "the lab in here needs 10 GiB, and 9.5 are free: make room on the disk");
    }

    #[test]
    fn a_folder_that_is_yet_to_be_made_is_looked_up_by_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("not/yet/there");
        ensure(&deep, 1, "a byte").unwrap();
        assert!(ensure(&deep, u64::MAX, "everything").is_err());
    }
}
