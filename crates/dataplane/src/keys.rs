// SPDX-License-Identifier: Apache-2.0
//! The node's WireGuard key on disk. It is made here, leaves neither the process nor the node, and is never printed.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use isthmus_model::dataplane::{KeySlot, LaneKeys};
use isthmus_wg::{InvalidKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::board::OwnKeys;

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

/// The present key, and the one beside it while it rotates.
pub(crate) struct KeyStore {
    dir: PathBuf,
    present: PrivateKey,
    next: Option<PrivateKey>,
    /// The key before, until no peer uses it any more.
    previous: Option<PrivateKey>,
    generation: u64,
    /// Keys that have the second slot. What is not among them has the first.
    second: Vec<PublicKey>,
}

const PRESENT: &str = "wireguard.key";
const NEXT: &str = "wireguard.key.next";
const PREVIOUS: &str = "wireguard.key.previous";
/// Holds the generation of the present key as a decimal number; absent for the first.
const GENERATION_FILE: &str = "wireguard.generation";
/// Holds the public keys that have the second slot, one a line. Written before such a key is, so that a slot is never wrong.
const SECOND_SLOT_FILE: &str = "wireguard.second";

impl KeyStore {
    /// Reads the key, or makes one.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, KeyError> {
        let dir = state_dir.join("keys");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| at(&dir, error))?;
        let present = match read(&dir.join(PRESENT))? {
            Some(key) => key,
            None => {
                let key = generate(&dir)?;
                write(&dir, PRESENT, key.to_base64().as_bytes())?;
                key
            }
        };
        let (next, previous) = (read(&dir.join(NEXT))?, read(&dir.join(PREVIOUS))?);
        let generation = fs::read_to_string(dir.join(GENERATION_FILE)).unwrap_or_default();
        let second = fs::read_to_string(dir.join(SECOND_SLOT_FILE)).unwrap_or_default();
        let mut store = Self {
            dir,
            present,
            next,
            previous,
            generation: generation.trim().parse().unwrap_or_default(),
            second: second.lines().filter_map(|line| line.parse().ok()).collect(),
        };
        // A switch that was begun and not ended: the present key had been put aside already.
        let present = store.present.public();
        if store.previous.as_ref().is_some_and(|previous| previous.public() == present) {
            store.forget_previous()?;
        }
        Ok(store)
    }

    pub(crate) fn present(&self) -> &PrivateKey {
        &self.present
    }

    pub(crate) fn next(&self) -> Option<&PrivateKey> {
        self.next.as_ref()
    }

    pub(crate) fn previous(&self) -> Option<&PrivateKey> {
        self.previous.as_ref()
    }

    /// Generation of the present key.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Slot of the present key.
    pub(crate) fn slot(&self) -> KeySlot {
        self.slot_of(&self.present)
    }

    /// All keys of a lane by their slots: one, or two while the key rotates.
    pub(crate) fn of_lane(&self, lane: u8) -> BTreeMap<KeySlot, PrivateKey> {
        let keys = [Some(&self.present), self.next.as_ref(), self.previous.as_ref()];
        keys.into_iter().flatten().map(|key| (self.slot_of(key), key.of_lane(lane))).collect()
    }

    fn slot_of(&self, key: &PrivateKey) -> KeySlot {
        if self.second.contains(&key.public()) { KeySlot::Second } else { KeySlot::First }
    }

    /// What is told of so many lanes: the next key beside the present one, then the previous beside it.
    pub(crate) fn told(&self, lanes: u8) -> OwnKeys {
        let lane = |lane| {
            let told = |key: &PrivateKey| key.of_lane(lane).public().to_string();
            LaneKeys {
                public_key: told(&self.present),
                previous_public_key: self.previous.as_ref().map(told),
                next_public_key: self.next.as_ref().map(told),
            }
        };
        OwnKeys {
            node: lane(0),
            lanes: (0..lanes).map(lane).collect(),
            slot: self.slot(),
            generation: self.generation,
        }
    }

    fn write_generation(&mut self, generation: u64) -> Result<(), KeyError> {
        write(&self.dir, GENERATION_FILE, generation.to_string().as_bytes())?;
        self.generation = generation;
        Ok(())
    }

    /// Makes the next key, if there is none.
    pub(crate) fn make_next(&mut self) -> Result<&PrivateKey, KeyError> {
        let next = match self.next.take() {
            Some(next) => next,
            None => {
                let next = generate(&self.dir)?;
                if self.slot() == KeySlot::First {
                    self.give_second_slot(&next)?;
                }
                write(&self.dir, NEXT, next.to_base64().as_bytes())?;
                next
            }
        };
        Ok(self.next.insert(next))
    }

    fn give_second_slot(&mut self, key: &PrivateKey) -> Result<(), KeyError> {
        let kept = [Some(&self.present), self.previous.as_ref()];
        let kept = kept.into_iter().flatten().filter(|key| self.slot_of(key) == KeySlot::Second);
        let second: Vec<PublicKey> = kept.chain([key]).map(PrivateKey::public).collect();
        let lines: Vec<String> = second.iter().map(ToString::to_string).collect();
        write(&self.dir, SECOND_SLOT_FILE, lines.join("\n").as_bytes())?;
        self.second = second;
        Ok(())
    }

    /// The next key becomes the present one, of this generation; the old is kept as the previous one.
    pub(crate) fn switch(&mut self, generation: u64) -> Result<(), KeyError> {
        let Some(next) = self.next.take() else { return Ok(()) };
        if let Err(error) = write(&self.dir, PREVIOUS, self.present.to_base64().as_bytes()) {
            self.next = Some(next);
            return Err(error);
        }
        self.previous = Some(std::mem::replace(&mut self.present, next));
        self.put_next_in_place()?;
        // After the key: a generation is never told before its key is in use.
        self.write_generation(generation)
    }

    fn put_next_in_place(&self) -> Result<(), KeyError> {
        let path = self.dir.join(PRESENT);
        fs::rename(self.dir.join(NEXT), &path).map_err(|error| at(&path, error))?;
        sync_dir(&self.dir).map_err(|error| at(&path, error))
    }

    /// The previous key is gone for good.
    pub(crate) fn forget_previous(&mut self) -> Result<(), KeyError> {
        if self.previous.take().is_none() {
            return Ok(());
        }
        let path = self.dir.join(PREVIOUS);
        fs::remove_file(&path).and_then(|()| sync_dir(&self.dir)).map_err(|error| at(&path, error))
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
    fn a_switch_keeps_the_key_before_until_it_is_forgotten_and_keys_take_turns_in_two_slots() {
        let dir = tempfile::tempdir().unwrap();
        let reopened = || KeyStore::open(dir.path()).unwrap();
        let mut store = reopened();
        let first = store.present().public();
        let second = store.make_next().unwrap().public();
        let told = reopened().told(1);
        assert_eq!(
            (told.node.public_key, told.node.next_public_key),
            (first.to_string(), Some(second.to_string()))
        );
        assert_eq!((told.slot, told.generation), (KeySlot::First, 0));
        store.switch(4).unwrap();
        let mut store = reopened();
        let told = store.told(1);
        assert_eq!(
            (told.node.public_key, told.node.previous_public_key),
            (second.to_string(), Some(first.to_string()))
        );
        assert_eq!((told.slot, told.generation), (KeySlot::Second, 4));
        assert_eq!(store.of_lane(0)[&KeySlot::First].public(), first);
        store.forget_previous().unwrap();
        assert_eq!(reopened().of_lane(0).len(), 1);
        store.make_next().unwrap();
        store.switch(5).unwrap();
        assert_eq!((reopened().slot(), reopened().generation()), (KeySlot::First, 5));
        assert_eq!(reopened().of_lane(0)[&KeySlot::Second].public(), second);
    }

    #[test]
    fn every_lane_is_told_with_keys_that_change_with_the_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = KeyStore::open(dir.path()).unwrap();
        store.make_next().unwrap();
        let during = store.told(3);
        assert_eq!(during.lanes[0], during.node);
        store.switch(1).unwrap();
        let after = store.told(3);
        for (lane, (before, now)) in (0..).zip(during.lanes.iter().zip(&after.lanes)) {
            assert_eq!(before.next_public_key.as_ref(), Some(&now.public_key));
            assert_eq!(now.previous_public_key.as_ref(), Some(&before.public_key));
            let own = store.of_lane(lane)[&after.slot].public().to_string();
            assert_eq!((own, after.lanes.len()), (now.public_key.clone(), 3));
        }
    }

    #[test]
    fn a_switch_that_ends_before_the_new_key_is_in_place_has_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = KeyStore::open(dir.path()).unwrap();
        let (old, next) = (store.present().public(), store.make_next().unwrap().public());
        let keys = dir.path().join("keys");
        fs::copy(keys.join(PRESENT), keys.join(PREVIOUS)).unwrap();
        let store = KeyStore::open(dir.path()).unwrap();
        assert_eq!((store.present().public(), store.next().unwrap().public()), (old, next));
        assert!(store.previous().is_none() && !keys.join(PREVIOUS).exists());
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
