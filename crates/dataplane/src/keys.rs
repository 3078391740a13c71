// SPDX-License-Identifier: Apache-2.0
//! The node's WireGuard key on disk. It is made here, leaves neither the process nor the node, and is never printed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use isthmus_wg::{InvalidKey, PrivateKey};
use zeroize::Zeroizing;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system refuses.
    #[error("cannot use the key file {}: {error}; it must be writable by root, mode 0600", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What it says.
        error: io::Error,
    },
    /// The file holds something else.
    #[error("{} is broken: {error}; remove it and the node makes a new key", path.display())]
    Broken {
        /// Which file.
        path: PathBuf,
        /// In what way.
        error: InvalidKey,
    },
}

/// The present key, and the next one while it rotates.
pub(crate) struct KeyStore {
    dir: PathBuf,
    present: PrivateKey,
    next: Option<PrivateKey>,
    generation: u64,
}

/// Holds the generation of the newest key as a decimal number; absent for the first.
const GENERATION_FILE: &str = "wireguard.generation";

impl KeyStore {
    /// Reads the key, or makes one.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, KeyError> {
        let dir = state_dir.join("keys");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| at(&dir, error))?;
        let present = match read(&dir.join("wireguard.key"))? {
            Some(key) => key,
            None => {
                let key = generate(&dir)?;
                write(&dir, "wireguard.key", key.to_base64().as_bytes())?;
                key
            }
        };
        let next = read(&dir.join("wireguard.key.next"))?;
        let generation = fs::read_to_string(dir.join(GENERATION_FILE)).unwrap_or_default();
        Ok(Self { dir, present, next, generation: generation.trim().parse().unwrap_or_default() })
    }

    pub(crate) fn present(&self) -> &PrivateKey {
        &self.present
    }

    pub(crate) fn next(&self) -> Option<&PrivateKey> {
        self.next.as_ref()
    }

    pub(crate) fn newest(&self) -> &PrivateKey {
        self.next.as_ref().unwrap_or(&self.present)
    }

    /// Generation of the newest key.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes the key of a later generation. Interrupted, it is done again with the same key.
    pub(crate) fn make_generation(&mut self, generation: u64) -> Result<&PrivateKey, KeyError> {
        self.make_next()?;
        write(&self.dir, GENERATION_FILE, generation.to_string().as_bytes())?;
        self.generation = generation;
        self.make_next()
    }

    /// Makes the next key, if there is none.
    pub(crate) fn make_next(&mut self) -> Result<&PrivateKey, KeyError> {
        let next = match self.next.take() {
            Some(next) => next,
            None => {
                let next = generate(&self.dir)?;
                write(&self.dir, "wireguard.key.next", next.to_base64().as_bytes())?;
                next
            }
        };
        Ok(self.next.insert(next))
    }

    /// The next key becomes the present one; the old is gone for good.
    pub(crate) fn finish_rotation(&mut self) -> Result<(), KeyError> {
        let Some(next) = self.next.take() else { return Ok(()) };
        self.present = next;
        let path = self.dir.join("wireguard.key");
        fs::rename(self.dir.join("wireguard.key.next"), &path).map_err(|error| at(&path, error))?;
        sync_dir(&self.dir).map_err(|error| at(&path, error))
    }
}

fn at(path: &Path, error: io::Error) -> KeyError {
    KeyError::File { path: path.to_owned(), error }
}

fn generate(dir: &Path) -> Result<PrivateKey, KeyError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|error| at(dir, io::Error::other(error.to_string())))?;
    Ok(PrivateKey::from_bytes(*bytes))
}

fn read(path: &Path) -> Result<Option<PrivateKey>, KeyError> {
    let mut file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path, error)),
    };
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(|error| at(path, error))?;
    let mode = file.metadata().map_err(|error| at(path, error))?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the key file was readable by others; rotate the key");
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(|error| at(path, error))?;
    }
    let key = PrivateKey::from_base64(&text);
    key.map(Some).map_err(|error| KeyError::Broken { path: path.to_owned(), error })
}

/// Whole or not at all: written beside, synced, renamed.
fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), KeyError> {
    let path = dir.join(name);
    let beside = dir.join(format!(".{name}.new"));
    let attempt = || -> io::Result<()> {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        sync_dir(dir)
    };
    attempt().map_err(|error| at(&path, error))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_only_root_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = KeyStore::open(dir.path()).unwrap().present().public();
        assert_eq!(KeyStore::open(dir.path()).unwrap().present().public(), made);
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("keys"), mode("keys/wireguard.key")), (0o700, 0o600));
    }

    #[test]
    fn a_rotation_survives_a_restart_in_its_middle_and_ends_with_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = KeyStore::open(dir.path()).unwrap();
        let (old, next) = (store.present().public(), store.make_next().unwrap().public());
        let mut store = KeyStore::open(dir.path()).unwrap();
        assert_eq!((store.present().public(), store.newest().public()), (old, next));
        store.finish_rotation().unwrap();
        let store = KeyStore::open(dir.path()).unwrap();
        assert_eq!((store.present().public(), store.next().is_none()), (next, true));
    }

    #[test]
    fn a_key_of_a_later_generation_is_remembered_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = KeyStore::open(dir.path()).unwrap();
        assert_eq!(store.generation(), 0);
        let next = store.make_generation(3).unwrap().public();
        store.finish_rotation().unwrap();
        let store = KeyStore::open(dir.path()).unwrap();
        assert_eq!((store.present().public(), store.generation()), (next, 3));
    }

    #[test]
    fn a_broken_key_file_is_named_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        drop(KeyStore::open(dir.path()).unwrap());
        fs::write(dir.path().join("keys/wireguard.key"), "rubbish").unwrap();
        let error = KeyStore::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("wireguard.key is broken") && error.contains("remove it"), "{error}");
        assert!(!error.contains("rubbish"));
    }
}
