// SPDX-License-Identifier: Apache-2.0
//! A real etcd and kube-apiserver on the loopback, with Isthmus' manifests installed, for tests.

mod objects;
mod server;

pub use objects::{Document, documents, repository};
pub use server::{ADMIN, ApiServer};
