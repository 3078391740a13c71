// SPDX-License-Identifier: Apache-2.0
//! What tests of this crate build snapshots from.

use jiff::Timestamp;

use crate::snapshot::{Problem, Seen};

/// An object with this wish, made at second `age`.
pub(crate) fn seen<T, S: Default>(value: T, age: i64) -> Seen<T, S> {
    Seen { created: Timestamp::from_second(age).unwrap(), ..seen_with(Ok(value), S::default()) }
}

/// An object with this wish and status, made at the epoch.
pub(crate) fn seen_with<T, S>(value: Result<T, Problem>, status: S) -> Seen<T, S> {
    Seen {
        uid: "u".to_owned(),
        version: Some("1".to_owned()),
        generation: Some(1),
        created: Timestamp::UNIX_EPOCH,
        deleting: false,
        status,
        value,
    }
}
