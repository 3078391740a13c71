// SPDX-License-Identifier: Apache-2.0
//! The one event loop: watches, kernel events, the data plane and CNI calls in; kernel state and a status out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_compiler::{NodeFacts, NodeIntent, closed_ruleset, compile};
use isthmus_intake::node::{Problem, intake};
use isthmus_kernel::{Change, Events, InSync, Kernel, Nft, Outcomes};
use isthmus_model::dataplane::{DataplaneConfig, DataplaneState, Report, Tunnel};
use isthmus_model::ids::{LinkName, NodeName};
use isthmus_model::kernel::Desired;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::addresses::Attachment;
use crate::conflist::{Conflist, Ensured};
use crate::dataplane_link::{DataplaneLink, Heard};
use crate::memory::Memory;
use crate::node::{Advance, Failures, Node};
use crate::notices::Notice;
use crate::status::{self, Report as NodeReport};
use crate::underlay::uplinks;

/// Changes come in bursts: look at the kernel when one is over.
const SETTLE: Duration = Duration::from_millis(20);
/// Not more often, whatever happens.
const BETWEEN_CONVERGENCES: Duration = Duration::from_millis(200);
/// Without any event.
const CONVERGE_EVERY: Duration = Duration::from_secs(60);
const RETRY_FAILED: Duration = Duration::from_secs(2);
/// While the engine cannot act at all, and nothing that happens wakes it.
const RETRY_BLOCKED: Duration = Duration::from_millis(500);
/// How long a new agent says nothing of its node while API server and data plane have not told it enough.
const LISTEN_FIRST: Duration = Duration::from_secs(15);
/// How long a new agent waits for the API server before it acts on what the node knew before.
const REMEMBER_AFTER: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_secs(2);
/// How long a tunnel outlives the routes through it.
const LEAVE_AFTER: Duration = Duration::from_secs(2);
const PROBE_JOURNAL_TICKS: u64 = 5;
const ORPHANS_TICKS: u64 = 15;

/// How the kernel of this node is opened once the data plane process has passed the socket of our nftables table.
pub type OpenKernel = Box<dyn Fn(Nft) -> Result<Kernel, isthmus_kernel::KernelError> + Send>;

/// The engine's ties to the rest.
pub struct Wiring {
    /// This node's name.
    pub name: NodeName,
    /// State shared with the CNI server.
    pub node: Arc<Node>,
    /// CNI calls that wait for the kernel.
    pub advances: mpsc::UnboundedReceiver<Advance>,
    /// The data plane process.
    pub dataplane: DataplaneLink,
    /// Opens the kernel.
    pub open_kernel: OpenKernel,
    /// The runtime's configuration.
    pub conflist: Option<Conflist>,
    /// What the node acted on last.
    pub memory: Memory,
    /// What is reported of the node.
    pub report: watch::Sender<Option<NodeReport>>,
    /// What an administrator is told once.
    pub notices: mpsc::UnboundedSender<Notice>,
}

/// The event loop's state.
pub struct Engine {
    wiring: Wiring,
    kernel: Option<Kernel>,
    events: Option<Events>,
    intent: Arc<NodeIntent>,
    /// What the intent does without; none before the objects were read once.
    problems: Option<Vec<Problem>>,
    facts: NodeFacts,
    desired: Option<Arc<Desired>>,
    configured: Option<DataplaneConfig>,
    /// When the tunnels go that are not wanted any more.
    leave_at: Option<Instant>,
    /// The data plane process has said on this connection what it runs.
    dataplane_told: bool,
    armed: bool,
    /// The intent is what the node knew before: nothing may be taken away.
    from_memory: bool,
    /// What the API server told was kept on disk, or tried to be, since this agent started.
    remembered: bool,
    /// Why the memory could not be written the last time.
    forgetful: Option<String>,
    /// The configuration, being brought to what it shall be.
    ensuring: Option<JoinHandle<std::io::Result<Ensured>>>,
    /// Why that failed the last time.
    unconfigured: Option<String>,
    objects_changed: bool,
    /// When the kernel is to be read and compared next.
    converge_at: Instant,
    /// The clock alone does not wake an engine that could do nothing before this.
    blocked_until: Instant,
    converged_at: Option<Instant>,
    started: Instant,
    failures: Failures,
    /// Those that were there the time before, too.
    confirmed: BTreeMap<String, String>,
    ticks: u64,
}

impl Engine {
    /// An engine that has seen nothing yet.
    pub fn new(wiring: Wiring) -> Self {
        Self {
            wiring,
            kernel: None,
            events: None,
            intent: Arc::default(),
            problems: None,
            facts: NodeFacts::default(),
            desired: None,
            configured: None,
            leave_at: None,
            dataplane_told: false,
            armed: false,
            from_memory: false,
            remembered: false,
            forgetful: None,
            ensuring: None,
            unconfigured: None,
            objects_changed: true,
            converge_at: Instant::now(),
            blocked_until: Instant::now(),
            started: Instant::now(),
            converged_at: None,
            failures: Failures::default(),
            confirmed: BTreeMap::new(),
            ticks: 0,
        }
    }

    /// Runs until the process ends. Nothing is taken out of the kernel at the end: pods go on.
    pub async fn run(mut self) {
        let mut objects = self.wiring.node.store.subscribe();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut waiting = Vec::new();
            tokio::select! {
                Some(advance) = self.wiring.advances.recv() => waiting.push(advance),
                Some(heard) = self.wiring.dataplane.heard.recv() => self.hear(heard).await,
                Ok(()) = objects.changed() => self.objects_changed = true,
                change = next_change(&mut self.events) => self.kernel_changed(change),
                () = sleep_until(self.converge_at.max(self.blocked_until)), if self.kernel.is_some() => {}
                ensured = finished(&mut self.ensuring) => {
                    self.conflist_ensured(ensured);
                    continue;
                }
                _ = tick.tick() => self.tend().await,
            }
            // A call that waits may do so because of an object that came with it.
            if objects.has_changed().unwrap_or(false) {
                objects.mark_unchanged();
                self.objects_changed = true;
            }
            while let Ok(advance) = self.wiring.advances.try_recv() {
                waiting.push(advance);
            }
            if waiting.iter().any(|advance| advance.read_first) {
                self.converge_at = Instant::now();
            }
            let outcome = self.step().await;
            if !waiting.is_empty() {
                for advance in waiting {
                    let _ = advance.done.send(outcome.clone());
                }
                // Pods come first: the calls go on before what was done is told.
                yield_now().await;
            }
            self.tell();
        }
    }

    fn kernel_changed(&mut self, change: std::io::Result<Change>) {
        match change {
            Ok(change) => tracing::debug!(?change, "the kernel changed"),
            Err(error) => {
                tracing::warn!(%error, "kernel events broke off; subscribing again");
                self.events = self.kernel.as_ref().and_then(|kernel| kernel.events().ok());
            }
        }
        self.converge_soon(SETTLE);
    }

    fn converge_soon(&mut self, after: Duration) {
        let earliest = self.converged_at.map_or_else(Instant::now, |last| last + BETWEEN_CONVERGENCES);
        self.converge_at = self.converge_at.min((Instant::now() + after).max(earliest));
    }

    async fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Connected(owner) => {
                (self.configured, self.dataplane_told) = (None, false);
                if let Err(error) = self.take_owner(owner).await {
                    tracing::error!(error = format!("{error:#}"), "the kernel cannot be driven");
                }
            }
            Heard::Report(Report::State(state)) => {
                (self.facts.dataplane, self.dataplane_told) = (state, true);
            }
            Heard::Report(Report::Failed(what)) => tracing::warn!(what, "the data plane could not do all"),
            Heard::Lost(reason) => {
                tracing::warn!(reason, "the data plane process is gone; tunnels wait for it")
            }
        }
    }

    async fn take_owner(&mut self, owner: std::os::fd::OwnedFd) -> anyhow::Result<()> {
        let nft = Nft::from_fd(owner)?;
        if let Some(kernel) = &mut self.kernel {
            kernel.replace_nft(nft).await?;
        } else {
            let kernel = (self.wiring.open_kernel)(nft)?;
            self.events = Some(kernel.events()?);
            self.kernel = Some(kernel);
        }
        self.armed = false;
        self.converge_at = Instant::now();
        Ok(())
    }

    /// One turn: intent, facts, desired, kernel, data plane.
    async fn step(&mut self) -> Result<Failures, String> {
        let outcome = self.advance_or_converge().await;
        if outcome.is_err() {
            self.blocked_until = Instant::now() + RETRY_BLOCKED;
        }
        self.wiring.node.metrics.add("turns_total", 1.0);
        let ready = outcome.as_ref().err().cloned();
        self.wiring.node.set_blocked(ready);
        outcome
    }

    /// What became of a turn: metrics and the report.
    fn tell(&self) {
        let readiness = self.wiring.node.readiness();
        self.wiring.node.metrics.set_readiness(readiness.clone());
        self.publish_report(readiness);
    }

    async fn advance_or_converge(&mut self) -> Result<Failures, String> {
        let Some(kernel) = &mut self.kernel else {
            return Err(
                "waiting for the data plane process of this node (DaemonSet isthmus-dataplane)".to_owned()
            );
        };
        if !self.armed {
            kernel
                .arm(&closed_ruleset())
                .await
                .map_err(|error| format!("the nftables table cannot be made: {error}"))?;
            self.armed = true;
        }
        if !self.dataplane_told {
            // Which tunnels there are follows from its keys.
            return Err("waiting for what the data plane process of this node runs".to_owned());
        }
        let sync = self.in_sync_or_from_memory()?;
        let due = self.converge_at <= Instant::now();
        if due {
            let node = self.wiring.node.clone();
            let _ = spawn_blocking(move || restore_links(&node)).await;
            self.observe_underlay().await;
        }
        self.take_in_objects(sync);
        self.facts.pods = self.wiring.node.ledger().pod_facts();
        self.facts.chained = self.wiring.node.chained().facts();
        let desired = Arc::new(compile(&self.intent, &self.facts));
        // First, since the kernel's entries for tunnels need the devices that the data plane process makes.
        self.configure(&desired.dataplane, Instant::now());
        if due || self.desired.as_ref() != Some(&desired) {
            self.apply(&desired, sync, due || self.desired.is_none()).await;
        }
        self.desired = Some(desired);
        if sync.is_some() && !std::mem::replace(&mut self.remembered, true) {
            self.keep_intent();
        }
        Ok(self.failures.clone())
    }

    /// Tunnels that leave go two seconds after the others were told: routes lead elsewhere then, and what lay in a device's
    /// queue is on its way.
    fn configure(&mut self, wanted: &DataplaneConfig, now: Instant) {
        let leaving = self.configured.as_ref().map(|told| leaving(told, wanted, &self.facts.dataplane));
        let leaves = leaving.as_ref().is_some_and(|leaving| !leaving.is_empty());
        let until = leaves.then(|| self.leave_at.unwrap_or(now + LEAVE_AFTER));
        self.leave_at = until.filter(|until| now < *until);
        let mut config = wanted.clone();
        if self.leave_at.is_some() {
            config.tunnels.extend(leaving.into_iter().flatten());
        }
        if self.configured.as_ref() != Some(&config) {
            self.wiring.dataplane.configure(config.clone());
            self.configured = Some(config);
        }
    }

    /// Proof that all is known; none where the API server keeps silent and the node goes on with what it knew before.
    fn in_sync_or_from_memory(&mut self) -> Result<Option<InSync>, String> {
        let missing = match self.wiring.node.store.in_sync() {
            Ok(sync) => {
                if std::mem::take(&mut self.from_memory) {
                    // What stayed because it might have been wanted goes now.
                    self.converge_at = Instant::now();
                }
                return Ok(Some(sync));
            }
            Err(missing) => missing,
        };
        if !self.from_memory {
            let wait = || format!("waiting for the API server: not listed yet: {missing:?}");
            let remembered = self.wiring.memory.intent().filter(|_| self.started.elapsed() >= REMEMBER_AFTER);
            self.intent = Arc::new(remembered.cloned().ok_or_else(wait)?);
            self.from_memory = true;
            self.set_blocks();
            tracing::warn!(
                ?missing,
                "the API server does not answer: the node goes on with what it knew before"
            );
        }
        Ok(None)
    }

    async fn apply(&mut self, desired: &Arc<Desired>, sync: Option<InSync>, full: bool) {
        let Some(kernel) = &mut self.kernel else { return };
        let outcomes: Outcomes = match sync {
            None => kernel.complete(desired.clone()).await,
            Some(sync) if full => kernel.converge(desired.clone(), sync).await,
            Some(sync) => kernel.advance(desired.clone(), sync).await,
        };
        let metrics = &self.wiring.node.metrics;
        metrics.add(if full { "convergences_total" } else { "advances_total" }, 1.0);
        metrics.add("kernel_changes_total", outcomes.changed as f64);
        metrics.set("kernel_failures", outcomes.failed.len() as f64);
        let clean = outcomes.is_clean();
        self.confirm(&outcomes.failed);
        self.failures = Arc::new(outcomes.failed);
        if full {
            self.converged_at = Some(Instant::now());
            self.converge_at = Instant::now() + if clean { CONVERGE_EVERY } else { RETRY_FAILED };
        } else if !clean {
            self.converge_soon(SETTLE);
        }
    }

    /// What failed twice in a row is told; a tunnel's device that comes a moment later is no news.
    fn confirm(&mut self, failed: &BTreeMap<String, String>) {
        let again = failed.iter().filter(|(what, _)| self.failures.contains_key(*what));
        let confirmed: BTreeMap<_, _> = again.map(|(what, why)| (what.clone(), why.clone())).collect();
        for (what, why) in confirmed.iter().filter(|(what, _)| !self.confirmed.contains_key(*what)) {
            tracing::warn!(what, why, "the kernel is not as wanted");
        }
        self.confirmed = confirmed;
    }

    async fn observe_underlay(&mut self) {
        let Some(kernel) = &self.kernel else { return };
        match kernel.underlay().await {
            Ok(underlay) => {
                self.facts.uplinks = uplinks(&underlay);
                // The other plugin's host ends may have addresses, and lead to a pod and nowhere else.
                let chained = self.wiring.node.chained();
                chained.pods().values().for_each(|pod| drop(self.facts.uplinks.remove(&pod.link)));
            }
            Err(error) => {
                tracing::warn!(%error, "the links of the node cannot be read; the last reading stays")
            }
        }
    }

    fn take_in_objects(&mut self, sync: Option<InSync>) {
        if sync.is_some() && std::mem::take(&mut self.objects_changed) {
            let name = &self.wiring.name;
            let (intent, problems) = self.wiring.node.store.read(|objects| intake(name, objects));
            let known = |problem: &&Problem| self.problems.iter().flatten().any(|known| known == *problem);
            for problem in problems.iter().filter(|problem| !known(problem)) {
                tracing::warn!(%problem, "left out");
            }
            (self.intent, self.problems) = (Arc::new(intent), Some(problems));
            self.set_blocks();
        }
        let mtu = status::pod_mtu(&self.intent, self.facts.uplink_mtu(self.intent.own_addresses()));
        self.wiring.node.publish(&self.intent, mtu);
    }

    fn set_blocks(&self) {
        let serving = |pool| self.intent.pools.get(pool).is_some_and(|pool| pool.serves_this_node);
        let own = self.intent.own_blocks().filter(|(_, block)| serving(&block.pool) && block.pod.is_none());
        let blocks: BTreeMap<_, _> = own.map(|(cidr, block)| (*cidr, block.pool.clone())).collect();
        let reserved = self.intent.pools.values().flat_map(|pool| pool.reserved.iter().copied()).collect();
        let single = self.intent.own_blocks().filter(|(_, block)| block.pod.is_some());
        let mut single: BTreeMap<_, _> = single.map(|(cidr, _)| (cidr.addr(), None)).collect();
        if !self.from_memory {
            // Since the node remembered it, it may have told that the pod is gone.
            let now = self.intent.own_addresses_of_pods();
            single.extend(now.map(|(address, pod)| (address, Some(pod.clone()))));
        }
        let mut ledger = self.wiring.node.ledger();
        ledger.set_blocks(blocks, reserved);
        ledger.set_own(single);
    }

    /// Says how the node is. A new agent first listens: a report without key, addresses and tunnels would be taken
    /// for a gateway that has none, and the peers would take their tunnels to it away.
    fn publish_report(&self, readiness: Result<(), String>) {
        let complete = self.wiring.node.store.in_sync().is_ok() && self.facts.dataplane.public_key.is_some();
        if !complete && self.started.elapsed() < LISTEN_FIRST {
            return;
        }
        let usage = self.wiring.node.ledger().usage();
        let metrics = &self.wiring.node.metrics;
        metrics.set("addresses_in_use", usage.values().sum::<usize>() as f64);
        metrics.set_info("offload_info", "feature", &self.facts.dataplane.offload);
        let unsegmented = self.facts.dataplane.probes.values().filter(|probe| probe.unsegmented).count();
        metrics.set("unsegmented_paths", unsegmented as f64);
        let problems = self.problems.as_deref();
        let report =
            status::report(&self.intent, &self.facts, &usage, readiness, &self.told_failures(), problems);
        self.wiring.report.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&report);
            *current = Some(report);
            changed
        });
    }

    /// What is not as wanted: in the kernel, and around the agent.
    fn told_failures(&self) -> BTreeMap<String, String> {
        let mut failures = self.confirmed.clone();
        if self.from_memory {
            let how = "does not answer this agent; the node goes on with what it knew before";
            failures.insert("the API server".to_owned(), how.to_owned());
        }
        if let Some(why) = &self.forgetful {
            let file = self.wiring.memory.path().display();
            let how = format!(
                "cannot be written: {why}; make its disk writable, or an agent that starts without the API server does not know what is new since then"
            );
            failures.insert(format!("the file {file}"), how);
        }
        failures
    }

    /// What nobody tells us of: a full disk, containers that vanished, an edited configuration.
    async fn tend(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(PROBE_JOURNAL_TICKS) {
            let node = self.wiring.node.clone();
            let probe = move || {
                node.ledger().probe_journal();
                node.chained().probe_journal();
            };
            let _ = spawn_blocking(probe).await;
        }
        if self.ticks.is_multiple_of(ORPHANS_TICKS) {
            let node = self.wiring.node.clone();
            let _ = spawn_blocking(move || release_orphans(&node)).await;
        }
        self.tend_conflist();
        self.tend_memory();
    }

    /// Not at each change: those of a minute's roll-out come in hundreds.
    fn tend_memory(&mut self) {
        if self.wiring.node.store.in_sync().is_ok() && self.desired.is_some() {
            self.keep_intent();
        }
    }

    fn keep_intent(&mut self) {
        let failed = self.wiring.memory.remember(&self.intent).err().map(|error| error.to_string());
        if let Some(error) = failed.as_ref().filter(|_| self.forgetful.is_none()) {
            tracing::warn!(error, "what the node knows cannot be kept for a start without the API server");
        }
        self.forgetful = failed;
    }

    /// Beside the loop, since it may wait for a plugin.
    fn tend_conflist(&mut self) {
        let Some(conflist) = &self.wiring.conflist else { return };
        if self.ensuring.is_none() && self.wiring.node.readiness().is_ok() {
            let conflist = conflist.clone();
            self.ensuring = Some(spawn_blocking(move || conflist.ensure()));
        }
    }

    fn conflist_ensured(&mut self, ensured: std::io::Result<Ensured>) {
        let Some(conflist) = &self.wiring.conflist else { return };
        let (file, kept) = (conflist.file(), conflist.edited());
        match &ensured {
            Ok(Ensured::Kept) => {}
            Ok(Ensured::Written) => tracing::info!("pods can be added: the CNI configuration is written"),
            Ok(Ensured::Restored) => self.notice(Notice::ConfigurationRestored { file, kept }),
            Err(error) if self.unconfigured.as_ref() == Some(&error.to_string()) => {}
            Err(error) => self.notice(Notice::ConfigurationNotWritten { file, why: error.to_string() }),
        }
        if ensured.is_err() {
            self.wiring.node.metrics.add("configuration_failures_total", 1.0);
        }
        self.unconfigured = ensured.err().map(|error| error.to_string());
    }

    fn notice(&self, notice: Notice) {
        tracing::warn!("{notice}");
        let _ = self.wiring.notices.send(notice);
    }
}

/// Host ends that somebody took down: their routes went too, and come back with what follows.
fn restore_links(node: &Node) {
    let Ok(links) = node.links.list() else { return };
    let down = |to: &Attachment| links.get(&to.link).is_some_and(|link| !link.up);
    let linked = node.ledger().linked_attachments();
    for (key, to) in linked.into_iter().filter(|(_, to)| down(to)) {
        let Ok(ifname) = key.ifname.parse() else { continue };
        // The pod's own end is not touched: its namespace is not needed.
        let wanted = to.pod_link(&key, ifname, PathBuf::new(), node.view().pod_mtu);
        match node.links.restore(&wanted) {
            Ok(()) => tracing::warn!(link = %to.link, "a pod's link was down and is up again"),
            Err(error) => tracing::warn!(link = %to.link, %error, "a pod's link is down"),
        }
    }
}

/// A veth pair goes with its container's namespace, also where the runtime never calls DEL.
fn release_orphans(node: &Node) {
    let before = node.ledger().linked();
    match node.links.list() {
        Ok(links) => {
            let links = links.into_keys().collect();
            for key in node.ledger().release_unlinked(&before, &links, std::time::Instant::now()) {
                tracing::info!(container = key.container, "its container is gone: addresses given back");
            }
        }
        Err(error) => tracing::warn!(%error, "pods' links cannot be listed"),
    }
    forget_vanished(node);
}

/// The same of pods that another plugin made.
fn forget_vanished(node: &Node) {
    let before = node.chained().pods().clone();
    if before.is_empty() {
        return;
    }
    match node.links.indices() {
        Ok(links) => {
            for key in node.chained().forget_vanished(&before, &links) {
                tracing::info!(container = key.container, "its container is gone: forgotten");
            }
        }
        Err(error) => tracing::warn!(%error, "links cannot be listed"),
    }
}

/// What became of the configuration; never, while nobody looks after it.
async fn finished(ensuring: &mut Option<JoinHandle<std::io::Result<Ensured>>>) -> std::io::Result<Ensured> {
    let Some(task) = ensuring else { return std::future::pending().await };
    let ensured = task.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    *ensuring = None;
    ensured
}

/// The next change of the kernel; never, without a subscription.
async fn next_change(events: &mut Option<Events>) -> std::io::Result<Change> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// Whether what failed concerns the pod behind `link` with these addresses.
pub(crate) fn concerns_pod(
    failures: &BTreeMap<String, String>,
    link: &LinkName,
    addresses: &[std::net::IpAddr],
) -> Option<String> {
    let own: Vec<String> = addresses.iter().map(|address| ipnet::IpNet::from(*address).to_string()).collect();
    let concerns = |what: &str| {
        what.starts_with("nft")
            || what.split_whitespace().any(|word| word == link.as_str() || own.iter().any(|net| net == word))
    };
    failures.iter().find(|(what, _)| concerns(what)).map(|(what, why)| format!("{what}: {why}"))
}

/// Tunnels that run and are not wanted, with a key that is still there. None whose ends are wanted under another name: a peer's
/// key belongs to one tunnel.
fn leaving(
    told: &DataplaneConfig,
    wanted: &DataplaneConfig,
    now: &DataplaneState,
) -> BTreeMap<LinkName, Tunnel> {
    let both_slots = now.next_public_key.is_some() || now.previous_public_key.is_some();
    let ends = |tunnel: &Tunnel| (tunnel.lane, tunnel.key_slot, tunnel.peer_key.clone());
    let taken: BTreeSet<_> = wanted.tunnels.values().map(ends).collect();
    let leaves = |(name, tunnel): &(&LinkName, &Tunnel)| {
        let has_key = both_slots || tunnel.key_slot == now.key_slot;
        has_key && wanted.gateway && !wanted.tunnels.contains_key(*name) && !taken.contains(&ends(tunnel))
    };
    told.tunnels.iter().filter(leaves).map(|(name, tunnel)| (name.clone(), tunnel.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_model::dataplane::KeySlot;

    fn tunnels(of: &[(&str, &str, KeySlot)]) -> DataplaneConfig {
        let tunnel = |(name, key, key_slot): &(&str, &str, KeySlot)| {
            let tunnel = Tunnel {
                peer: "west".parse().unwrap(),
                peer_key: (*key).to_owned(),
                endpoint: None,
                allowed: BTreeSet::new(),
                keepalive_s: 0,
                key_slot: *key_slot,
                lane: 0,
            };
            (name.parse().unwrap(), tunnel)
        };
        DataplaneConfig {
            gateway: true,
            tunnels: of.iter().map(tunnel).collect(),
            ..DataplaneConfig::default()
        }
    }

    #[test]
    fn a_tunnel_that_is_not_wanted_any_more_leaves_later_if_it_still_has_its_ends() {
        let one_key = DataplaneState::default();
        let told = tunnels(&[("iw-1", "a", KeySlot::First), ("iw-2", "b", KeySlot::First)]);
        let names = |wanted: &DataplaneConfig, state: &DataplaneState| -> Vec<String> {
            leaving(&told, wanted, state).into_keys().map(|name| name.to_string()).collect()
        };
        assert_eq!(names(&tunnels(&[("iw-2", "b", KeySlot::First)]), &one_key), ["iw-1"]);
        assert!(names(&told, &one_key).is_empty());
        let renamed = tunnels(&[("iw-3", "a", KeySlot::First), ("iw-2", "b", KeySlot::First)]);
        assert!(names(&renamed, &one_key).is_empty(), "its peer's key belongs to another tunnel now");
        let second = DataplaneState { key_slot: KeySlot::Second, ..DataplaneState::default() };
        assert!(names(&tunnels(&[]), &second).is_empty(), "its key is gone");
        assert!(names(&DataplaneConfig::default(), &one_key).is_empty(), "the node is no gateway any more");
    }
}
