// SPDX-License-Identifier: Apache-2.0
//! Who may call plugins at a time: one call for each container, and GC alone on its network (CNI 1.1.0, section 3, "Lifecycle &
//! Ordering"). The locks hold between processes, and end with the one that has them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, code};
use crate::names::{check_container_id, check_network_name};

/// The directory of locks.
#[derive(Clone, Debug)]
pub(super) struct Locks {
    dir: PathBuf,
}

/// Held until it is dropped. Fields are dropped in their order.
#[derive(Debug)]
#[allow(dead_code, reason = "dropping them unlocks")]
pub(super) struct Held {
    container: Option<Container>,
    network: Option<Flock<File>>,
}

/// A container's lock, whose file goes with it: there are many containers in the life of a node.
#[derive(Debug)]
struct Container {
    path: PathBuf,
    lock: Option<Flock<File>>,
}

impl Drop for Container {
    fn drop(&mut self) {
        // While it is locked: whoever waits for it sees that the file is gone and makes a new one. One that stays does no harm.
        let _ = fs::remove_file(&self.path);
        drop(self.lock.take());
    }
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(code::IO, format!("{}: {error}", path.display()))
}

fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.map_err(|error| failed(path, error))
}

fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>, Error> {
    let mut file = open(path)?;
    loop {
        match Flock::lock(file, how) {
            Ok(locked) => return Ok(locked),
            Err((same, Errno::EINTR)) => file = same,
            Err((_, error)) => return Err(failed(path, error)),
        }
    }
}

impl Locks {
    /// Locks below `dir`, where the cache is.
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.join("locks") }
    }

    /// File of a network's lock. Code 7 for a name that is not allowed, which could lead out of the directory.
    pub(super) fn of_network(&self, network: &str) -> Result<PathBuf, Error> {
        check_network_name(network)?;
        Ok(self.dir.join("networks").join(network))
    }

    /// File of a container's lock. Code 4 for an id that is not allowed.
    pub(super) fn of_container(&self, id: &str) -> Result<PathBuf, Error> {
        check_container_id(id)?;
        Ok(self.dir.join("containers").join(id))
    }

    /// Waits until nobody else calls plugins for the container, on any network, and no GC runs on this network. Code 5 if locking fails.
    pub(super) fn call(&self, network: &str, id: &str) -> Result<Held, Error> {
        let (network, path) = (self.of_network(network)?, self.of_container(id)?);
        self.make()?;
        let network = lock(&network, FlockArg::LockShared)?;
        let container = self.container(path)?;
        Ok(Held { container: Some(container), network: Some(network) })
    }

    /// Waits until no call runs on the network, and keeps them off. Code 5 if locking fails.
    pub(super) fn gc(&self, network: &str) -> Result<Held, Error> {
        let network = self.of_network(network)?;
        self.make()?;
        Ok(Held { container: None, network: Some(lock(&network, FlockArg::LockExclusive)?) })
    }

    /// Under [`Self::gc`], waits until nobody else calls plugins for the container, on another network. Nobody who has this lock waits for
    /// another one, so that two never wait for each other. Code 5 if locking fails.
    pub(super) fn call_in_gc(&self, id: &str) -> Result<Held, Error> {
        Ok(Held { container: Some(self.container(self.of_container(id)?)?), network: None })
    }

    fn container(&self, path: PathBuf) -> Result<Container, Error> {
        loop {
            let locked = lock(&path, FlockArg::LockExclusive)?;
            let own = locked.metadata().map_err(|error| failed(&path, error))?;
            // The one before may have taken the file away while we waited.
            if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())) {
                return Ok(Container { path, lock: Some(locked) });
            }
        }
    }

    fn make(&self) -> Result<(), Error> {
        for dir in ["networks", "containers"].map(|name| self.dir.join(name)) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(|error| failed(&dir, error))?;
        }
        Ok(())
    }
}
