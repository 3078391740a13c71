// SPDX-License-Identifier: Apache-2.0
//! A cache by content: what was built from the same inputs is not built again, and what was half built is
//! never found.

use std::fs::{File, create_dir_all, remove_dir_all, rename};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The name of an entry: a hash of everything that its content depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Starts a key. The revision is raised by hand when the code that builds the entry changes its result.
    pub fn of(what: &str, revision: u32) -> KeyInputs {
        KeyInputs { hash: Sha256::new() }.with("what", what).with("revision", revision.to_string())
    }

    /// The key in short, as it appears in paths and image tags.
    pub fn short(&self) -> &str {
        &self.0[..16]
    }
}

/// A key in the making.
pub struct KeyInputs {
    hash: Sha256,
}

impl KeyInputs {
    /// Adds one named input. Lengths go in too, so that moving a byte from one input to the next shows.
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), value.as_ref()] {
            self.hash.update((part.len() as u64).to_be_bytes());
            self.hash.update(part);
        }
        self
    }

    /// Adds the content of a file.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.with(&path.file_name().unwrap_or_default().to_string_lossy(), content))
    }

    /// The key of all inputs so far.
    pub fn finish(self) -> Key {
        Key(hex::encode(self.hash.finalize()))
    }
}

/// A folder of entries, one folder each.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// A cache under `root`, which need not exist yet.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The entry of `key`, built by `build` in an empty folder if it is not there. One process builds, others
    /// wait; an entry appears only whole, by a rename.
    pub fn entry(&self, kind: &str, key: &Key, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let folder = self.root.join(kind);
        let entry = folder.join(key.short());
        if entry.is_dir() {
            return Ok(entry);
        }
        create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(folder.join(format!(".{}.lock", key.short())))?;
        lock.lock().context("cannot lock the cache")?;
        if entry.is_dir() {
            return Ok(entry);
        }
        let unfinished = folder.join(format!(".{}.unfinished", key.short()));
        if unfinished.exists() {
            remove_dir_all(&unfinished).with_context(|| format!("cannot clear {}", unfinished.display()))?;
        }
        create_dir_all(&unfinished)?;
        build(&unfinished)?;
        rename(&unfinished, &entry).with_context(|| format!("cannot place {}", entry.display()))?;
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_key_depends_on_every_input_and_on_where_one_ends() {
        let key = |a: &str, b: &str| Key::of("x", 1).with("a", a).with("b", b).finish();
        assert_eq!(key("one", "two"), key("one", "two"));
        assert_ne!(key("one", "two"), key("onet", "wo"));
        assert_ne!(key("one", "two"), key("one", "three"));
        assert_ne!(Key::of("x", 1).finish(), Key::of("x", 2).finish());
    }

    #[test]
    fn an_entry_is_built_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let key = Key::of("x", 1).finish();
        let first = cache.entry("k", &key, |at| Ok(std::fs::write(at.join("f"), "first")?)).unwrap();
        let second = cache.entry("k", &key, |_| bail!("built twice")).unwrap();
        assert_eq!(first, second);
        assert_eq!(std::fs::read_to_string(second.join("f")).unwrap(), "first");
    }

    #[test]
    fn a_build_that_failed_leaves_no_entry_and_the_next_starts_empty() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let key = Key::of("x", 1).finish();
        let failed = cache.entry("k", &key, |at| {
            std::fs::write(at.join("half"), "half")?;
            bail!("no space left")
        });
        assert!(failed.is_err());
        let entry = cache.entry("k", &key, |at| Ok(std::fs::write(at.join("whole"), "whole")?)).unwrap();
        assert!(!entry.join("half").exists());
        assert!(entry.join("whole").exists());
    }
}
