// SPDX-License-Identifier: Apache-2.0
//! The network configuration that tells the container runtime of us. It appears only once ADD can work.

mod chained;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

/// Name of the network: calls for another are refused.
pub const NETWORK: &str = "isthmus";
/// File name: before those of others, since runtimes take the first.
pub const FILE_NAME: &str = "05-isthmus.conflist";

/// The same behind another plugin, whose own may be such as `05-cilium.conflist`.
pub const CHAINED_FILE_NAME: &str = "00-isthmus.conflist";
const FILE_NAMES: [&str; 2] = [FILE_NAME, CHAINED_FILE_NAME];

/// What [`Conflist::ensure`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was as it shall be.
    Kept,
    /// It was not there, or we had written it for other plugins than are installed now, or for another list of the plugin
    /// before ours.
    Written,
    /// It was there, but not of our making: edited by hand, or of another version. What it held is kept.
    Restored,
}

/// Where the file lies and where plugins are.
#[derive(Clone, Debug)]
pub struct Conflist {
    /// `/etc/cni/net.d`.
    pub directory: PathBuf,
    /// `/opt/cni/bin`.
    pub plugins: PathBuf,
    /// Ours comes behind another plugin.
    chained: bool,
    /// No other plugin's configuration was there at the last look.
    missing: Arc<AtomicBool>,
    /// What was written behind another plugin's last.
    written: Arc<Mutex<Option<String>>>,
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
/// A plugin that has not said its versions by then counts as one that knows no STATUS.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// More than any plugin has to say about its versions.
const ANSWER_MAX_BYTES: usize = 64 << 10;

impl Conflist {
    /// A configuration in `directory`, of plugins in `plugins`.
    pub fn new(directory: PathBuf, plugins: PathBuf) -> Self {
        Self {
            directory,
            plugins,
            chained: false,
            missing: Arc::default(),
            written: Arc::default(),
            portmap: Arc::default(),
        }
    }

    /// The same, behind the plugin whose configuration is the first in the directory but for ours.
    pub fn chained(self) -> Self {
        Self { chained: true, ..self }
    }

    /// The configuration.
    pub fn file(&self) -> PathBuf {
        self.directory.join(self.name())
    }

    /// What the configuration held before it was restored the last time. Runtimes read what ends in .conf, .conflist or
    /// .json: this ends in none of them.
    pub fn edited(&self) -> PathBuf {
        self.directory.join(format!(".{}.edited", self.name()))
    }

    fn name(&self) -> &'static str {
        if self.chained { CHAINED_FILE_NAME } else { FILE_NAME }
    }

    /// Takes away the configuration, behind another plugin or not.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn remove(directory: &Path) -> io::Result<()> {
        FILE_NAMES.iter().try_for_each(|name| remove_if_there(&directory.join(name)))
    }

    /// Brings the file to what it shall be, atomically. It may wait for a plugin's answer.
    ///
    /// # Errors
    /// The directory cannot be written, or ours cannot be put behind the other plugin's configuration: then the file stays as it
    /// was. No other plugin's configuration is there for ours to come behind: at the second look in a row ours goes, too.
    pub fn ensure(&self) -> io::Result<Ensured> {
        let wanted = if self.chained { self.behind_primary()? } else { content(self.portmap_version()) };
        let found = match fs::read(self.file()) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if found.as_deref() == Some(wanted.as_bytes()) {
            return Ok(Ensured::Kept);
        }
        let edited = found.filter(|found| !self.is_ours(found));
        if let Some(edited) = &edited {
            write_atomically(&self.edited(), edited, 0o600)?;
        }
        write_atomically(&self.file(), wanted.as_bytes(), 0o600)?;
        *self.last_written() = Some(wanted);
        // Of the other way to be installed nothing may be left.
        let others = FILE_NAMES.iter().filter(|name| **name != self.name());
        others.into_iter().try_for_each(|name| remove_if_there(&self.directory.join(name)))?;
        Ok(if edited.is_some() { Ensured::Restored } else { Ensured::Written })
    }

    /// The list of the plugin before ours, with ours.
    fn behind_primary(&self) -> io::Result<String> {
        let found = chained::primary(&self.directory, &FILE_NAMES)?;
        let missing_before = self.missing.swap(found.is_none(), Ordering::Relaxed);
        let Some((path, list)) = found else {
            // Ours would have runtimes call a plugin that is gone. One that writes its file anew may only be between two.
            if missing_before {
                remove_if_there(&self.file())?;
            }
            return Err(io::Error::other(format!(
                "isthmus-cni comes behind another plugin, and {} has no configuration of one: there is none yet",
                self.directory.display()
            )));
        };
        let first = path.file_name().is_some_and(|name| name < OsStr::new(CHAINED_FILE_NAME));
        let why = || format!("runtimes take {} before {CHAINED_FILE_NAME}; rename it", path.display());
        if first { Err(io::Error::other(why())) } else { Ok(format!("{list:#}\n")) }
    }

    /// Whether we wrote this. An agent that has just started takes whatever ends with ours for what the one before it wrote.
    fn is_ours(&self, found: &[u8]) -> bool {
        if !self.chained {
            return is_content(found);
        }
        match self.last_written().as_deref() {
            Some(written) => written.as_bytes() == found,
            None => chained::has_our_shape(found),
        }
    }

    fn last_written(&self) -> MutexGuard<'_, Option<String>> {
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
        let version = if speaks(&path, NEWEST, ANSWER_WITHIN) { NEWEST } else { WITHOUT_STATUS };
        *known = Some(Asked { file, version });
        Some(version)
    }
}

/// The list with our plugin, and with portmap where it is installed and speaks a version.
fn content(portmap: Option<&str>) -> String {
    let mut plugins = vec![json!({ "type": "isthmus-cni" })];
    if portmap.is_some() {
        plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true }));
    }
    let version = portmap.unwrap_or(NEWEST);
    let list: Value = json!({ "cniVersion": version, "name": NETWORK, "plugins": plugins });
    format!("{list:#}\n")
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether we wrote this, though perhaps for other plugins than are installed now.
fn is_content(found: &[u8]) -> bool {
    [None, Some(NEWEST), Some(WITHOUT_STATUS)].map(content).iter().any(|ours| ours.as_bytes() == found)
}

/// Whether a plugin names the version among those it supports (CNI specification, VERSION), `patience` long.
fn speaks(plugin: &Path, version: &str, patience: Duration) -> bool {
    let asked = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = asked else { return false };
    let answer = ask(&mut child, version, Instant::now() + patience);
    // It has said all that it is asked for, or had its time.
    let _ = child.kill();
    let _ = child.wait();
    let answer: Value = answer.and_then(|answer| serde_json::from_slice(&answer).ok()).unwrap_or_default();
    answer["supportedVersions"].as_array().is_some_and(|all| all.iter().any(|one| one == version))
}

/// Tells a plugin the version and takes its answer, if it is complete by the deadline.
fn ask(plugin: &mut Child, version: &str, deadline: Instant) -> Option<Vec<u8>> {
    // Less than a pipe holds: this waits for nobody. A plugin may answer without having read it.
    let _ = plugin.stdin.take()?.write_all(json!({ "cniVersion": version }).to_string().as_bytes());
    let mut stdout = plugin.stdout.take()?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while answer.len() <= ANSWER_MAX_BYTES && readable(&stdout, deadline) {
        match stdout.read(&mut part).ok()? {
            0 => return Some(answer),
            length => answer.extend_from_slice(&part[..length]),
        }
    }
    None
}

/// Waits for output or its end.
fn readable(stdout: &ChildStdout, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], left) {
            Err(Errno::EINTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
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
        Conflist::new(directory.to_owned(), directory.to_owned())
    }

    #[test]
    fn a_file_edited_by_hand_is_restored_and_a_good_one_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let conflist = conflist(directory.path());
        assert_eq!(conflist.ensure().unwrap(), Ensured::Written);
        assert_eq!(conflist.ensure().unwrap(), Ensured::Kept);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else lies about");
        fs::write(conflist.file(), "{").unwrap();
        assert_eq!(conflist.ensure().unwrap(), Ensured::Restored);
        let list: Value = serde_json::from_slice(&fs::read(conflist.file()).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["type"], "isthmus-cni");
    }

    #[test]
    fn an_edit_is_kept_in_a_file_that_no_runtime_reads() {
        let directory = tempfile::tempdir().unwrap();
        let conflist = conflist(directory.path());
        conflist.ensure().unwrap();
        let edit = fs::read_to_string(conflist.file()).unwrap().replace("isthmus-cni", "tuning");
        fs::write(conflist.file(), &edit).unwrap();
        assert_eq!(conflist.ensure().unwrap(), Ensured::Restored);
        assert_eq!(fs::read_to_string(conflist.edited()).unwrap(), edit);
        let read = |name: &str| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
        let names = fs::read_dir(directory.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| read(name)).collect::<Vec<_>>(), [FILE_NAME]);
    }

    #[test]
    fn an_edit_that_cannot_be_kept_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let conflist = conflist(directory.path());
        fs::create_dir(conflist.edited()).unwrap();
        fs::write(conflist.file(), "{").unwrap();
        assert!(conflist.ensure().is_err());
        assert_eq!(fs::read_to_string(conflist.file()).unwrap(), "{");
    }

    #[test]
    fn behind_another_plugin_its_list_is_followed_and_without_one_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let conflist = conflist(directory.path()).chained();
        let none = conflist.ensure().unwrap_err().to_string();
        assert!(none.contains("there is none yet"), "{none}");
        fs::write(directory.path().join(FILE_NAME), content(None)).unwrap();
        let list = |kind: &str| json!({ "cniVersion": "1.0.0", "name": "n", "plugins": [{ "type": kind }] });
        let primary = directory.path().join("05-cilium.conflist");
        let kinds = || -> Vec<Value> {
            let list: Value = serde_json::from_slice(&fs::read(conflist.file()).unwrap()).unwrap();
            list["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].clone()).collect()
        };
        for kind in ["cilium-cni", "ptp"] {
            fs::write(&primary, list(kind).to_string()).unwrap();
            // The last to be taken, as everywhere a file that an editor left.
            fs::write(directory.path().join("99-loopback.conf"), list("loopback").to_string()).unwrap();
            assert_eq!(conflist.ensure().unwrap(), Ensured::Written, "{kind}");
            assert_eq!(conflist.ensure().unwrap(), Ensured::Kept);
            assert_eq!(kinds(), [kind, "isthmus-cni"]);
        }
        assert!(!directory.path().join(FILE_NAME).exists(), "ours as the first plugin is gone");
        fs::write(conflist.file(), "{}").unwrap();
        assert_eq!(conflist.ensure().unwrap(), Ensured::Restored);
        assert_eq!(fs::read_to_string(conflist.edited()).unwrap(), "{}");
        // The next agent finds what the one before it wrote, for a list that is another one by now.
        fs::write(&primary, list("bridge").to_string()).unwrap();
        let next = Conflist::new(directory.path().into(), directory.path().into()).chained();
        assert_eq!(next.ensure().unwrap(), Ensured::Written);
        let before = fs::read(next.file()).unwrap();
        for unfinished in ["", "{\"cniVersion\": \"1.0"] {
            fs::write(&primary, unfinished).unwrap();
            assert!(next.ensure().is_err() && next.ensure().is_err());
            assert_eq!(fs::read(next.file()).unwrap(), before, "the other plugin is writing its own");
        }
        fs::remove_file(&primary).unwrap();
        assert!(next.ensure().is_err());
        assert_eq!(fs::read(next.file()).unwrap(), before, "it may be between two files");
        assert!(next.ensure().is_err());
        assert!(!next.file().exists(), "runtimes would call a plugin that is gone");
        fs::write(directory.path().join("00-a.conflist"), list("ptp").to_string()).unwrap();
        let first = next.ensure().unwrap_err().to_string();
        assert!(first.contains("rename it"), "{first}");
        Conflist::remove(directory.path()).unwrap();
    }

    #[test]
    fn a_plugin_that_is_installed_later_is_no_edit() {
        let directory = tempfile::tempdir().unwrap();
        conflist(directory.path()).ensure().unwrap();
        fs::write(directory.path().join("portmap"), "").unwrap();
        assert_eq!(conflist(directory.path()).ensure().unwrap(), Ensured::Written);
        assert!(!conflist(directory.path()).edited().exists());
    }

    #[test]
    fn a_plugin_that_never_answers_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let plugin = directory.path().join("portmap");
        write_atomically(&plugin, b"#!/bin/sh\nexec sleep 600\n", 0o755).unwrap();
        let began = Instant::now();
        assert!(!speaks(&plugin, NEWEST, Duration::from_millis(100)));
        assert!(began.elapsed() < Duration::from_secs(30), "took {:?}", began.elapsed());
    }

    #[test]
    fn host_ports_are_mapped_where_the_portmap_plugin_is_installed() {
        let directory = tempfile::tempdir().unwrap();
        let content = || content(conflist(directory.path()).portmap_version());
        assert!(!content().contains("portmap"));
        fs::write(directory.path().join("portmap"), "").unwrap();
        assert!(content().contains("portMappings"));
    }

    #[test]
    fn the_list_has_the_version_that_the_installed_portmap_speaks() {
        for (supported, expected) in [(r#"["1.0.0"]"#, "1.0.0"), (r#"["1.0.0", "1.1.0"]"#, "1.1.0")] {
            let directory = tempfile::tempdir().unwrap();
            let script = format!("#!/bin/sh\necho '{{\"supportedVersions\": {supported}}}'\n");
            write_atomically(&directory.path().join("portmap"), script.as_bytes(), 0o755).unwrap();
            let version = conflist(directory.path()).portmap_version();
            let list: Value = serde_json::from_str(&content(version)).unwrap();
            assert_eq!(list["cniVersion"], expected, "portmap speaks {supported}");
        }
    }
}
