// SPDX-License-Identifier: Apache-2.0
//! Reserved addresses on disk, in the Go project's layout: `<dataDir>/<network>/<address>` holds the container ID and the interface's name.
//!
//! A reservation is whole or not there: it is written beside and then linked under its name, which fails if the name is taken. So neither a
//! crash nor a full disk leaves an address that nobody owns.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::lock::Lock;

use super::holder::Holder;
use crate::failure;

const LAST: &str = "last_reserved_ip.";
/// Written beside; no address begins with a dot.
const DRAFT: &str = ".reserving";

/// The addresses of one network, for as long as nobody else may change them.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    _lock: Lock,
}

fn failed(path: &Path, error: &io::Error) -> Error {
    failure::io(&path.display().to_string(), error)
}

impl Store {
    /// Waits until it is ours. The directory is made if it is not there.
    pub(crate) fn open(data_dir: &Path, network: &str) -> Result<Self, Error> {
        let directory = data_dir.join(network);
        fs::create_dir_all(&directory).map_err(|error| failed(&directory, &error))?;
        let lock = Lock::wait(&directory.join("lock"))?;
        Ok(Self { directory, _lock: lock })
    }

    fn file(&self, address: IpAddr) -> PathBuf {
        self.directory.join(address.to_string())
    }

    /// Reserves the address; false if it is taken.
    pub(crate) fn reserve(&self, address: IpAddr, holder: &Holder) -> Result<bool, Error> {
        let file = self.file(address);
        if file.exists() {
            return Ok(false);
        }
        let draft = self.directory.join(DRAFT);
        let linked = fs::write(&draft, holder.text()).and_then(|()| fs::hard_link(&draft, &file));
        // It is overwritten next time if it stays.
        let _ = fs::remove_file(&draft);
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(failed(&file, &error)),
        }
    }

    /// Frees the address.
    pub(crate) fn release(&self, address: IpAddr) -> Result<(), Error> {
        let file = self.file(address);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&file, &error)),
            _ => Ok(()),
        }
    }

    /// Every reserved address and its holder. Of a file that is empty nobody is the holder.
    pub(crate) fn all(&self) -> Result<Vec<(IpAddr, Holder)>, Error> {
        let listed = fs::read_dir(&self.directory).map_err(|error| failed(&self.directory, &error))?;
        let mut all = Vec::new();
        for entry in listed {
            let entry = entry.map_err(|error| failed(&self.directory, &error))?;
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match fs::read_to_string(entry.path()) {
                Ok(text) => all.push((address, Holder::parse(&text))),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed(&entry.path(), &error)),
            }
        }
        all.sort();
        Ok(all)
    }

    /// Addresses of a holder. Files of the Go plugin's first versions name the container only.
    pub(crate) fn of(&self, holder: &Holder) -> Result<Vec<IpAddr>, Error> {
        let mine = |other: &Holder| {
            other.container_id == holder.container_id
                && (other.ifname.is_empty() || other.ifname == holder.ifname)
        };
        Ok(self.all()?.into_iter().filter(|(_, other)| mine(other)).map(|(address, _)| address).collect())
    }

    /// The address that the set of ranges gave last.
    pub(crate) fn last(&self, set: usize) -> Option<IpAddr> {
        // Without it the search begins at the first.
        fs::read_to_string(self.directory.join(format!("{LAST}{set}"))).ok()?.trim().parse().ok()
    }

    /// Remembers it. That fails quietly: it only spreads addresses.
    pub(crate) fn set_last(&self, set: usize, address: IpAddr) {
        let _ = fs::write(self.directory.join(format!("{LAST}{set}")), address.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(container: &str) -> Holder {
        Holder { container_id: container.to_owned(), ifname: "eth0".to_owned() }
    }

    #[test]
    fn an_address_is_reserved_once_and_free_after_its_release() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        let ip: IpAddr = "10.0.0.2".parse().unwrap();
        assert_eq!(store.reserve(ip, &holder("a")), Ok(true));
        assert_eq!(store.reserve(ip, &holder("b")), Ok(false));
        assert_eq!(fs::read_to_string(dir.path().join("net/10.0.0.2")).unwrap(), "a\r\neth0");
        assert_eq!(store.of(&holder("a")), Ok(vec![ip]));
        assert_eq!(store.of(&holder("b")), Ok(vec![]));
        store.release(ip).unwrap();
        store.release(ip).unwrap();
        assert_eq!(store.all(), Ok(vec![]));
    }

    #[test]
    fn a_draft_that_a_crash_left_and_files_that_are_no_address_hold_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        fs::write(dir.path().join("net").join(DRAFT), "a").unwrap();
        store.set_last(0, "10.0.0.9".parse().unwrap());
        assert_eq!(store.all(), Ok(vec![]));
        assert_eq!(store.last(0), Some("10.0.0.9".parse().unwrap()));
        assert_eq!(store.reserve("10.0.0.2".parse().unwrap(), &holder("a")), Ok(true));
    }

    #[test]
    fn a_file_that_names_the_container_only_belongs_to_each_of_its_interfaces() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "net").unwrap();
        fs::write(dir.path().join("net/10.0.0.3"), "a\n").unwrap();
        assert_eq!(store.of(&holder("a")).unwrap().len(), 1);
    }
}
