// SPDX-License-Identifier: Apache-2.0
//! What a runtime keeps of an ADD for CHECK, DEL and GC, in the files of the Go library.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lock::Locks;
use crate::config::object;
use crate::error::{Error, code};
use crate::names::{check_container_id, check_ifname, check_network_name};

/// Where the Go library keeps its files.
pub const DEFAULT_DIR: &str = "/var/lib/cni";
const KIND: &str = "cniCacheV1";

/// One attachment, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    kind: String,
    /// Container id.
    pub container_id: String,
    /// The network list as it was, in base64.
    #[serde(default)]
    config: String,
    /// Name of the interface inside the container.
    pub if_name: String,
    /// Name of the network.
    pub network_name: String,
    /// Path of the network namespace; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    /// Pairs of `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cni_args: Vec<(String, String)>,
    /// What the runtime supplied for each capability.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub capability_args: Map<String, Value>,
    /// The final result of ADD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

impl Entry {
    /// An entry without arguments or a result. `config` is the text of the network list.
    pub fn new(network: &str, container_id: &str, ifname: &str, config: &[u8]) -> Self {
        Self {
            kind: KIND.to_owned(),
            container_id: container_id.to_owned(),
            config: STANDARD.encode(config),
            if_name: ifname.to_owned(),
            network_name: network.to_owned(),
            netns: String::new(),
            cni_args: Vec::new(),
            capability_args: Map::new(),
            result: None,
        }
    }

    /// The text of the network list. Code 6 if it is no base64.
    pub fn config(&self) -> Result<Vec<u8>, Error> {
        let decoded = STANDARD.decode(&self.config);
        decoded.map_err(|error| Error::new(code::DECODING, format!("config of a cached entry: {error}")))
    }
}

/// The directory of entries.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    locks: Locks,
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(code::IO, format!("{}: {error}", path.display()))
}

impl Cache {
    /// A cache below `dir`, such as [`DEFAULT_DIR`].
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self { locks: Locks::new(&dir), dir: dir.join("results") }
    }

    /// Locks of the calls whose results are kept here.
    pub(super) fn locks(&self) -> &Locks {
        &self.locks
    }

    /// The file of an attachment. Codes 4 and 7 for names that are not allowed, which could lead out of the directory.
    pub fn file(&self, network: &str, container_id: &str, ifname: &str) -> Result<PathBuf, Error> {
        check_network_name(network)?;
        check_container_id(container_id)?;
        check_ifname(ifname)?;
        Ok(self.dir.join(format!("{network}-{container_id}-{ifname}")))
    }

    /// Keeps an entry: written beside its place first, so that a reader sees the old one or the new one.
    pub fn put(&self, entry: &Entry) -> Result<(), Error> {
        let path = self.file(&entry.network_name, &entry.container_id, &entry.if_name)?;
        let bytes = serde_json::to_vec(entry).map_err(|error| failed(&path, error))?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| failed(&self.dir, error))?;
        // No network's name begins with a dot: this file is never taken for an entry.
        let id = std::process::id();
        let name = format!(".{}-{}-{}.{id}", entry.network_name, entry.container_id, entry.if_name);
        let beside = self.dir.join(name);
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        write().map_err(|error| {
            // The failure itself is what the caller has to hear of.
            let _ = fs::remove_file(&beside);
            failed(&path, error)
        })
    }

    /// Reads an entry; None if there is none. A file of earlier libraries, which holds the bare result, becomes an
    /// entry with an empty configuration. Code 6 for what cannot be read as either.
    pub fn get(&self, network: &str, container_id: &str, ifname: &str) -> Result<Option<Entry>, Error> {
        let path = self.file(network, container_id, ifname)?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path, error)),
        };
        let map = object(&bytes, &path.display().to_string())?;
        if !map.contains_key("kind") {
            let mut entry = Entry::new(network, container_id, ifname, b"");
            entry.result = Some(Value::Object(map));
            return Ok(Some(entry));
        }
        entry(map).map(Some)
    }

    /// Forgets an entry; that there is none is no error.
    pub fn remove(&self, network: &str, container_id: &str, ifname: &str) -> Result<(), Error> {
        let path = self.file(network, container_id, ifname)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&path, error)),
            _ => Ok(()),
        }
    }

    /// Every entry of a network, by file name. Files that are no entries are passed over. Code 5 if the directory
    /// is there and cannot be read.
    pub fn of_network(&self, network: &str) -> Result<Vec<Entry>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.dir, error)),
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')));
        paths.sort();
        let read = |path: &PathBuf| entry(object(&fs::read(path).ok()?, "entry").ok()?).ok();
        Ok(paths.iter().filter_map(read).filter(|entry| entry.network_name == network).collect())
    }
}

fn entry(mut map: Map<String, Value>) -> Result<Entry, Error> {
    // Go writes empty slices and maps as null.
    map.retain(|_, value| !value.is_null());
    let entry: Entry = serde_json::from_value(Value::Object(map))
        .map_err(|error| Error::new(code::DECODING, format!("cached entry: {error}")))?;
    if entry.kind == KIND {
        Ok(entry)
    } else {
        Err(Error::new(code::DECODING, "cached entry of an unknown kind"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    #[test]
    fn r10_an_entry_lies_where_the_go_library_keeps_it_with_its_fields_and_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let mut entry = Entry::new("net", "c1", "eth0", b"{}");
        entry.netns = "/run/netns/a".to_owned();
        entry.cni_args = vec![("A".to_owned(), "b".to_owned())];
        entry.result = Some(json!({"cniVersion": "1.0.0"}));
        cache.put(&entry).unwrap();
        let path = dir.path().join("results/net-c1-eth0");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let expected = json!({"kind": "cniCacheV1", "containerId": "c1", "config": "e30=", "ifName": "eth0",
            "networkName": "net", "netns": "/run/netns/a", "cniArgs": [["A", "b"]],
            "result": {"cniVersion": "1.0.0"}});
        assert_eq!(json, expected);
        assert_eq!(cache.get("net", "c1", "eth0").unwrap(), Some(entry.clone()));
        assert_eq!(cache.of_network("net").unwrap(), [entry]);
        assert_eq!(fs::read_dir(dir.path().join("results")).unwrap().count(), 1);
        cache.remove("net", "c1", "eth0").unwrap();
        cache.remove("net", "c1", "eth0").unwrap();
        assert_eq!(cache.get("net", "c1", "eth0").unwrap(), None);
    }

    #[test]
    fn r10_a_bare_result_of_an_earlier_library_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("results")).unwrap();
        let path = dir.path().join("results/net-c1-eth0");
        fs::write(&path, r#"{"cniVersion":"0.4.0","dns":{}}"#).unwrap();
        let cache = Cache::new(dir.path());
        assert_eq!(cache.get("net", "c1", "eth0").unwrap().unwrap().result.unwrap()["cniVersion"], "0.4.0");
        fs::write(&path, "garbage").unwrap();
        assert_eq!(cache.get("net", "c1", "eth0").map_err(|error| error.code), Err(6));
    }

    #[test]
    fn r11_names_that_lead_out_of_the_cache_are_refused() {
        let cache = Cache::new("/nonexistent");
        assert!(cache.file("../a", "c", "e").is_err() && cache.file("n", "../c", "e").is_err());
        assert!(cache.file("n", "c", "../e").is_err() && cache.file("n", "c", "e").is_ok());
    }
}
