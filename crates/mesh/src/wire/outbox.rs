// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;

use super::Position;
use crate::record::{Announcement, InvalidRecord, Record, RecordKey};

/// Removals that are remembered for peers that come back.
const REMOVALS_MAX: usize = 4096;
/// Bytes of records in one frame. One record more may follow, and still fits the frame.
const CHUNK_BYTES: usize = 256 * 1024;

/// What this side announces, as a series of numbered changes.
///
/// Every change gets a revision of its own, and a key keeps only its last change: a slow peer skips what is
/// outdated, a peer that comes back gets what changed since the revision that it has.
#[derive(Debug)]
pub struct Outbox {
    epoch: u64,
    revision: u64,
    /// Peers that have less than this need a snapshot: removals before it are forgotten.
    oldest: u64,
    entries: BTreeMap<RecordKey, Entry>,
    by_revision: BTreeMap<u64, RecordKey>,
    removals: usize,
}

#[derive(Debug)]
struct Entry {
    revision: u64,
    /// None: removed.
    record: Option<Record>,
    bytes: usize,
}

/// Changes for one frame.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) revision: u64,
    pub(super) put: Vec<Record>,
    pub(super) remove: Vec<RecordKey>,
}

impl Outbox {
    /// An empty announcement. `epoch` tells this life from earlier ones; take the time of the process' start.
    pub fn new(epoch: u64) -> Self {
        let entries = BTreeMap::new();
        Self { epoch, revision: 0, oldest: 0, entries, by_revision: BTreeMap::new(), removals: 0 }
    }

    /// Which life this is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The number of the last change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Makes `wanted` what is announced. Returns records that break their own form; they are not announced.
    pub fn publish(&mut self, wanted: &Announcement) -> Vec<(RecordKey, InvalidRecord)> {
        let mut withheld = BTreeMap::new();
        for (key, record) in wanted {
            if let Err(fault) = record.check() {
                withheld.insert(key.clone(), fault);
            }
        }
        let announced = |key: &RecordKey| wanted.contains_key(key) && !withheld.contains_key(key);
        let live = self.entries.iter().filter(|(_, entry)| entry.record.is_some());
        let gone: Vec<RecordKey> = live.map(|(key, _)| key).filter(|key| !announced(key)).cloned().collect();
        // What refers to others goes before them, and comes after them.
        for key in gone.into_iter().rev() {
            self.change(key, None);
        }
        for (key, record) in wanted.iter().filter(|(key, _)| !withheld.contains_key(*key)) {
            let known = self.entries.get(key).and_then(|entry| entry.record.as_ref());
            if known != Some(record) {
                self.change(key.clone(), Some(record.clone()));
            }
        }
        self.forget_old_removals();
        withheld.into_iter().collect()
    }

    fn change(&mut self, key: RecordKey, record: Option<Record>) {
        self.revision += 1;
        let bytes = record.as_ref().map_or(64, encoded_len);
        self.removals += usize::from(record.is_none());
        self.by_revision.insert(self.revision, key.clone());
        if let Some(old) = self.entries.insert(key, Entry { revision: self.revision, record, bytes }) {
            self.by_revision.remove(&old.revision);
            self.removals -= usize::from(old.record.is_none());
        }
    }

    fn forget_old_removals(&mut self) {
        let mut excess = self.removals.saturating_sub(REMOVALS_MAX);
        while excess > 0 {
            let oldest = self.by_revision.iter().find(|(_, key)| self.entries[*key].record.is_none());
            let Some((revision, key)) = oldest.map(|(revision, key)| (*revision, key.clone())) else {
                return;
            };
            self.entries.remove(&key);
            self.by_revision.remove(&revision);
            self.removals -= 1;
            self.oldest = revision;
            excess -= 1;
        }
    }

    /// How many changes a peer that has `have` lacks. None: it needs a snapshot.
    pub(super) fn missing(&self, have: Option<Position>) -> Option<usize> {
        let have = have.filter(|have| have.epoch == self.epoch)?;
        let known = (self.oldest..=self.revision).contains(&have.revision);
        known.then(|| self.by_revision.range(have.revision + 1..).count())
    }

    /// The next changes after `from`, at most `count`. Removals up to `removed_before` are left out: the peer of a
    /// snapshot never had those.
    pub(super) fn chunk(&self, from: u64, count: usize, removed_before: u64) -> Chunk {
        let mut chunk = Chunk { revision: from, ..Chunk::default() };
        let mut bytes = 0;
        for (revision, key) in self.by_revision.range(from + 1..) {
            if bytes > CHUNK_BYTES || chunk.put.len() + chunk.remove.len() >= count {
                return chunk;
            }
            let entry = &self.entries[key];
            bytes += entry.bytes;
            match &entry.record {
                Some(record) => chunk.put.push(record.clone()),
                None if *revision > removed_before => chunk.remove.push(key.clone()),
                None => {}
            }
            chunk.revision = *revision;
        }
        chunk.revision = self.revision;
        chunk
    }
}

/// Bytes of a record as it is sent.
pub(super) fn encoded_len(record: &Record) -> usize {
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, record).expect("records have string keys and counting succeeds");
    counter.0
}

struct Counter(usize);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
