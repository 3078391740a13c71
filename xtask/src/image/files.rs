// SPDX-License-Identifier: Apache-2.0
//! The file tree of an image, in the order in which it is written.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A tree of files. Paths are absolute as the container sees them.
#[derive(Debug, Default, Clone)]
pub struct Files(BTreeMap<PathBuf, Entry>);

#[derive(Debug, Clone)]
enum Entry {
    Folder { mode: u32 },
    Bytes { mode: u32, content: Vec<u8> },
    Copy { mode: u32, source: PathBuf },
    Symlink { target: PathBuf },
}

impl Files {
    /// A folder with a mode of its own. Folders that only lead to files need not be named.
    pub fn folder(&mut self, path: impl AsRef<Path>, mode: u32) {
        self.insert(path.as_ref(), Entry::Folder { mode });
    }

    /// A small file, given by its content.
    pub fn text(&mut self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        self.insert(path.as_ref(), Entry::Bytes { mode: 0o644, content: content.as_ref().to_vec() });
    }

    /// A file of this machine; read when the image is written.
    pub fn copy(&mut self, path: impl AsRef<Path>, source: impl Into<PathBuf>, mode: u32) {
        self.insert(path.as_ref(), Entry::Copy { mode, source: source.into() });
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.insert(path.as_ref(), Entry::Symlink { target: target.into() });
    }

    /// Writes the tree as a tar: sorted, owned by root, at time zero, so that equal trees are equal bytes.
    pub fn write_tar(&self, out: impl Write) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        for (path, entry) in self.with_parents() {
            append(&mut tar, &path, &entry)
                .with_context(|| format!("cannot add {} to the image", path.display()))?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }

    fn insert(&mut self, path: &Path, entry: Entry) {
        self.0.insert(path.strip_prefix("/").unwrap_or(path).to_owned(), entry);
    }

    fn with_parents(&self) -> BTreeMap<PathBuf, Entry> {
        let mut all = self.0.clone();
        for path in self.0.keys() {
            for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                all.entry(parent.to_owned()).or_insert(Entry::Folder { mode: 0o755 });
            }
        }
        all
    }
}

fn append(tar: &mut tar::Builder<impl Write>, path: &Path, entry: &Entry) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match entry {
        Entry::Folder { mode } => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(*mode);
            tar.append_data(&mut header, path, std::io::empty())?;
        }
        Entry::Symlink { target } => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            tar.append_link(&mut header, path, target)?;
        }
        Entry::Bytes { mode, content } => {
            header.set_mode(*mode);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content.as_slice())?;
        }
        Entry::Copy { mode, source } => {
            let content =
                std::fs::File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
            header.set_mode(*mode);
            header.set_size(content.metadata()?.len());
            tar.append_data(&mut header, path, content)?;
        }
    }
    Ok(())
}
