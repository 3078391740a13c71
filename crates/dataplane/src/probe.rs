// SPDX-License-Identifier: Apache-2.0
//! Probes: what is up is what answers, seen by the packets' own way.
//!
//! [`datagram`], [`path`], [`mtu`] and [`train`] are pure; [`run`] has the sockets and the clock.

mod datagram;
mod mtu;
mod path;
mod run;
mod train;

pub(crate) use run::{ProbeThread, start};
