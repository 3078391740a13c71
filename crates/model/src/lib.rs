// SPDX-License-Identifier: Apache-2.0
//! Plain types of the domain. No Kubernetes, no I/O, no clock.

pub mod addresses;
pub mod dataplane;
pub mod ids;
pub mod kernel;
pub mod nft;
pub mod ownership;
