// SPDX-License-Identifier: Apache-2.0
//! What the end-to-end tests stand on: the lab `duo` (or `chained`) with Isthmus in both clusters, peered, and a few pods.
//!
//! `ISTHMUS_E2E_KEEP=1` skips building, loading and installing: for work on the tests, where the lab is up already.

mod capture;
mod duo;
mod egress;
mod flow;
mod kernel;
mod lab;
mod pod;

pub use capture::Capture;
pub use duo::{CLUSTERS, Duo, EAST, NODES, WEST, chained, duo, other, peered};
pub use egress::leaves_by_policy;
pub use flow::{Flow, Tally};
pub use isthmus_testkit::within;
pub use kernel::{cut_off, processes_killed, reconnect};
pub use lab::{apply, delete, exec, fixture, json, kubectl, on_node};
pub use pod::{Pod, pod};
