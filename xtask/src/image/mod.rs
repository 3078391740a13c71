// SPDX-License-Identifier: Apache-2.0
//! Container images without a daemon: what is in one ([`Files`]), and how it is written as a docker-archive
//! ([`write_archive`]) that `docker load`, `ctr images import` and `kind load image-archive` read.

mod archive;
mod files;
mod libraries;

pub use archive::{Image, write_archive, write_archive_of_tar};
pub use files::Files;
pub use libraries::SystemRoot;
