// SPDX-License-Identifier: Apache-2.0
//! Labs for tests: network namespaces wired together, and deadlines that report what was seen.

mod deadline;
mod lab;

pub use deadline::{within, within_async};
pub use lab::{Lab, Namespace};
