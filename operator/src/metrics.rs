// SPDX-License-Identifier: Apache-2.0
//! What the operator counts, as text by the OpenMetrics format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Shared counters.
#[derive(Clone, Default)]
pub(crate) struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    leading: AtomicBool,
    listed: AtomicBool,
    plans: AtomicU64,
    plan_micros: AtomicU64,
    written: AtomicU64,
    write_failed: AtomicU64,
    refused: Mutex<BTreeMap<(String, String), u64>>,
}

impl Metrics {
    /// A plan was made, in so much time.
    pub(crate) fn planned(&self, took: Duration) {
        self.0.plans.fetch_add(1, Relaxed);
        self.0.plan_micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// An object was written.
    pub(crate) fn written(&self) {
        self.0.written.fetch_add(1, Relaxed);
    }

    /// An object could not be written.
    pub(crate) fn write_failed(&self) {
        self.0.write_failed.fetch_add(1, Relaxed);
    }

    /// Whether this replica leads.
    pub(crate) fn set_leading(&self, leading: bool) {
        self.0.leading.store(leading, Relaxed);
    }

    /// Whether every watch has listed once.
    pub(crate) fn set_listed(&self) {
        self.0.listed.store(true, Relaxed);
    }

    /// Whether every watch has listed once.
    pub(crate) fn listed(&self) -> bool {
        self.0.listed.load(Relaxed)
    }

    /// Records that a peer announced and did not get, by peering and code, as they are now.
    pub(crate) fn set_refused(&self, refused: BTreeMap<(String, String), u64>) {
        *self.0.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        let inner = &self.0;
        let mut out = String::new();
        let micros = inner.plan_micros.load(Relaxed);
        let seconds = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
        let rows: [(&str, &str, &str, String); 6] = [
            ("leading", "gauge", "This replica leads.", u64::from(inner.leading.load(Relaxed)).to_string()),
            ("in_sync", "gauge", "Every watch has listed once.", u64::from(self.listed()).to_string()),
            ("plans", "counter", "Plans made.", inner.plans.load(Relaxed).to_string()),
            ("plan_seconds", "counter", "Time spent on plans.", seconds),
            ("objects_written", "counter", "Objects written.", inner.written.load(Relaxed).to_string()),
            (
                "write_failures",
                "counter",
                "Writes that failed.",
                inner.write_failed.load(Relaxed).to_string(),
            ),
        ];
        for (name, kind, help, value) in rows {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let name = format!("isthmus_operator_{name}{suffix}");
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        let name = "isthmus_operator_peer_refused";
        let _ = writeln!(out, "# HELP {name} What a peer announces and does not get.\n# TYPE {name} gauge");
        for ((peering, code), count) in inner.refused.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "{name}{{peering=\"{peering}\",code=\"{code}\"}} {count}");
        }
        out
    }
}
