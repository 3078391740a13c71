// SPDX-License-Identifier: Apache-2.0
//! A lease as it is kept.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::calls::Key;
use super::client::{Client, Identity, Patience};
use super::lease::Lease;

/// The namespace that a lease is for: another one may come to have its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) netns: PathBuf,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// One lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) key: Key,
    pub(crate) place: Place,
    pub(crate) identity: Identity,
    pub(crate) lease: Lease,
    /// Since when, since 1970.
    pub(crate) since: Duration,
}

/// Both of the node's clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) since_1970: Duration,
}

impl Now {
    pub(crate) fn read() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), since_1970 }
    }
}

impl Record {
    /// None of a client without a lease.
    pub(crate) fn of(key: &Key, place: &Place, client: &Client, now: Now) -> Option<Self> {
        let (lease, since) = client.lease()?;
        let age = now.instant.saturating_duration_since(since);
        Some(Self {
            key: key.clone(),
            place: place.clone(),
            identity: client.identity.clone(),
            lease: lease.clone(),
            since: now.since_1970.saturating_sub(age),
        })
    }

    /// Reads a record. None for what the daemon never writes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(bytes).ok()?;
        record.key.check().ok()?;
        let ordered = record.lease.times.is_none_or(|times| {
            let year = Duration::from_secs(u64::from(u32::MAX));
            times.renew <= times.rebind
                && times.rebind <= times.end
                && times.end <= year
                && !times.renew.is_zero()
        });
        (ordered && record.identity.client_id.len() <= 255).then_some(record)
    }

    /// The client that goes on. If the clock was set back, the lease counts from now.
    pub(crate) fn client(&self, patience: Patience, xid: u32, now: Now) -> Client {
        let age = now.since_1970.saturating_sub(self.since);
        let since = now.instant.checked_sub(age).unwrap_or(now.instant);
        Client::holding(self.identity.clone(), patience, xid, self.lease.clone(), since)
    }
}
