// SPDX-License-Identifier: Apache-2.0
//! CNI calls, served on a Unix socket. ADD never asks the API server.

mod call;
mod chained;
mod delegated;
mod ipam;
mod pods;
mod server;
mod work;
mod workshop;

pub use server::{listen, serve};
