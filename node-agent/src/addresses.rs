// SPDX-License-Identifier: Apache-2.0
//! Pods' addresses: which are free, who has which, and the journal that knows it after a crash.

pub mod inspect;
mod ipam;
mod journal;
mod ledger;

pub use ipam::{COOL_DOWN, Ipam, Shortage};
pub use journal::{Journal, JournalError, Recovery};
pub use ledger::{Attachment, AttachmentKey, Lease, Ledger, LedgerError, Linking, recorded};
