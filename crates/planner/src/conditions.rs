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

/// The old conditions with the wanted ones, and Reconciling and Stalled (kstatus) after Ready.
pub(crate) fn updated(
    old: &[Condition],
    wanted: &[Wanted],
    progress: Progress,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = old.to_vec();
    let now = Time(now);
    for one in wanted {
        condition::set(&mut conditions, one, generation, &now);
    }
    let ready = wanted.iter().find(|one| one.kind == READY);
    let (reason, message) = ready.map_or(("Settled", ""), |ready| (ready.reason, ready.message.as_str()));
    for (kind, holds) in
        [(RECONCILING, progress == Progress::UnderWay), (STALLED, progress == Progress::Stalled)]
    {
        let (reason, message) = if holds { (reason, message) } else { ("Settled", "") };
        condition::set(&mut conditions, &is(kind, holds, reason, message), generation, &now);
    }
    conditions.retain(|one| {
        wanted.iter().any(|w| w.kind == one.type_) || [RECONCILING, STALLED].contains(&one.type_.as_str())
    });
    conditions
}
