// SPDX-License-Identifier: Apache-2.0
//! `isthmus-wg` in network namespaces, configured by wg(8) as users configure it.

mod chapter;
mod ends;
mod interoperability;
mod side;
mod tool;
mod traffic;
