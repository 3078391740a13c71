// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;
use std::sync::Arc;

use super::outbox::encoded_len;
use super::{Position, ProtocolError};
use crate::grant::{Refusal, RefusalCode};
use crate::record::{Announcement, Record, RecordKey, limits};

/// What the other side announces, as far as it was received.
#[derive(Debug, Default)]
pub struct Inbox {
    position: Option<Position>,
    held: Held,
    /// A snapshot that is still arriving, and in how many parts it came so far.
    arriving: Option<Held>,
    parts: usize,
}

/// Records that are kept, those that break their own form by what is wrong with them, and how large all are.
#[derive(Clone, Debug, Default)]
struct Held {
    records: Arc<Announcement>,
    invalid: BTreeMap<RecordKey, String>,
    bytes: BTreeMap<RecordKey, usize>,
    bytes_total: usize,
}

impl Inbox {
    /// Where a later connection can go on.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// The announcement of the last moment that was received whole.
    pub fn announcement(&self) -> Arc<Announcement> {
        Arc::clone(&self.held.records)
    }

    /// Records that were announced and break their own form.
    pub fn invalid(&self) -> Vec<Refusal> {
        let refusal = |(key, fault): (&RecordKey, &String)| Refusal {
            what: shown(&key.to_string()),
            reason: fault.clone(),
            code: RefusalCode::Invalid,
            count: 1,
        };
        self.held.invalid.iter().map(refusal).collect()
    }

    /// Forgets a snapshot that did not arrive whole.
    pub(super) fn begin(&mut self) {
        self.arriving = None;
        self.parts = 0;
    }

    /// Takes a part of a snapshot. With the last part it replaces what was held.
    pub(super) fn take_snapshot(
        &mut self,
        position: Position,
        put: Vec<Record>,
        remove: &[RecordKey],
        done: bool,
    ) -> Result<(), ProtocolError> {
        self.parts += 1;
        if self.parts > limits::RECORDS {
            return Err(ProtocolError::TooMuch);
        }
        self.arriving.get_or_insert_default().take(put, remove)?;
        if done {
            self.held = self.arriving.take().unwrap_or_default();
            self.position = Some(position);
        }
        Ok(())
    }

    /// Takes changes. They must follow upon what is held.
    pub(super) fn take_delta(
        &mut self,
        from: Position,
        revision: u64,
        put: Vec<Record>,
        remove: &[RecordKey],
    ) -> Result<(), ProtocolError> {
        // Whatever goes wrong here, the next connection asks for a snapshot.
        let position = self.position.take();
        if position != Some(from) || revision < from.revision {
            return Err(ProtocolError::Gap);
        }
        self.held.take(put, remove)?;
        self.position = Some(Position { revision, ..from });
        Ok(())
    }
}

impl Held {
    fn take(&mut self, put: Vec<Record>, remove: &[RecordKey]) -> Result<(), ProtocolError> {
        for key in remove {
            self.remove(key);
        }
        for record in put {
            let key = record.key();
            self.remove(&key);
            let bytes = encoded_len(&record);
            self.bytes_total += bytes;
            self.bytes.insert(key.clone(), bytes);
            if self.bytes.len() > limits::RECORDS || self.bytes_total > limits::RECORD_BYTES {
                return Err(ProtocolError::TooMuch);
            }
            match record.check() {
                Ok(()) => {
                    Arc::make_mut(&mut self.records).insert(key, record);
                }
                Err(fault) => {
                    self.invalid.insert(key, fault.to_string());
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        if let Some(bytes) = self.bytes.remove(key) {
            self.bytes_total -= bytes;
            self.invalid.remove(key);
            Arc::make_mut(&mut self.records).remove(key);
        }
    }
}

/// A peer's text, fit to be shown: short and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(256).collect()
}
