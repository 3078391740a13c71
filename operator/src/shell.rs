// SPDX-License-Identifier: Apache-2.0
//! The loop: something changed, take a snapshot, plan, and apply if we lead.

use std::sync::Arc;
use std::time::Duration;

use isthmus_intake::cluster;
use isthmus_mesh::identity::RootKey;
use isthmus_model::ids::ClusterIdentity;
use isthmus_planner::{ClusterFacts, Plan, Random, cluster_id};
use jiff::Timestamp;
use kube::Client;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::apply::Applier;
use crate::args::Args;
use crate::metrics::Metrics;
use crate::peers::{Desk, Peers, Views, Wish};
use crate::world::{Beside, Moment, World};

/// Changes that come within this time of each other make one plan.
const DEBOUNCE: Duration = Duration::from_millis(40);
/// A plan at the latest after this time, against whatever was missed.
const RESYNC: Duration = Duration::from_secs(60);

/// The operator's parts.
pub(crate) struct Shell {
    args: Args,
    metrics: Metrics,
    identity: ClusterIdentity,
    wake: Arc<Notify>,
    world: World,
    applier: Applier,
    views: Views,
    wishes: mpsc::Sender<Option<Wish>>,
}

impl Shell {
    pub(crate) fn new(client: &Client, args: Args, metrics: Metrics, root: RootKey) -> Self {
        let wake = Arc::new(Notify::new());
        let world = World::follow(client, &args.namespace, &wake);
        let applier = Applier::new(client.clone(), metrics.clone(), &args.pod_name);
        let identity = root.identity().clone();
        let desk = Desk {
            client: client.clone(),
            system_namespace: args.namespace.clone(),
            secrets: world.secrets.clone(),
            invitations: world.invitations.clone(),
            peerings: world.peerings.clone(),
        };
        let peers = Peers::new(root, args.peering_address, desk, Arc::clone(&wake));
        let views = peers.views();
        let (wishes, incoming) = mpsc::channel(4);
        tokio::spawn(peers.run(incoming));
        Self { args, metrics, identity, wake, world, applier, views, wishes }
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
            let lead = *leading.borrow_and_update();
            if lead != led {
                self.applier.forget();
                if !lead {
                    let _ = self.wishes.send(None).await;
                }
            }
            led = lead;
            self.metrics.set_leading(lead);
            tokio::time::sleep(DEBOUNCE).await;
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
        let snapshot = moment.snapshot(self.beside());
        let mut plan = isthmus_planner::plan(&snapshot);
        self.metrics.planned(started.elapsed());
        let mut next = started + RESYNC;
        if let Some(wake) = plan.wake {
            let pause = Duration::try_from(wake.duration_since(snapshot.now)).unwrap_or_default();
            next = next.min(started + pause);
        }
        if lead {
            self.metrics.set_refused(std::mem::take(&mut plan.refused));
            if let Ok(id) = cluster_id(&snapshot.cluster) {
                let wish = self.wish(&moment, id, &mut plan);
                let _ = self.wishes.send(Some(wish)).await;
            }
            if let Some(again) = self.applier.apply(&plan, &moment).await {
                next = next.min(again);
            }
        }
        next
    }

    fn beside(&self) -> Beside {
        let mut random = [0; 32];
        // Without randomness no token is made; everything else goes on.
        let random = getrandom::fill(&mut random).is_ok().then_some(Random(random));
        let wished = self.args.cluster_id.as_ref().and_then(|wish| wish.0.as_ref());
        Beside {
            now: Timestamp::now(),
            facts: ClusterFacts {
                wished_id: wished.map(|id| id.as_str().to_owned()),
                identity: Some(self.identity.clone()),
                peering_port: self.args.peering_address.port(),
                peering_node_port: self.args.peering_node_port,
                system_namespace: self.args.namespace.clone(),
                random,
                ..ClusterFacts::default()
            },
            host_ip: self.args.host_ip,
            peers: self.views.read(),
        }
    }

    fn wish(&self, moment: &Moment, cluster_id: isthmus_model::ids::ClusterId, plan: &mut Plan) -> Wish {
        let token = |name: &String| cluster::token(moment.secret(&self.args.namespace, name)?);
        let peers = std::mem::take(&mut plan.peers).into_iter().map(|(name, peering)| {
            let token = peering.token_secret.as_ref().and_then(token);
            (name, (peering, token))
        });
        Wish {
            cluster_id,
            peers: peers.collect(),
            announcement: Arc::new(std::mem::take(&mut plan.announcement)),
        }
    }
}
