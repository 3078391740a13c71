// SPDX-License-Identifier: Apache-2.0
//! Conditions on our objects, with the two that kstatus reads derived from Ready.

use isthmus_api::condition::{self, READY, RECONCILING, STALLED, Wanted};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// A condition that holds or not.
pub(crate) fn is(
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: impl Into<String>,
) -> Wanted {
    Wanted { kind, status: Some(holds), reason, message: message.into() }
}

/// A condition that nobody can tell yet.
pub(crate) fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Wanted {
    Wanted { kind, status: None, reason, message: message.into() }
}

/// Whether somebody must act before Ready can become True, or time alone will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing is under way.
    Settled,
    /// Work is under way; it ends by itself.
    UnderWay,
    /// Nothing more happens until somebody changes something.
    Stalled,
}

/// The old conditions brought to the wanted ones, and no others.
pub(crate) fn exactly(
    old: &[Condition],
    wanted: &[Wanted],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = old.to_vec();
    for one in wanted {
        condition::set(&mut conditions, one, generation, &Time(now));
    }
    conditions.retain(|one| wanted.iter().any(|wish| wish.kind == one.type_));
    conditions
}

/// The same, with Reconciling and Stalled (kstatus) after Ready.
pub(crate) fn updated(
    old: &[Condition],
    wanted: &[Wanted],
    progress: Progress,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let ready = wanted.iter().find(|one| one.kind == READY);
    let (reason, message) = ready.map_or(("Settled", ""), |ready| (ready.reason, ready.message.as_str()));
    let abnormal = |kind, holds| {
        let (reason, message) = if holds { (reason, message) } else { ("Settled", "") };
        is(kind, holds, reason, message)
    };
    let mut all = wanted.to_vec();
    all.push(abnormal(RECONCILING, progress == Progress::UnderWay));
    all.push(abnormal(STALLED, progress == Progress::Stalled));
    exactly(old, &all, generation, now)
}
