// SPDX-License-Identifier: Apache-2.0
//! What the agent reports of its node: `NodeNetwork/<node>` status, written by server-side apply and only on change.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use isthmus_api::condition::{self, Wanted};
use isthmus_api::v1alpha1::{
    AddressRequest, BlockUsage, NodeLane, NodeNetwork, NodeNetworkStatus, TunnelStatus,
};
use isthmus_compiler::{
    Encapsulation, NodeFacts, NodeIntent, OwnTunnel, Request, own_tunnels, tunnel_probe, vxlan_mac,
};
use isthmus_intake::node::Problem;
use isthmus_model::dataplane::{DataplaneState, KeySlot, LaneKeys};
use isthmus_model::ids::{LinkName, NodeName};
use isthmus_model::ownership::{LANES_MAX, WIREGUARD_PORT, lane_port};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

const FIELD_MANAGER: &str = "isthmus-agent";
/// The condition that says whether the node does without an object, or a part of one.
const OBJECTS_ACCEPTED: &str = "ObjectsAccepted";
const PROBLEMS_NAMED: usize = 3;
const PROBLEM_MAX_CHARACTERS: usize = 320;
/// VXLAN over IPv4 and IPv6 takes this much of the link's MTU.
const VXLAN_OVERHEAD: u32 = 70;
const URGENT_AFTER: Duration = Duration::from_millis(100);
const USAGE_AFTER: Duration = Duration::from_secs(1);
const MEASURES_AFTER: Duration = Duration::from_secs(30);
/// A node has fewer pods.
const REQUESTS_MAX: usize = 1024;
/// No pod's addresses are kept from more.
const POOLS_MAX: usize = 32;
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// A status without times.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    status: NodeNetworkStatus,
    ready: Wanted,
    accepted: Wanted,
}

impl Report {
    /// The status, without conditions.
    pub fn status(&self) -> &NodeNetworkStatus {
        &self.status
    }

    /// The conditions.
    pub fn conditions(&self) -> [&Wanted; 2] {
        [&self.ready, &self.accepted]
    }
}

/// MTU of pods' interfaces: room is kept for VXLAN where every packet to another node is encapsulated; elsewhere routes say it.
pub fn pod_mtu(intent: &NodeIntent, uplink_mtu: u32) -> u32 {
    let always = intent.own_blocks().filter_map(|(_, block)| intent.pools.get(&block.pool));
    let always = always.into_iter().any(|pool| pool.encapsulation == Encapsulation::Always);
    if always { uplink_mtu.saturating_sub(VXLAN_OVERHEAD).max(1280) } else { uplink_mtu }
}

/// The node as it is. `problems` are what the intent does without; none, as long as the objects were not read.
pub fn report(
    intent: &NodeIntent,
    facts: &NodeFacts,
    usage: &BTreeMap<IpNet, usize>,
    readiness: Result<(), String>,
    failures: &BTreeMap<String, String>,
    problems: Option<&[Problem]>,
) -> Report {
    let endpoint =
        |address: &std::net::IpAddr| std::net::SocketAddr::new(*address, WIREGUARD_PORT).to_string();
    let blocks =
        usage.iter().map(|(cidr, used)| BlockUsage { cidr: cidr.to_string(), allocated: *used as i64 });
    let mac = |node: &NodeName| vxlan_mac(node).map(|byte| format!("{byte:02x}")).join(":");
    let status = NodeNetworkStatus {
        public_key: facts.dataplane.public_key.clone(),
        next_public_key: facts.dataplane.next_public_key.clone(),
        key_slot: slot_number(facts.dataplane.key_slot),
        lanes: lanes(&facts.dataplane),
        key_generation: facts.dataplane.public_key.is_some().then_some(facts.dataplane.key_generation as i64),
        endpoints: intent.own_addresses().iter().map(endpoint).collect(),
        mesh_addresses: intent.own_mesh_addresses().map(|address| address.to_string()).collect(),
        vxlan_mac: intent.node.as_ref().map(mac),
        offload: facts.dataplane.offload.iter().cloned().collect(),
        blocks: blocks.collect(),
        requests: requests(intent),
        tunnels: tunnels(intent, facts),
        ..NodeNetworkStatus::default()
    };
    Report { status, ready: ready(readiness, failures), accepted: accepted(problems) }
}

fn lanes(dataplane: &DataplaneState) -> Vec<NodeLane> {
    let numbered = (0..LANES_MAX).zip(&dataplane.lanes);
    let lane = |(number, keys): (u8, &LaneKeys)| NodeLane {
        public_key: keys.public_key.clone(),
        next_public_key: keys.next_public_key.clone(),
        port: lane_port(WIREGUARD_PORT, number).into(),
    };
    numbered.map(lane).collect()
}

/// What the operator gives blocks of one address for.
fn requests(intent: &NodeIntent) -> Vec<AddressRequest> {
    let request = |Request { pod, addresses, keep_with, keep_from }| AddressRequest {
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        addresses: addresses.iter().map(ToString::to_string).collect(),
        stateful_set: keep_with,
        keep_from: keep_from.iter().take(POOLS_MAX).map(ToString::to_string).collect(),
    };
    intent.requests().take(REQUESTS_MAX).map(request).collect()
}

fn ready(readiness: Result<(), String>, failures: &BTreeMap<String, String>) -> Wanted {
    let (status, reason, message) = match (readiness, failures.iter().next()) {
        (Err(why), _) => (Some(false), "PodsCannotBeAdded", why),
        (Ok(()), Some((what, why))) => {
            let more = failures.len() - 1;
            (Some(false), "KernelRefused", format!("{what}: {why} (and {more} more); see the agent's log"))
        }
        (Ok(()), None) => (Some(true), "AsWanted", "pods can be added; the kernel is as wanted".to_owned()),
    };
    Wanted { kind: condition::READY, status, reason, message }
}

fn accepted(problems: Option<&[Problem]>) -> Wanted {
    let (status, reason, message) = match problems {
        None => (None, "NotRead", "the API server has not told this agent all objects yet".to_owned()),
        Some([]) => (Some(true), "AllAccepted", "nothing is left out".to_owned()),
        Some(problems) => (Some(false), "LeftOut", left_out(problems)),
    };
    Wanted { kind: OBJECTS_ACCEPTED, status, reason, message }
}

/// The first problems in words, each cut so that all fit in 1024 characters, and how many there are besides.
fn left_out(problems: &[Problem]) -> String {
    let mut named: Vec<String> =
        problems.iter().take(PROBLEMS_NAMED).map(|problem| cut(&problem.to_string())).collect();
    let more = problems.len() - named.len();
    if more > 0 {
        named.push(format!("and {more} more, see the agent's log"));
    }
    named.join("; ")
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(PROBLEM_MAX_CHARACTERS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn tunnels(intent: &NodeIntent, facts: &NodeFacts) -> Vec<TunnelStatus> {
    let status = |(device, own): (LinkName, OwnTunnel<'_>)| {
        let tunnel = facts.dataplane.tunnels.get(&device);
        let probe = facts.dataplane.probes.get(&tunnel_probe(&device));
        let handshake = tunnel.and_then(|tunnel| tunnel.last_handshake_s);
        TunnelStatus {
            peering: own.peer.to_string(),
            gateway: own.gateway.to_owned(),
            key_slot: slot_number(own.key_slot),
            lane: lane_number(own.lane),
            remote_lane: lane_number(own.remote_lane),
            up: probe.is_some_and(|probe| probe.up),
            endpoint: tunnel.and_then(|tunnel| tunnel.endpoint).map(|endpoint| endpoint.to_string()),
            last_handshake: handshake.and_then(|seconds| minute(seconds as i64)),
            rtt_micros: probe.and_then(|probe| probe.rtt_us).map(|rtt| i64::from(quarter_step(rtt))),
            loss_percent: probe.map(|probe| i32::from(probe.loss_percent.div_ceil(5)) * 5),
            mtu: probe.and_then(|probe| probe.path_mtu).map(i32::from),
            listen_port: tunnel.and_then(|tunnel| tunnel.listen_port).map(i32::from),
            mode: tunnel.map(|_| facts.dataplane.mode.name().to_owned()),
            device: device.to_string(),
        }
    };
    let announced = own_tunnels(intent, &facts.dataplane).into_iter().filter(|(_, own)| !own.draining);
    announced.map(status).collect()
}

/// 1 for a key in the second slot, nothing for one in the first.
fn slot_number(slot: KeySlot) -> Option<i32> {
    (slot == KeySlot::Second).then_some(1)
}

/// Nothing for the first.
fn lane_number(lane: u8) -> Option<i32> {
    (lane > 0).then(|| lane.into())
}

/// Rounded down to the minute, so that it changes seldom (RFC 3339).
fn minute(seconds: i64) -> Option<String> {
    Timestamp::from_second(seconds - seconds.rem_euclid(60)).ok().map(|time| time.to_string())
}

/// Rounded down to quarters between powers of two.
fn quarter_step(value: u32) -> u32 {
    let step = (1_u32 << value.max(1).ilog2()) / 4;
    if step == 0 { value } else { value - value % step }
}

/// Writes each report to `NodeNetwork/<node>`, for ever. Urgent changes at once, usage soon, measures seldom.
pub async fn write(client: Client, node: NodeName, mut reports: watch::Receiver<Option<Report>>) {
    let api = Api::<NodeNetwork>::all(client);
    let mut conditions: Vec<Condition> = Vec::new();
    let mut written: Option<Report> = None;
    let mut changed_at = Instant::now();
    loop {
        let current = reports.borrow_and_update().clone();
        let Some(report) = current.filter(|report| written.as_ref() != Some(report)) else {
            if reports.changed().await.is_err() {
                return;
            }
            changed_at = Instant::now();
            continue;
        };
        let due = changed_at + written.as_ref().map_or(URGENT_AFTER, |written| delay(written, &report));
        if let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            // Further changes may make it urgent.
            let _ = timeout(left, reports.changed()).await;
            continue;
        }
        let now = Time(Timestamp::now());
        for wanted in report.conditions() {
            condition::set(&mut conditions, wanted, None, &now);
        }
        match apply(&api, &node, &report, &conditions).await {
            Ok(()) => written = Some(report),
            Err(error) => {
                tracing::warn!(%error, "the node's status could not be written");
                sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// How long a change may wait.
fn delay(written: &Report, report: &Report) -> Duration {
    if urgent_part(written) != urgent_part(report) {
        URGENT_AFTER
    } else if written.status.blocks != report.status.blocks {
        USAGE_AFTER
    } else {
        MEASURES_AFTER
    }
}

/// The report without usage and measures.
fn urgent_part(report: &Report) -> Report {
    let mut urgent = report.clone();
    urgent.status.blocks.iter_mut().for_each(|block| block.allocated = 0);
    for tunnel in &mut urgent.status.tunnels {
        (tunnel.rtt_micros, tunnel.loss_percent, tunnel.last_handshake) = (None, None, None);
    }
    urgent
}

async fn apply(
    api: &Api<NodeNetwork>,
    node: &NodeName,
    report: &Report,
    conditions: &[Condition],
) -> Result<(), kube::Error> {
    let status = NodeNetworkStatus { conditions: conditions.to_vec(), ..report.status.clone() };
    let object = serde_json::json!({
        "apiVersion": "isthmus.dev/v1alpha1",
        "kind": "NodeNetwork",
        "metadata": { "name": node.as_str() },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch_status(node.as_str(), &params, &Patch::Apply(&object)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_rounded_so_that_noise_writes_nothing() {
        assert_eq!([0, 3, 1000, 1023, 1100].map(quarter_step), [0, 3, 896, 896, 1024]);
        assert_eq!(minute(119).unwrap(), "1970-01-01T00:01:00Z");
    }

    #[test]
    fn what_the_kernel_refused_is_named_in_the_condition() {
        let failures = BTreeMap::from([("route 10.2.0.0/16".to_owned(), "no such device".to_owned())]);
        let (intent, facts) = (NodeIntent::nothing(), NodeFacts::default());
        let report = report(&intent, &facts, &BTreeMap::new(), Ok(()), &failures, None);
        assert_eq!((report.ready.status, report.ready.reason), (Some(false), "KernelRefused"));
        assert!(report.ready.message.contains("route 10.2.0.0/16: no such device"));
    }

    fn problems(count: usize, length: usize) -> Vec<Problem> {
        let problem = |number| Problem { object: format!("IPPool/p{number}"), message: "ß".repeat(length) };
        (0..count).map(problem).collect()
    }

    #[test]
    fn what_is_left_out_is_named_and_what_is_not_named_is_counted() {
        let [none, one, five] = [0, 1, 5].map(|count| accepted(Some(&problems(count, 1))));
        assert_eq!((none.status, none.reason), (Some(true), "AllAccepted"));
        assert_eq!((one.status, one.reason), (Some(false), "LeftOut"));
        assert_eq!(one.message, "IPPool/p0: ß");
        assert!(
            five.message.starts_with("IPPool/p0: ß; IPPool/p1: ß; IPPool/p2: ß; and 2 more"),
            "{}",
            five.message
        );
        assert_eq!(accepted(None).status, None, "nothing is known before the objects were read");
    }

    #[test]
    fn many_long_problems_fit_in_a_bounded_message_that_still_counts_them() {
        let message = accepted(Some(&problems(10_000, 1000))).message;
        assert!(message.chars().count() <= 1024 && message.contains("and 9997 more"), "{message}");
    }

    #[test]
    fn an_object_that_is_left_out_is_told_at_once() {
        let (intent, facts) = (NodeIntent::nothing(), NodeFacts::default());
        let report = |problems: &[Problem]| {
            report(&intent, &facts, &BTreeMap::new(), Ok(()), &BTreeMap::new(), Some(problems))
        };
        assert_eq!(delay(&report(&[]), &report(&problems(1, 1))), URGENT_AFTER);
    }

    #[test]
    fn a_change_of_measures_alone_waits_and_a_tunnel_that_goes_down_does_not() {
        let tunnel = |up, rtt| TunnelStatus { up, rtt_micros: Some(rtt), ..TunnelStatus::default() };
        let report = |tunnel| Report {
            status: NodeNetworkStatus { tunnels: vec![tunnel], ..NodeNetworkStatus::default() },
            ready: ready(Ok(()), &BTreeMap::new()),
            accepted: accepted(Some(&[])),
        };
        assert_eq!(delay(&report(tunnel(true, 1)), &report(tunnel(true, 2))), MEASURES_AFTER);
        assert_eq!(delay(&report(tunnel(true, 1)), &report(tunnel(false, 1))), URGENT_AFTER);
    }
}
