// SPDX-License-Identifier: Apache-2.0
//! The loop: something changed, take a snapshot, plan, and apply if we lead.

use std::sync::Arc;
use std::time::Duration;

use isthmus_planner::Plan;
use jiff::Timestamp;
use kube::Client;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::apply::Applier;
use crate::args::Args;
use crate::metrics::Metrics;
use crate::world::{Moment, World};

/// Changes that come within this time of each other make one plan.
const DEBOUNCE: Duration = Duration::from_millis(40);
/// A plan at the latest after this time, against whatever was missed.
const RESYNC: Duration = Duration::from_secs(60);

/// The operator's parts.
pub(crate) struct Shell {
    args: Args,
    metrics: Metrics,
    wake: Arc<Notify>,
    world: World,
    applier: Applier,
}

impl Shell {
    pub(crate) fn new(client: Client, args: Args, metrics: Metrics) -> Self {
        let wake = Arc::new(Notify::new());
        let world = World::follow(&client, &wake);
        let applier = Applier::new(client, metrics.clone());
        Self { args, metrics, wake, world, applier }
    }

    /// Runs for as long as the process does.
    pub(crate) async fn run(mut self, mut leading: watch::Receiver<bool>) {
        let mut led = false;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep_until(next) => {}
                Ok(()) = leading.changed() => {}
            }
            tokio::time::sleep(DEBOUNCE).await;
            let lead = *leading.borrow_and_update();
            if lead && !led {
                self.applier.forget();
            }
            led = lead;
            self.metrics.set_leading(lead);
            next = self.round(lead).await;
        }
    }

    /// One plan. Returns when the next is due, if nothing happens before.
    async fn round(&mut self, lead: bool) -> Instant {
        let started = Instant::now();
        let Some(moment) = self.world.moment() else { return started + RESYNC };
        if !self.metrics.listed() {
            info!("every watch has listed; planning");
            self.metrics.set_listed();
        }
        let now = Timestamp::now();
        let plan = self.plan(&moment, now);
        self.metrics.planned(started.elapsed());
        let mut next = started + RESYNC;
        if let Some(wake) = plan.wake {
            let pause = Duration::try_from(wake.duration_since(now)).unwrap_or_default();
            next = next.min(started + pause);
        }
        if lead && let Some(again) = self.applier.apply(&plan, &moment).await {
            next = next.min(again);
        }
        next
    }

    fn plan(&self, moment: &Moment, now: Timestamp) -> Plan {
        let wished = self.args.cluster_id.as_ref().and_then(|wish| wish.0.as_ref());
        isthmus_planner::plan(&moment.snapshot(wished.map(|id| id.as_str()), now))
    }
}
