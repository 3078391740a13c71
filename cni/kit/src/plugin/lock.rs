// SPDX-License-Identifier: Apache-2.0
//! A lock between instances of a plugin that share state on disk.

use std::fs::{File, OpenOptions};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, code};

/// Holds the lock until it is dropped, or its process ends.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "dropping it unlocks")] Flock<File>);

fn open(path: &Path) -> Result<File, Error> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    opened.map_err(|error| Error::new(code::IO, format!("{}: {error}", path.display())))
}

impl Lock {
    /// Waits for the lock on the file, which is made if it is not there. Code 5 if that fails.
    pub fn wait(path: &Path) -> Result<Self, Error> {
        let locked = Flock::lock(open(path)?, FlockArg::LockExclusive);
        locked.map(Self).map_err(|(_, error)| Error::new(code::IO, format!("{}: {error}", path.display())))
    }

    /// Takes the lock without waiting. Code 11 if someone else has it, code 5 if locking fails.
    pub fn try_now(path: &Path) -> Result<Self, Error> {
        Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock).map(Self).map_err(|(_, error)| {
            let code = if error == nix::errno::Errno::EWOULDBLOCK { code::TRY_AGAIN } else { code::IO };
            Error::new(code, format!("{}: {error}", path.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p13_a_second_instance_gets_the_lock_only_after_the_first_let_it_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::wait(&path).unwrap();
        assert_eq!(Lock::try_now(&path).map(drop).map_err(|error| error.code), Err(11));
        drop(first);
        assert!(Lock::try_now(&path).is_ok());
    }
}
