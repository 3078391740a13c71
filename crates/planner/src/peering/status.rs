// SPDX-License-Identifier: Apache-2.0
//! The status of a ClusterPeering.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use isthmus_api::condition::{READY, Wanted};
use isthmus_api::v1alpha1::{
    ClusterPeeringStatus, GatewayLane, GatewayPort, NodeNetworkStatus, Refusal, RemoteGateway, TunnelStatus,
};
use isthmus_mesh::record::{Announcement, Gateway, Lane, PublicKey, Record};
use jiff::{SignedDuration, Timestamp};

use super::{Judged, keys_of, without_namespace};
use crate::conditions::{self, Progress, is, unknown};
use crate::gateways::GATEWAY_LABEL;
use crate::plan::{Event, Kind, ObjectKey, Plan};
use crate::snapshot::{PeerView, Peering, Seen, Snapshot};

const CONNECTED: &str = "Connected";
const FRESH: &str = "Fresh";
const ACCEPTED: &str = "AnnouncementsAccepted";
const TUNNELS_UP: &str = "TunnelsUp";
/// A peer that was silent for longer is not fresh.
pub(crate) const SILENCE: SignedDuration = SignedDuration::from_secs(10);
/// Refusals that a status names.
const REFUSALS: usize = 16;
/// Closed CIDRs that a status holds.
const CLOSED: usize = 256;
/// Refusals that a condition's message names.
const REFUSALS_IN_MESSAGE: usize = 3;

pub(crate) fn statuses(
    snapshot: &Snapshot,
    peers: &BTreeMap<&str, Judged>,
    gateways: &[String],
    plan: &mut Plan,
) {
    for (name, judged) in peers {
        let seen = &snapshot.peerings[*name];
        let status = status(snapshot, name, judged, gateways, plan);
        let key = ObjectKey::cluster(Kind::ClusterPeering, name);
        plan.events.extend(transition(&key, &seen.uid, &seen.status, &status));
        plan.status(key, &status);
    }
}

fn status(
    snapshot: &Snapshot,
    name: &str,
    judged: &Judged,
    gateways: &[String],
    plan: &mut Plan,
) -> ClusterPeeringStatus {
    let seen = &snapshot.peerings[name];
    let nobody = PeerView::default();
    let view = snapshot.peers.get(name).unwrap_or(&nobody);
    let tunnels: Vec<&TunnelStatus> = tunnels(snapshot, name, gateways);
    let up = tunnels.iter().filter(|tunnel| tunnel.up).count();
    let refused = refused(snapshot, judged, view);
    let parts = [
        connected(view, seen.value.as_ref().is_ok_and(|peering| !peering.endpoints.is_empty())),
        fresh(snapshot.now, view, &seen.status, plan),
        accepted(judged, view, &refused),
        tunnels_up(up, tunnels.len(), gateways),
    ];
    let (ready, progress) = ready(judged, view, &parts, up);
    let wanted: Vec<Wanted> = std::iter::once(ready).chain(parts).collect();
    let cidrs = judged.accepted.cidrs.iter().map(ToString::to_string).collect();
    let id = judged.accepted.cluster_id.as_ref().map(ToString::to_string);
    ClusterPeeringStatus {
        observed_generation: seen.generation,
        conditions: conditions::updated(
            &seen.status.conditions,
            &wanted,
            progress,
            seen.generation,
            snapshot.now,
        ),
        cluster_id: id,
        identity: identity(
            view,
            &seen.status,
            seen.value.as_ref().ok().map(|peering| peering.identity.as_str()),
        ),
        remote_cidrs: cidrs,
        closed_cidrs: closed(judged, view, seen).iter().map(ToString::to_string).collect(),
        remote_gateways: judged.accepted.gateways.values().map(|one| remote_gateway(snapshot, one)).collect(),
        local_gateways: if judged.problem.is_some() { Vec::new() } else { gateways.to_vec() },
        tunnels: (!tunnels.is_empty()).then(|| format!("{up}/{}", tunnels.len())),
        last_heard: last_heard(snapshot.now, view).or_else(|| seen.status.last_heard.clone()),
        refused: refused.into_iter().take(REFUSALS).collect(),
    }
}

/// What was in force and is refused now, as far as it is granted and the peer did not take it back: its traffic must not fall
/// to the default route because of a conflict.
fn closed(judged: &Judged, view: &PeerView, seen: &Seen<Peering, ClusterPeeringStatus>) -> BTreeSet<IpNet> {
    let was = seen.status.remote_cidrs.iter().chain(&seen.status.closed_cidrs);
    let granted = |cidr: &IpNet| match &seen.value {
        Ok(peering) => peering.allowed_cidrs.iter().any(|grant| grant.contains(cidr)),
        Err(_) => true,
    };
    let taken_back = |cidr: &IpNet| {
        judged.problem.is_none()
            && view.announcement.as_deref().is_some_and(|all| !announced_cidrs(all).any(|one| one == cidr))
    };
    was.filter_map(|cidr| cidr.parse().ok())
        .filter(|cidr| !judged.accepted.cidrs.contains(cidr) && granted(cidr) && !taken_back(cidr))
        .take(CLOSED)
        .collect()
}

fn announced_cidrs(announcement: &Announcement) -> impl Iterator<Item = &IpNet> {
    let clusters = announcement.values().filter_map(|record| match record {
        Record::Cluster(cluster) => Some(cluster),
        _ => None,
    });
    clusters.flat_map(|cluster| &cluster.pod_cidrs)
}

/// The identity counts as proved once a stream was up; it stays proved while the pin is the same.
fn identity(view: &PeerView, old: &ClusterPeeringStatus, pin: Option<&str>) -> Option<String> {
    let pin = pin?;
    let proved = view.connected || view.last_heard.is_some() || old.identity.as_deref() == Some(pin);
    proved.then(|| pin.to_owned())
}

fn remote_gateway(snapshot: &Snapshot, gateway: &Gateway) -> RemoteGateway {
    let port =
        |(key, port): (&PublicKey, &u16)| GatewayPort { public_key: key.to_string(), port: (*port).into() };
    RemoteGateway {
        name: gateway.name.clone(),
        public_key: gateway.public_key.to_string(),
        endpoints: gateway.endpoints.iter().map(ToString::to_string).collect(),
        mesh_addresses: gateway.mesh_addresses.iter().map(ToString::to_string).collect(),
        ports: gateway
            .ports
            .iter()
            .filter(|(key, _)| is_or_was_ours(snapshot, gateway, key))
            .map(port)
            .collect(),
        lanes: gateway.lanes.iter().map(lane).collect(),
    }
}

fn lane(lane: &Lane) -> GatewayLane {
    GatewayLane { public_key: lane.public_key.to_string(), port: lane.port.into() }
}

/// Only what a gateway of ours looks for is kept; while its key rotates it may look for the old one.
fn is_or_was_ours(snapshot: &Snapshot, gateway: &Gateway, key: &PublicKey) -> bool {
    let key = key.to_string();
    let own = |status: &NodeNetworkStatus| keys_of(status).any(|own| *own == key);
    let kept = |status: &ClusterPeeringStatus| {
        let remotes = status.remote_gateways.iter().filter(|remote| remote.name == gateway.name);
        remotes.flat_map(|remote| &remote.ports).any(|port| port.public_key == key)
    };
    snapshot.node_networks.values().any(|seen| own(&seen.status))
        || snapshot.peerings.values().any(|seen| kept(&seen.status))
}

fn tunnels<'a>(snapshot: &'a Snapshot, name: &str, gateways: &[String]) -> Vec<&'a TunnelStatus> {
    let networks = gateways.iter().filter_map(|gateway| snapshot.node_networks.get(gateway));
    networks.flat_map(|seen| &seen.status.tunnels).filter(|tunnel| tunnel.peering == name).collect()
}

/// While the peer speaks, to the minute: a status that changed every second would be a load of its own.
fn last_heard(now: Timestamp, view: &PeerView) -> Option<String> {
    let heard = view.last_heard?;
    let step = if now.duration_since(heard) > SILENCE { 10 } else { 60 };
    let rounded = heard.as_second() - heard.as_second().rem_euclid(step);
    Timestamp::from_second(rounded).ok().map(|time| time.to_string())
}

fn connected(view: &PeerView, we_dial: bool) -> Wanted {
    match (&view.failure, view.connected, we_dial) {
        (_, true, _) => is(CONNECTED, true, CONNECTED, ""),
        (Some(failure), _, _) => is(CONNECTED, false, failure.reason, bounded(&failure.message, 1024)),
        (None, _, true) => is(CONNECTED, false, "Dialing", "the peer's operator has not answered yet"),
        (None, _, false) => is(CONNECTED, false, "Waiting", "the peer's operator has not connected yet"),
    }
}

fn fresh(now: Timestamp, view: &PeerView, old: &ClusterPeeringStatus, plan: &mut Plan) -> Wanted {
    let Some(heard) = view.last_heard.filter(|_| view.announcement.is_some()) else {
        return match &old.last_heard {
            Some(time) => {
                is(FRESH, false, "Silent", format!("last heard at {time}; what it announced stays"))
            }
            None => is(FRESH, false, "NeverHeard", "the peer has announced nothing yet"),
        };
    };
    let silent_at = heard + SILENCE;
    if now < silent_at {
        // A little later, so that this plan and that one do not meet on the same instant.
        plan.wake_at(silent_at + SignedDuration::from_millis(50));
        return is(FRESH, true, "Heard", "");
    }
    let seconds = heard.as_second() - heard.as_second().rem_euclid(10);
    let time = Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default();
    is(FRESH, false, "Silent", format!("last heard at {time}; what it announced stays"))
}

fn accepted(judged: &Judged, view: &PeerView, refused: &[Refusal]) -> Wanted {
    if let Some(problem) = &judged.problem {
        return is(ACCEPTED, false, problem.reason, &problem.message);
    }
    if view.announcement.is_none() {
        return unknown(ACCEPTED, "NothingAnnounced", "the peer has announced nothing yet");
    }
    if refused.is_empty() {
        return is(ACCEPTED, true, "AllAccepted", "");
    }
    is(ACCEPTED, false, "Refused", summary(refused))
}

fn summary(refused: &[Refusal]) -> String {
    let first: Vec<String> =
        refused.iter().take(REFUSALS_IN_MESSAGE).map(|one| format!("{}: {}", one.what, one.reason)).collect();
    let more = refused.len().saturating_sub(REFUSALS_IN_MESSAGE);
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{rest}", first.join("; "))
}

fn refused(snapshot: &Snapshot, judged: &Judged, view: &PeerView) -> Vec<Refusal> {
    let by_grant = judged
        .refusals
        .iter()
        .map(|one| Refusal { what: bounded(&one.what, 253), reason: bounded(&one.reason, 1024) });
    let malformed = view
        .invalid
        .iter()
        .map(|(what, why)| Refusal { what: bounded(what, 253), reason: bounded(why, 1024) });
    let homeless = without_namespace(snapshot, judged).into_iter().map(|namespace| Refusal {
        what: format!("exports to {namespace}"),
        reason: format!("namespace {namespace} does not exist here; create it to import its services"),
    });
    by_grant.chain(malformed).chain(homeless).collect()
}

/// A peer's words never make an object of ours too large to be stored.
fn bounded(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

fn tunnels_up(up: usize, all: usize, gateways: &[String]) -> Wanted {
    if gateways.is_empty() {
        let way_out = format!(
            "no node of this cluster can be a gateway; make a node Ready, or label one {GATEWAY_LABEL}=true"
        );
        return is(TUNNELS_UP, false, "NoGatewayNode", way_out);
    }
    match (up, all) {
        (_, 0) => is(TUNNELS_UP, false, "NoTunnels", "the gateway nodes have made no tunnel yet"),
        (0, _) => is(TUNNELS_UP, false, "AllDown", "no probe comes back through any tunnel"),
        (up, all) if up < all => is(TUNNELS_UP, false, "SomeDown", "traffic uses the tunnels that are up"),
        _ => is(TUNNELS_UP, true, "AllUp", ""),
    }
}

fn ready(judged: &Judged, view: &PeerView, parts: &[Wanted; 4], up: usize) -> (Wanted, Progress) {
    if let Some(problem) = &judged.problem {
        return (is(READY, false, problem.reason, &problem.message), Progress::Stalled);
    }
    let [connected, fresh, accepted, tunnels] = parts;
    let because = |part: &Wanted| is(READY, false, part.reason, &part.message);
    if fresh.status != Some(true) {
        let part = if view.connected { fresh } else { connected };
        let lasting = view.failure.as_ref().is_some_and(|failure| failure.lasting);
        return (because(part), if lasting { Progress::Stalled } else { Progress::UnderWay });
    }
    if judged.accepted.cidrs.is_empty() {
        return match accepted.status {
            Some(false) => (because(accepted), Progress::Stalled),
            _ => (is(READY, false, "NoCIDRs", "the peer announces no pod CIDRs yet"), Progress::UnderWay),
        };
    }
    if up == 0 {
        return (because(tunnels), Progress::UnderWay);
    }
    (is(READY, true, READY, ""), Progress::Settled)
}

/// An event where Ready changes, for those who look at the object later.
fn transition(
    key: &ObjectKey,
    uid: &str,
    old: &ClusterPeeringStatus,
    new: &ClusterPeeringStatus,
) -> Option<Event> {
    let ready = |status: &ClusterPeeringStatus| {
        status
            .conditions
            .iter()
            .find(|one| one.type_ == READY)
            .map(|one| (one.status.clone(), one.reason.clone()))
    };
    let (before, (status, reason)) = (ready(old), ready(new)?);
    if before == Some((status.clone(), reason.clone())) {
        return None;
    }
    let note = new.conditions.iter().find(|one| one.type_ == READY).map(|one| one.message.clone());
    Some(Event {
        about: key.clone(),
        uid: uid.to_owned(),
        warning: status != "True",
        reason,
        note: bounded(&note.unwrap_or_default(), 1000),
    })
}
