// SPDX-License-Identifier: Apache-2.0
//! The network configuration that tells the container runtime of us. It appears only once ADD can work.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

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
    /// What the installed portmap plugin speaks, once it was asked.
    portmap: Arc<Mutex<Option<Asked>>>,
}

/// A plugin that was asked for its versions.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Inode and modification time of the file.
    file: (u64, i64),
    version: &'static str,
}

/// The newest version of the specification that we speak.
const NEWEST: &str = "1.1.0";
/// The version of a list with a plugin that knows no STATUS: an older portmap answers it with an error, and the
/// runtime would take the whole network for broken.
const WITHOUT_STATUS: &str = "1.0.0";

impl Conflist {
    /// A configuration in `directory`, of plugins in `plugins`.
    pub fn new(directory: PathBuf, plugins: PathBuf) -> Self {
        Self { directory, plugins, portmap: Arc::default() }
    }

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
        let portmap = self.portmap_version();
        if portmap.is_some() {
            plugins
                .push(json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true }));
        }
        let version = portmap.unwrap_or(NEWEST);
        let list: Value = json!({ "cniVersion": version, "name": "isthmus", "plugins": plugins });
        format!("{list:#}\n")
    }

    /// The version that a list with the installed portmap plugin can have; none without the plugin.
    fn portmap_version(&self) -> Option<&'static str> {
        let path = self.plugins.join("portmap");
        let metadata = fs::metadata(&path).ok()?;
        let file = (metadata.ino(), metadata.mtime());
        let mut known = self.portmap.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(asked) = known.filter(|asked| asked.file == file) {
            return Some(asked.version);
        }
        let version = if speaks(&path, NEWEST) { NEWEST } else { WITHOUT_STATUS };
        *known = Some(Asked { file, version });
        Some(version)
    }
}

/// Whether a plugin names the version among those it supports (CNI specification, VERSION).
fn speaks(plugin: &Path, version: &str) -> bool {
    let asked = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = asked else { return false };
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(json!({ "cniVersion": version }).to_string().as_bytes());
    }
    let Ok(output) = child.wait_with_output() else { return false };
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    answer["supportedVersions"].as_array().is_some_and(|all| all.iter().any(|one| one == version))
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
        Conflist::new(directory.to_owned(), directory.to_owned())
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

    #[test]
    fn the_list_has_the_version_that_the_installed_portmap_speaks() {
        for (supported, expected) in [(r#"["1.0.0"]"#, "1.0.0"), (r#"["1.0.0", "1.1.0"]"#, "1.1.0")] {
            let directory = tempfile::tempdir().unwrap();
            let script = format!("#!/bin/sh\necho '{{\"supportedVersions\": {supported}}}'\n");
            write_atomically(&directory.path().join("portmap"), script.as_bytes(), 0o755).unwrap();
            let list: Value = serde_json::from_str(&conflist(directory.path()).content()).unwrap();
            assert_eq!(list["cniVersion"], expected, "portmap speaks {supported}");
        }
    }
}
