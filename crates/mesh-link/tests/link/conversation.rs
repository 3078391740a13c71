// SPDX-License-Identifier: Apache-2.0
//! What the two tell each other.

use std::sync::Arc;

use isthmus_mesh::identity::RootKey;
use isthmus_mesh::record::announcement;
use isthmus_mesh::wire::{ByeReason, Hello, Message, Position, Versions};
use jiff::Timestamp;

use crate::lab::{BareClient, TestCluster, cluster_record, export_record};

fn hello(have: Option<Position>) -> Message {
    Message::Hello(Hello { versions: Versions::OURS, cluster_id: "bare".parse().unwrap(), epoch: 1, have })
}

/// A server that knows a bare client, and that client after its Hello was answered.
async fn greeted(east: &mut TestCluster, root: &RootKey, have: Option<Position>) -> BareClient {
    let address = east.serve().await;
    east.know(root.identity().clone());
    let mut client = BareClient::connect(address, root, &east.identity()).await;
    client.send(&hello(have)).await;
    assert!(matches!(client.receive_news().await, Some(Message::Hello(_))));
    client
}

#[tokio::test]
async fn both_get_the_others_announcement_and_every_change_of_it() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let address = east.serve().await;
    east.know(west.identity());
    let peer = west.know(east.identity());
    west.dial(&peer, &[address], None);
    east.expect_announced(&announcement([cluster_record("west")])).await;
    west.expect_announced(&announcement([cluster_record("east")])).await;

    let more = announcement([cluster_record("west"), export_record("web")]);
    west.local.send_replace(Arc::new(more.clone()));
    east.expect_announced(&more).await;
    let less = announcement([cluster_record("west")]);
    west.local.send_replace(Arc::new(less.clone()));
    east.expect_announced(&less).await;
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_tells_what_changed_meanwhile() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let (first, _) = (east.serve().await, east.know(west.identity()));
    let peer = west.know(east.identity());
    west.dial(&peer, &[first], None);
    west.expect_announced(&announcement([cluster_record("east")])).await;

    east.kill();
    west.expect_disconnected().await;
    let second = east.serve().await;
    let changed = announcement([cluster_record("east"), export_record("web")]);
    east.local.send_replace(Arc::new(changed.clone()));
    west.kill();
    west.dial(&peer, &[first, second], None);
    west.expect_announced(&changed).await;
}

#[tokio::test]
async fn a_client_that_says_what_it_has_gets_the_changes_and_not_the_whole() {
    let root = RootKey::generate(Timestamp::now()).unwrap();
    let mut east = TestCluster::new("east");
    let mut client = greeted(&mut east, &root, None).await;
    let Some(Message::Snapshot { revision, done: true, .. }) = client.receive_news().await else {
        panic!("the first connection gets a snapshot");
    };
    let address = east.serve().await;
    let mut again = BareClient::connect(address, &root, &east.identity()).await;
    again.send(&hello(Some(Position { epoch: 1, revision }))).await;
    assert!(matches!(again.receive_news().await, Some(Message::Hello(_))));
    let next = again.receive_news().await;
    let expected = Message::Delta { from: revision, revision, put: Vec::new(), remove: Vec::new() };
    assert_eq!(next, Some(expected), "nothing changed meanwhile");

    east.local.send_replace(Arc::new(announcement([cluster_record("east"), export_record("web")])));
    let Some(Message::Delta { put, .. }) = again.receive_news().await else {
        panic!("a change comes as a delta")
    };
    assert_eq!(put, [export_record("web")]);
}

#[tokio::test]
async fn a_newer_connection_of_the_same_peer_takes_over_from_the_older() {
    let root = RootKey::generate(Timestamp::now()).unwrap();
    let mut east = TestCluster::new("east");
    let mut older = greeted(&mut east, &root, None).await;
    assert!(matches!(older.receive_news().await, Some(Message::Snapshot { .. })));
    let address = east.serve().await;
    let mut newer = BareClient::connect(address, &root, &east.identity()).await;
    newer.send(&hello(None)).await;
    assert!(matches!(newer.receive_news().await, Some(Message::Hello(_))));
    let last = older.receive_news().await;
    assert!(matches!(last, Some(Message::Bye { reason: ByeReason::Superseded, .. })), "{last:?}");
    assert_eq!(older.receive_news().await, None);
}

#[tokio::test]
async fn two_clusters_that_both_dial_end_up_with_one_link() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let (east_at, west_at) = (east.serve().await, west.serve().await);
    let (to_west, to_east) = (east.know(west.identity()), west.know(east.identity()));
    east.dial(&to_west, &[west_at], None);
    // The other side starts a moment apart, as its own object comes and goes.
    east.expect_connected().await;
    west.dial(&to_east, &[east_at], None);
    west.expect_connected().await;
    let changed = announcement([cluster_record("west"), export_record("web")]);
    west.local.send_replace(Arc::new(changed.clone()));
    east.expect_announced(&changed).await;
}

#[tokio::test]
async fn a_removed_peering_ends_the_link_and_says_so_to_the_other_side() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let address = east.serve().await;
    let to_west = east.know(west.identity());
    let peer = west.know(east.identity());
    west.dial(&peer, &[address], None);
    west.expect_connected().await;
    east.books.lock().unwrap().peers.clear();
    to_west.close();
    let reason = west.expect_disconnected().await;
    assert!(reason.contains("the peering was removed"), "{reason}");
    let next = west.expect_disconnected().await;
    assert!(next.contains("no ClusterPeering of this cluster has your identity"), "{next}");
}
