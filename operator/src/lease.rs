// SPDX-License-Identifier: Apache-2.0
//! Leader election over a Lease.
//!
//! Clocks of machines are never compared: a lease has run out when its record stayed the same for its whole
//! duration on our own clock. A leader that could not renew stops leading well before others may take over.

use std::time::Duration;

use anyhow::{Result, bail};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

/// How long a lease lasts after its last renewal.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that did not renew for so long stops leading.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_secs(2);

/// One of those who want to lead.
pub(crate) struct Candidate {
    api: Api<Lease>,
    name: &'static str,
    identity: String,
    /// The last record seen of another holder, and since when it is the same.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    pub(crate) fn new(api: Api<Lease>, name: &'static str, identity: String) -> Self {
        Self { api, name, identity, seen: None }
    }

    /// Tries to lead until `stop` turns true, then gives the lease back. `leading` shows whether we lead.
    pub(crate) async fn run(mut self, leading: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
        let mut renewed: Option<Instant> = None;
        loop {
            let started = Instant::now();
            match timeout(RENEW_DEADLINE / 2, self.attempt()).await {
                Ok(Ok(true)) => renewed = Some(started),
                Ok(Ok(false)) => renewed = None,
                Ok(Err(error)) => warn!(%error, "the lease could not be renewed"),
                Err(_) => warn!("the API server did not answer in time about the lease"),
            }
            let lead = renewed.is_some_and(|at| at.elapsed() < RENEW_DEADLINE);
            show(&leading, lead);
            let expiry = renewed.map(|at| at + RENEW_DEADLINE);
            let pause = (started + RETRY).max(Instant::now() + RETRY / 4);
            tokio::select! {
                () = tokio::time::sleep_until(expiry.map_or(pause, |expiry| pause.min(expiry))) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        show(&leading, false);
        if renewed.is_some() && !matches!(timeout(RETRY, self.release()).await, Ok(Ok(()))) {
            warn!("the lease was not given back; it runs out by itself");
        }
    }

    /// Takes or renews the lease; returns whether we hold it.
    async fn attempt(&mut self) -> Result<bool> {
        let Some(mut lease) = self.api.get_opt(self.name).await? else {
            let mut lease = Lease { spec: Some(self.record(None)), ..Lease::default() };
            lease.metadata.name = Some(self.name.to_owned());
            return written(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() && !self.ran_out(&spec) {
            return Ok(false);
        }
        lease.spec = Some(self.record(Some(&spec)));
        // The resource version in `lease` makes this fail if another was faster.
        written(self.api.replace(self.name, &PostParams::default(), &lease).await)
    }

    fn ran_out(&mut self, spec: &LeaseSpec) -> bool {
        match &self.seen {
            Some((same, since)) if same == spec => since.elapsed() >= DURATION,
            _ => {
                self.seen = Some((spec.clone(), Instant::now()));
                false
            }
        }
    }

    fn record(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = old.filter(|old| old.holder_identity.as_deref() == Some(&self.identity));
        let transitions = old.and_then(|old| old.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: ours.and_then(|ours| ours.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours.is_some() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }

    async fn release(&self) -> Result<()> {
        let mut lease = self.api.get(self.name).await?;
        let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            bail!("somebody else holds the lease already");
        }
        spec.holder_identity = None;
        self.api.replace(self.name, &PostParams::default(), &lease).await?;
        info!("gave the lease back");
        Ok(())
    }
}

/// A conflict says that another was faster; that is no error.
fn written(result: kube::Result<Lease>) -> Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn show(leading: &watch::Sender<bool>, lead: bool) {
    leading.send_if_modified(|old| {
        let changed = *old != lead;
        if changed {
            info!(lead, "{}", if lead { "leading now" } else { "not leading" });
        }
        *old = lead;
        changed
    });
}
