// SPDX-License-Identifier: Apache-2.0
//! An append-only file of checksummed lines that survives a crash at any byte.
//!
//! A line is eight hexadecimal digits of SHA-256 over the rest, a space, a record as JSON, and a newline. What follows the
//! last newline is a torn write and was never answered for; a line whose checksum is wrong is passed over and counted.
//!
//! A record that is appended is the kernel's from then on: no crash of a process loses it. A loss of power may lose the last ones, and loses every
//! link and namespace that they speak of, too; waiting for the disk would cost each call milliseconds and keep nothing that is of use.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// The journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk does not take it.
    #[error("journal {}: {doing}: {error}; check that the disk is neither full nor read-only", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What was under way.
        doing: &'static str,
        /// What the kernel says.
        error: io::Error,
    },
    /// It is there, and what it holds is not known: writing would destroy it.
    #[error(
        "journal {}: it could not be read when the agent started: {why}; it is kept as it is, and no pod is added: make it readable, then restart the agent",
        path.display()
    )]
    Unread {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        why: String,
    },
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Why what it holds is not known: then it is left as it is.
    unread: Option<String>,
    /// None while it could not be opened for writing.
    file: Option<File>,
    /// Bytes that are known to be whole lines.
    length: u64,
    /// Records appended or read since the last rewrite.
    records: usize,
}

/// What was read at start.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovery<R> {
    /// Records in order.
    pub records: Vec<R>,
    /// Lines with a wrong checksum or content.
    pub damaged: usize,
    /// Bytes of a torn last line.
    pub torn_bytes: usize,
}

impl Journal {
    /// Opens or creates a journal, reads it, and cuts a torn last line off.
    ///
    /// This never fails. Each write tries again to open the file, so that a full or read-only disk keeps new pods out but
    /// not the agent from serving those that run. A file that is there and cannot be read is never written.
    pub fn open<R: DeserializeOwned>(path: &Path) -> (Self, Recovery<R>) {
        let (bytes, unread) = match fs::read(path) {
            Ok(bytes) => (bytes, None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let recovery = recover(&bytes);
        let length = (bytes.len() - recovery.torn_bytes) as u64;
        let records = recovery.records.len() + recovery.damaged;
        let mut journal = Self { path: path.to_owned(), unread, file: None, length, records };
        if let Err(error) = journal.writable() {
            tracing::warn!(%error, "new pods will be refused");
        }
        (journal, recovery)
    }

    /// Reads a journal that another process writes. One that is not there holds nothing.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read<R: DeserializeOwned>(path: &Path) -> io::Result<Recovery<R>> {
        match fs::read(path) {
            Ok(bytes) => Ok(recover(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(recover(&[])),
            Err(error) => Err(error),
        }
    }

    /// The file for appending, at a length of whole lines.
    fn writable(&mut self) -> Result<&mut File, JournalError> {
        self.known()?;
        if self.file.is_none() {
            let file =
                open_for_append(&self.path, self.length).map_err(|error| self.error("opening", error))?;
            self.file = Some(file);
        }
        Ok(self.file.as_mut().expect("opened above"))
    }

    /// Refuses to write where that would destroy what could not be read.
    fn known(&self) -> Result<(), JournalError> {
        let unread = |why: &String| JournalError::Unread { path: self.path.clone(), why: why.clone() };
        self.unread.as_ref().map_or(Ok(()), |why| Err(unread(why)))
    }

    /// Records since the last rewrite.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Appends a record: when this returns, no crash of a process loses it. After an error the file is as before.
    pub fn append(&mut self, record: &impl Serialize) -> Result<(), JournalError> {
        let line = line(record).map_err(|error| self.error("encoding", error))?;
        let file = self.writable()?;
        if let Err(error) = file.write_all(&line) {
            // Half a line would make the next one unreadable: the next opening cuts it off.
            self.file = None;
            let _ = self.writable();
            return Err(self.error("writing", error));
        }
        self.length += line.len() as u64;
        self.records += 1;
        Ok(())
    }

    /// Replaces the content by these records, atomically. After an error the content is the old or the new one.
    pub fn rewrite<R: Serialize>(&mut self, records: &[R]) -> Result<(), JournalError> {
        self.rewrite_and(records, sync_directory)
    }

    /// The same with the step that makes the new name durable.
    fn rewrite_and<R: Serialize>(
        &mut self,
        records: &[R],
        sync_directory: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), JournalError> {
        self.known()?;
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend(line(record).map_err(|error| self.error("encoding", error))?);
        }
        let next = self.path.with_extension("next");
        let replaced = write_new(&next, &bytes).and_then(|file| fs::rename(&next, &self.path).map(|()| file));
        // From the renaming on this is the file, whatever follows: the old one has no name any more.
        self.file = Some(replaced.map_err(|error| self.error("rewriting", error))?);
        self.length = bytes.len() as u64;
        self.records = records.len();
        sync_directory(&self.path).map_err(|error| self.error("rewriting", error))
    }

    /// Whether something can be written now.
    pub fn probe(&mut self) -> Result<(), JournalError> {
        self.writable()?;
        let probe = self.path.with_extension("probe");
        let written = write_new(&probe, &[b'x'; 512]);
        let _ = fs::remove_file(&probe);
        written.map(drop).map_err(|error| self.error("writing", error))
    }

    fn error(&self, doing: &'static str, error: io::Error) -> JournalError {
        JournalError::Unwritable { path: self.path.clone(), doing, error }
    }
}

fn open_for_append(path: &Path, length: u64) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    Ok(file)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    Ok(file)
}

fn sync_directory(of: &Path) -> io::Result<()> {
    of.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn line(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(record)?;
    let mut line = checksum(&json).into_bytes();
    line.push(b' ');
    line.extend(json);
    line.push(b'\n');
    Ok(line)
}

fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn recover<R: DeserializeOwned>(bytes: &[u8]) -> Recovery<R> {
    let mut recovery = Recovery { records: Vec::new(), damaged: 0, torn_bytes: 0 };
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    recovery.torn_bytes = bytes.len() - whole;
    for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
        match parse(&line[..line.len() - 1]) {
            Some(record) => recovery.records.push(record),
            None => recovery.damaged += 1,
        }
    }
    recovery
}

fn parse<R: DeserializeOwned>(line: &[u8]) -> Option<R> {
    let (sum, json) = line.split_at_checked(9)?;
    let sound = sum[..8] == *checksum(json).as_bytes() && sum[8] == b' ';
    sound.then(|| serde_json::from_slice(json).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> (Journal, Recovery<u32>) {
        Journal::open(path)
    }

    #[test]
    fn a_crash_at_any_byte_recovers_a_prefix_and_appending_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut journal, _) = open(&path);
        for record in [1_u32, 22, 333] {
            journal.append(&record).unwrap();
        }
        let bytes = fs::read(&path).unwrap();
        for end in 0..=bytes.len() {
            fs::write(&path, &bytes[..end]).unwrap();
            let (mut journal, recovery) = open(&path);
            let whole = bytes[..end].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(recovery.records, [1, 22, 333][..whole], "crash at byte {end}");
            assert_eq!(recovery.damaged, 0);
            journal.append(&7_u32).unwrap();
            assert_eq!(open(&path).1.records.last(), Some(&7), "appended after a crash at byte {end}");
        }
    }

    #[test]
    fn a_flipped_bit_costs_one_record_and_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut journal, _) = open(&path);
        for record in [1_u32, 2, 3] {
            journal.append(&record).unwrap();
        }
        let mut bytes = fs::read(&path).unwrap();
        let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 3;
        bytes[second] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (_, recovery) = open(&path);
        assert_eq!((recovery.records, recovery.damaged), (vec![1, 3], 1));
    }

    #[test]
    fn rewriting_keeps_what_is_given_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut journal, _) = open(&path);
        (0..100_u32).for_each(|record| journal.append(&record).unwrap());
        journal.rewrite(&[5_u32, 6]).unwrap();
        journal.append(&7_u32).unwrap();
        assert_eq!(open(&path).1.records, [5, 6, 7]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_journal_that_cannot_be_read_is_kept_and_takes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        // It leads to itself: nobody can read it, and renaming would replace it.
        std::os::unix::fs::symlink("log", &path).unwrap();
        let (mut journal, recovery) = open(&path);
        assert!(recovery.records.is_empty());
        let refused = [journal.append(&1_u32), journal.rewrite(&[1_u32]), journal.probe()];
        for error in refused.map(Result::unwrap_err).map(|error| error.to_string()) {
            assert!(error.contains(path.to_str().unwrap()) && error.contains("restart the agent"), "{error}");
        }
        assert!(path.is_symlink(), "what could not be read is still there");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_appended_after_a_rewrite_that_failed_late_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut journal, _) = open(&path);
        (0..100_u32).for_each(|record| journal.append(&record).unwrap());
        let failing = |_: &Path| Err(io::ErrorKind::Other.into());
        assert!(journal.rewrite_and(&[5_u32, 6], failing).is_err());
        assert_eq!(journal.records(), 2);
        journal.append(&7_u32).unwrap();
        assert_eq!(open(&path).1.records, [5, 6, 7]);
    }

    #[test]
    fn a_journal_that_cannot_be_written_says_what_to_check() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut journal, _) = open(&path);
        drop(directory);
        let error = journal.probe().unwrap_err().to_string();
        assert!(error.contains("neither full nor read-only"), "{error}");
    }
}
