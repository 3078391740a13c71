// SPDX-License-Identifier: Apache-2.0
//! The agent of a node against a real kernel, in namespaces.

mod agent;
mod chained;
mod choice;
mod egress;
mod gateways;
mod own;
mod peers;
mod pods;
mod subnets;
mod tending;
