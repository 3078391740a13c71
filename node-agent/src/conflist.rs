// SPDX-License-Identifier: Apache-2.0
//! The network configuration that tells the container runtime of us. It appears only once ADD can work.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// File name: before those of others, since runtimes take the first.
pub const FILE_NAME: &str = "05-isthmus.conflist";

/// What [`Conflist::ensure`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was as it shall be.
    Kept,
    /// It was not there.
    Written,
    /// It was there, but different: edited by hand, or of another version.
    Restored,
}

/// Where the file lies and where plugins are.
#[derive(Clone, Debug)]
pub struct Conflist {
    /// `/etc/cni/net.d`.
    pub directory: PathBuf,
    /// `/opt/cni/bin`.
    pub plugins: PathBuf,
}

impl Conflist {
    /// Brings the file to what it shall be, atomically.
    pub fn ensure(&self) -> io::Result<Ensured> {
        let wanted = self.content();
        let path = self.directory.join(FILE_NAME);
        let found = match fs::read(&path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if found.as_deref() == Some(wanted.as_bytes()) {
            return Ok(Ensured::Kept);
        }
        write_atomically(&path, wanted.as_bytes(), 0o600)?;
        Ok(if found.is_some() { Ensured::Restored } else { Ensured::Written })
    }

    fn content(&self) -> String {
        let mut plugins = vec![json!({ "type": "isthmus-cni" })];
        if self.plugins.join("portmap").exists() {
            plugins
                .push(json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true }));
        }
        let list: Value = json!({ "cniVersion": "1.1.0", "name": "isthmus", "plugins": plugins });
        format!("{list:#}\n")
    }
}

/// Writes a file so that readers see the old content or the new, also after a crash.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    // Runtimes read what ends in .conf, .conflist or .json: this ends in none of them.
    let next = directory.join(format!(".{name}.next"));
    let _ = fs::remove_file(&next);
    let mut file = File::create_new(&next)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflist(directory: &Path) -> Conflist {
        Conflist { directory: directory.to_owned(), plugins: directory.to_owned() }
    }

    #[test]
    fn a_file_edited_by_hand_is_restored_and_a_good_one_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let conflist = conflist(directory.path());
        assert_eq!(conflist.ensure().unwrap(), Ensured::Written);
        assert_eq!(conflist.ensure().unwrap(), Ensured::Kept);
        fs::write(directory.path().join(FILE_NAME), "{").unwrap();
        assert_eq!(conflist.ensure().unwrap(), Ensured::Restored);
        let list: Value =
            serde_json::from_slice(&fs::read(directory.path().join(FILE_NAME)).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["type"], "isthmus-cni");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else lies about");
    }

    #[test]
    fn host_ports_are_mapped_where_the_portmap_plugin_is_installed() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!conflist(directory.path()).content().contains("portmap"));
        fs::write(directory.path().join("portmap"), "").unwrap();
        assert!(conflist(directory.path()).content().contains("portMappings"));
    }
}
