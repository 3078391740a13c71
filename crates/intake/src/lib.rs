// SPDX-License-Identifier: Apache-2.0
//! Kubernetes objects to what we decide upon, and to problems for their conditions.
//!
//! A malformed object becomes a [`Problem`](isthmus_planner::Problem) on itself; it never stops the good ones.

pub mod cluster;
pub mod node;
