// SPDX-License-Identifier: Apache-2.0
//! Who is let in.

use isthmus_mesh::wire::RefusedReason;
use isthmus_mesh_link::{LinkError, PeerEventKind};

use crate::lab::TestCluster;

async fn refusal(cluster: &mut TestCluster) -> (RefusedReason, String) {
    cluster
        .expect("a refusal", |kind| match kind {
            PeerEventKind::Disconnected { reason: LinkError::Refused { reason, message } } => {
                Some((*reason, message.clone()))
            }
            _ => None,
        })
        .await
}

#[tokio::test]
async fn two_clusters_that_know_each_other_connect_and_hear_each_other() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let address = east.serve().await;
    east.know(west.identity());
    let peer = west.know(east.identity());
    west.dial(&peer, &[address], None);
    for cluster in [&mut east, &mut west] {
        cluster.expect_connected().await;
        cluster.expect("Heard", |kind| matches!(kind, PeerEventKind::Heard).then_some(())).await;
    }
}

#[tokio::test]
async fn a_server_with_another_key_than_the_pinned_one_is_refused_by_the_client() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let expected = TestCluster::new("somebody-else").identity();
    let address = east.serve().await;
    let peer = west.know(expected.clone());
    west.dial(&peer, &[address], None);
    let reason = west.expect_disconnected().await;
    assert!(reason.contains(&format!("proved to be {}", east.identity())), "{reason}");
    assert!(reason.contains(&format!("expects {expected}")), "{reason}");
}

#[tokio::test]
async fn a_stranger_without_a_token_is_refused_with_the_way_out() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let address = east.serve().await;
    let peer = west.know(east.identity());
    west.dial(&peer, &[address], None);
    let (reason, message) = refusal(&mut west).await;
    assert_eq!(reason, RefusedReason::UnknownIdentity);
    assert!(message.contains("no token was shown"), "{message}");
}

#[tokio::test]
async fn a_token_lets_one_stranger_in_and_the_next_one_is_told_that_it_was_used() {
    let (mut east, mut west, mut north) =
        (TestCluster::new("east"), TestCluster::new("west"), TestCluster::new("north"));
    let address = east.serve().await;
    let token = east.invite([7; 32]);

    let peer = west.know(east.identity());
    west.dial(&peer, &[address], Some(token.clone()));
    west.expect_connected().await;
    east.expect_connected().await;

    let peer = north.know(east.identity());
    north.dial(&peer, &[address], Some(token));
    let (reason, message) = refusal(&mut north).await;
    assert_eq!(reason, RefusedReason::TokenUsed);
    assert!(message.contains("ask for a new invitation"), "{message}");
}

#[tokio::test]
async fn who_redeemed_once_comes_back_without_a_second_redemption() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let address = east.serve().await;
    let token = east.invite([7; 32]);
    let peer = west.know(east.identity());
    west.dial(&peer, &[address], Some(token.clone()));
    west.expect_connected().await;
    west.kill();
    west.dial(&peer, &[address], Some(token));
    west.expect_connected().await;
}

#[tokio::test]
async fn an_expired_or_invented_token_is_refused_with_its_reason() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let address = east.serve().await;
    let expired = east.invite([7; 32]);
    east.books.lock().unwrap().invitations[0].expired = true;
    let peer = west.know(east.identity());
    west.dial(&peer, &[address], Some(expired));
    assert_eq!(refusal(&mut west).await.0, RefusedReason::TokenExpired);
    west.kill();

    let invented = isthmus_mesh::invitation::Token::from_random([9; 32]);
    west.dial(&peer, &[address], Some(invented));
    let last = west.expect("the refusal of the invented token", |kind| match kind {
        PeerEventKind::Disconnected {
            reason: LinkError::Refused { reason: RefusedReason::TokenUnknown, .. },
        } => Some(()),
        _ => None,
    });
    last.await;
}

#[tokio::test]
async fn a_cluster_that_dials_itself_is_told_so() {
    let mut east = TestCluster::new("east");
    let address = east.serve().await;
    let peer = east.know(east.identity());
    east.dial(&peer, &[address], None);
    let (reason, message) = refusal(&mut east).await;
    assert_eq!(reason, RefusedReason::SelfPeering);
    assert!(message.contains("the cluster itself"), "{message}");
}

#[tokio::test]
async fn an_endpoint_where_nobody_listens_is_named_and_the_next_one_is_tried() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let address = east.serve().await;
    east.know(west.identity());
    let peer = west.know(east.identity());
    let nobody = "127.0.0.1:1".parse().unwrap();
    west.dial(&peer, &[nobody], None);
    let reason = west.expect_disconnected().await;
    assert!(reason.contains("127.0.0.1:1 cannot be reached"), "{reason}");
    west.kill();
    west.dial(&peer, &[nobody, address], None);
    west.expect_connected().await;
}
