// SPDX-License-Identifier: Apache-2.0
//! What a user sees on two peered kind clusters, each claim a test. Run with `--test-threads=1`.

mod addresses;
mod egress;
mod failover;
mod ipam;
mod keys;
mod own_addresses;
mod peering;
mod plugins;
mod pods;
mod restarts;
mod samples;
mod services;
mod tampering;
mod wire;
