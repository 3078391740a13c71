// SPDX-License-Identifier: Apache-2.0
//! Two clusters' links over real TCP and TLS on loopback.

mod admission;
mod conversation;
mod hostile;
mod lab;
