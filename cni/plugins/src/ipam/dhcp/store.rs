// SPDX-License-Identifier: Apache-2.0
//! Leases on disk, in a directory beside the daemon's socket: a daemon that is started again goes on with them. Where that is below `/run`
//! they go with the node's restart, as the pods do.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::calls::Key;
use super::record::Record;
use crate::owner;

/// A record is well below.
const RECORD_MAX: u64 = 64 * 1024;

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Store(PathBuf);

impl Store {
    /// That of a socket: `/run/cni/dhcp.leases` beside `/run/cni/dhcp.sock`.
    pub(crate) fn beside(socket: &Path) -> Self {
        Self(socket.with_extension("leases"))
    }

    fn file(&self, key: &Key) -> PathBuf {
        self.0.join(format!("{}.json", owner::key_of(&key.network, &key.container_id, &key.ifname)))
    }

    /// Keeps a lease, whole or not at all.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let file = self.file(&record.key);
        let draft = file.with_extension("new");
        // Leases tell who is on the node: for root only, also where a daemon before was less careful.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        fs::set_permissions(&self.0, Permissions::from_mode(0o700))?;
        let mut opened =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        opened.set_permissions(Permissions::from_mode(0o600))?;
        opened.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(&draft, &file)
    }

    /// Forgets it.
    pub(crate) fn remove(&self, key: &Key) -> io::Result<()> {
        match fs::remove_file(self.file(key)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All leases, and the files that are none.
    pub(crate) fn read(&self) -> io::Result<(Vec<Record>, Vec<PathBuf>)> {
        let (mut records, mut bad) = (Vec::new(), Vec::new());
        let listed = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((records, bad)),
            other => other?,
        };
        for path in listed.filter_map(Result::ok).map(|entry| entry.path()) {
            let small = fs::metadata(&path).is_ok_and(|about| about.len() <= RECORD_MAX);
            let record = fs::read(&path).ok().filter(|_| small).and_then(|bytes| Record::parse(&bytes));
            match record {
                // A copy under another name would hold the lease twice.
                Some(record) if self.file(&record.key) == path => records.push(record),
                _ => bad.push(path),
            }
        }
        Ok((records, bad))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::client::Patience;
    use super::super::record::Now;
    use super::*;

    fn record() -> Record {
        let json = serde_json::json!({
            "key": { "network": "net", "containerId": "c", "ifname": "eth0" },
            "place": { "netns": "/run/netns/x", "device": 4, "inode": 7 },
            "identity": { "mac": [2, 0, 0, 0, 0, 7], "client_id": [0, 99], "provide": { "12": [119] }, "request": [1, 3], "broadcast": false },
            "lease": {
                "address": "10.0.0.50/24", "server": "10.0.0.1", "gateway": "10.0.0.1", "routes": [["0.0.0.0/0", "10.0.0.1"]],
                "times": { "renew": { "secs": 400, "nanos": 0 }, "rebind": { "secs": 700, "nanos": 0 }, "end": { "secs": 800, "nanos": 0 } },
            },
            "since": { "secs": 1000, "nanos": 0 },
        });
        Record::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_lease_goes_on_after_a_restart_from_when_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::beside(&dir.path().join("dhcp.sock"));
        store.write(&record()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&store.0), mode(&store.file(&record().key))), (0o700, 0o600));
        fs::write(dir.path().join("dhcp.leases/other.json"), serde_json::to_vec(&record()).unwrap()).unwrap();
        fs::write(dir.path().join("dhcp.leases/half.json"), "{").unwrap();
        let (records, bad) = store.read().unwrap();
        assert_eq!((records.as_slice(), bad.len()), (&[record()][..], 2));
        let patience = Patience { first: Duration::from_secs(2), most: Duration::from_secs(8) };
        let now = Now { instant: Instant::now(), since_1970: Duration::from_secs(1100) };
        let client = records[0].client(patience, 7, now);
        assert_eq!(client.next(), Some(now.instant + Duration::from_secs(300)));
        assert_eq!(Record::of(&record().key, &record().place, &client, now), Some(record()));
        let earlier = Now { since_1970: Duration::from_secs(10), ..now };
        assert_eq!(
            records[0].client(patience, 7, earlier).next(),
            Some(now.instant + Duration::from_secs(400))
        );
        store.remove(&record().key).unwrap();
        store.remove(&record().key).unwrap();
        assert!(store.read().unwrap().0.is_empty());
    }

    #[test]
    fn a_record_that_leads_elsewhere_or_whose_times_cannot_be_is_none() {
        let spoiled = |path: &str, value: serde_json::Value| {
            let mut json = serde_json::to_value(record()).unwrap();
            *json.pointer_mut(path).unwrap() = value;
            Record::parse(json.to_string().as_bytes())
        };
        assert!(spoiled("/key/containerId", "../x".into()).is_none());
        assert!(spoiled("/lease/times/renew/secs", 750.into()).is_none());
        assert!(spoiled("/lease/times/end/secs", u64::MAX.into()).is_none());
        assert!(spoiled("/lease/address", "fd00::1/64".into()).is_none());
        assert!(spoiled("/since/secs", 1.into()).is_some());
    }
}
