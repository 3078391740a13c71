// SPDX-License-Identifier: Apache-2.0
//! Tampering is seen, our own work is not taken for it.

use std::collections::BTreeSet;
use std::time::Duration;

use isthmus_kernel::{Change, Events, InSync};
use isthmus_model::kernel::{Route, RouteKind, Rule};
use isthmus_testkit::{Lab, within_async};

use super::node::{Node, key, net};

const WITHIN: Duration = Duration::from_secs(1);

async fn next(events: &mut Events) -> Option<Change> {
    tokio::time::timeout(WITHIN, events.next()).await.ok().map(Result::unwrap)
}

/// Changes until none comes for a moment.
async fn all(events: &mut Events) -> BTreeSet<Change> {
    let mut seen = BTreeSet::new();
    while let Ok(change) = tokio::time::timeout(Duration::from_millis(100), events.next()).await {
        seen.insert(change.unwrap());
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_hand_on_our_entries_is_seen_within_a_second() {
    let Some(lab) = Lab::new("tampering") else { return };
    let (mut node, pod) = (Node::new(&lab, "node"), lab.namespace("pod"));
    node.want
        .routes
        .insert(key(net("10.21.0.0/16")), Route { kind: RouteKind::Unreachable, mtu: None, source: None });
    node.add_pod(&pod, 1).await;
    let mut events = node.kernel.events().unwrap();
    node.namespace.sh("ip route del unreachable 10.21.0.0/16");
    assert_eq!(next(&mut events).await, Some(Change::Route));
    node.converge().await;
    node.namespace.sh("ip addr add 192.0.2.9/32 dev lo");
    assert_eq!(next(&mut events).await, Some(Change::Address));
    node.namespace.sh("ip link set ist000000000001 down");
    assert_eq!(next(&mut events).await, Some(Change::Link));
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_work_is_no_event() {
    let Some(lab) = Lab::new("own-work") else { return };
    let (mut node, pod) = (Node::new(&lab, "node"), lab.namespace("pod"));
    let mut events = node.kernel.events().unwrap();
    node.want
        .routes
        .insert(key(net("10.21.0.0/16")), Route { kind: RouteKind::Unreachable, mtu: None, source: None });
    node.converge().await;
    node.add_pod(&pod, 1).await;
    assert_eq!(all(&mut events).await, BTreeSet::new());
    // Routes of others are none of our business, except where packets leave the node.
    node.namespace.sh("ip route add 10.77.0.0/16 dev lo; ip rule add priority 100 lookup main");
    assert_eq!(all(&mut events).await, BTreeSet::new());
    node.namespace.sh("ip route add default dev lo");
    assert_eq!(next(&mut events).await, Some(Change::Route));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_route_or_rule_is_back_within_a_second_without_being_asked() {
    let Some(lab) = Lab::new("back") else { return };
    let mut node = Node::new(&lab, "node");
    node.want
        .routes
        .insert(key(net("10.21.0.0/16")), Route { kind: RouteKind::Unreachable, mtu: None, source: None });
    node.want.rules.insert(Rule { priority: 7300, v6: true, mark: (1 << 31, 0xff00_0000), table: 7300 });
    node.converge().await;
    let mut events = node.kernel.events().unwrap();
    let Node { namespace, mut kernel, want, .. } = node;
    let agent = tokio::spawn(async move {
        while events.next().await.is_ok() {
            kernel.converge(want.clone(), InSync::all_listed()).await;
        }
    });
    namespace.sh("ip route del unreachable 10.21.0.0/16; ip -6 rule del priority 7300");
    within_async(WITHIN, async || {
        namespace.try_sh("ip route show proto 73 | grep 10.21; ip -6 rule | grep 7300")
    })
    .await;
    agent.abort();
}
