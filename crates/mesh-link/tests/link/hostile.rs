// SPDX-License-Identifier: Apache-2.0
//! What a peer, or a stranger, may try.

use std::sync::Arc;

use isthmus_mesh::identity::RootKey;
use isthmus_mesh::record::{AddressFamily, Endpoint, Endpoints, Record, announcement};
use isthmus_mesh::wire::{ByeReason, Hello, Message, Rate, Versions};
use isthmus_mesh_link::{LinkError, PeerEventKind, ServeLimits};
use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::lab::{BareClient, DEADLINE, TIMINGS, TestCluster};

fn hello() -> Message {
    Message::Hello(Hello {
        versions: Versions::OURS,
        cluster_id: "bare".parse().unwrap(),
        epoch: 1,
        have: None,
    })
}

fn root() -> RootKey {
    RootKey::generate(Timestamp::now()).expect("a root key")
}

#[tokio::test]
async fn garbage_instead_of_tls_closes_that_connection_and_no_other() {
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    let address = east.serve().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let closed = timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "the server keeps a connection that speaks no TLS");

    east.know(west.identity());
    let peer = west.know(east.identity());
    west.dial(&peer, &[address], None);
    west.expect_connected().await;
}

#[tokio::test]
async fn garbage_and_oversize_frames_of_a_peer_end_its_link_with_a_reason() {
    let oversize = [0x7f, 0xff, 0xff, 0xff];
    let garbage = [&[0, 0, 0, 9][..], b"{\"type\":1"].concat();
    for bytes in [&oversize[..], &garbage] {
        let root = root();
        let mut east = TestCluster::new("east");
        let address = east.serve().await;
        east.know(root.identity().clone());
        let mut client = BareClient::connect(address, &root, &east.identity()).await;
        client.send(&hello()).await;
        assert!(matches!(client.receive_news().await, Some(Message::Hello(_))));
        client.send_bytes(bytes).await;
        let goodbye = loop {
            match client.receive_news().await {
                Some(Message::Bye { reason, .. }) => break reason,
                Some(_) => {}
                None => panic!("closed without a word"),
            }
        };
        assert_eq!(goodbye, ByeReason::Protocol);
        assert!(east.expect_disconnected().await.contains("garbage"));
    }
}

#[tokio::test]
async fn a_stranger_that_says_something_else_than_hello_is_left() {
    let mut east = TestCluster::new("east");
    let address = east.serve().await;
    let mut client = BareClient::connect(address, &root(), &east.identity()).await;
    client.send(&Message::Ping { sequence: 1 }).await;
    assert_eq!(client.receive().await, None);
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_off_and_others_are_not_held_up() {
    let root = root();
    let (mut east, mut west) = (TestCluster::new("east"), TestCluster::new("west"));
    east.local.send_replace(Arc::new(announcement((0..200).map(large_slice))));
    let address = east.serve().await;
    east.know(root.identity().clone());
    let mut deaf = BareClient::connect(address, &root, &east.identity()).await;
    deaf.send(&hello()).await;

    east.know(west.identity());
    let peer = west.know(east.identity());
    west.dial(&peer, &[address], None);
    west.expect_connected().await;

    let stalled = |kind: &PeerEventKind| match kind {
        PeerEventKind::Disconnected { reason: LinkError::Stalled(_) } => Some(()),
        _ => None,
    };
    east.expect("the stalled peer's end", stalled).await;
}

#[tokio::test]
async fn an_address_that_connects_too_often_is_dropped_before_any_handshake() {
    let mut east = TestCluster::new("east");
    let limits = ServeLimits { per_source: Rate::new(1, 2), timings: TIMINGS, ..ServeLimits::default() };
    let address = east.serve_with(limits).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    let mut third = TcpStream::connect(address).await.unwrap();
    let closed = timeout(DEADLINE, third.read(&mut [0; 1])).await.expect("the third is closed at once");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
}

#[tokio::test]
async fn a_client_of_another_protocol_is_not_served() {
    let root = root();
    let mut east = TestCluster::new("east");
    let address = east.serve().await;
    let leaf = root.issue_leaf(Timestamp::now()).unwrap();
    let config = isthmus_mesh_link::tls::client_config(&leaf, &east.identity()).unwrap();
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = isthmus_mesh_link::tls::server_name(&east.identity());
    assert!(connector.connect(name, stream).await.is_err());
}

fn large_slice(n: usize) -> Record {
    let endpoint = |m: usize| Endpoint {
        address: [10, 2, (m >> 8) as u8, m as u8].into(),
        ready: true,
        serving: true,
        terminating: false,
        hostname: Some(format!("web-{m}")),
        zone: None,
    };
    Record::Endpoints(Endpoints {
        namespace: "shop".into(),
        service: "web".into(),
        slice: format!("web-{n:03}"),
        address_family: AddressFamily::IPv4,
        ports: Vec::new(),
        endpoints: (0..500).map(endpoint).collect(),
    })
}
