// SPDX-License-Identifier: Apache-2.0
//! Conditions by the rules of the API conventions: `lastTransitionTime` moves only when `status` flips.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The condition that sums the others up.
pub const READY: &str = "Ready";
/// kstatus: work is under way.
pub const RECONCILING: &str = "Reconciling";
/// kstatus: no progress without somebody's change.
pub const STALLED: &str = "Stalled";

/// A condition as it shall be, without the times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Condition type.
    pub kind: &'static str,
    /// True, False, or Unknown for none.
    pub status: Option<bool>,
    /// CamelCase reason.
    pub reason: &'static str,
    /// What to do next, or what is the case.
    pub message: String,
}

/// Sets one condition in a list; returns whether the list changed.
pub fn set(conditions: &mut Vec<Condition>, wanted: &Wanted, generation: Option<i64>, now: &Time) -> bool {
    let status = match wanted.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let old = conditions.iter().position(|c| c.type_ == wanted.kind);
    let last_transition_time = match old {
        Some(at) if conditions[at].status == status => conditions[at].last_transition_time.clone(),
        _ => now.clone(),
    };
    let new = Condition {
        type_: wanted.kind.to_owned(),
        status: status.to_owned(),
        reason: wanted.reason.to_owned(),
        message: wanted.message.clone(),
        observed_generation: generation,
        last_transition_time,
    };
    match old {
        Some(at) if conditions[at] == new => false,
        Some(at) => {
            conditions[at] = new;
            true
        }
        None => {
            conditions.push(new);
            true
        }
    }
}
