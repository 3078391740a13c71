// SPDX-License-Identifier: Apache-2.0
//! Clusters with real links and a scripted operator, and a bare client that says what the test wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isthmus_mesh::identity::RootKey;
use isthmus_mesh::invitation::{Token, TokenHash};
use isthmus_mesh::record::{
    Announcement, Cluster, Export, ExportKind, Record, SessionAffinity, announcement,
};
use isthmus_mesh::wire::{Decoder, Message, RefusedReason, Timings, encode};
use isthmus_mesh_link::tls;
use isthmus_mesh_link::{
    Admission, Credentials, DialTarget, Peer, PeerEvent, PeerEventKind, Redemption, ServeLimits, dial, serve,
};
use isthmus_model::ids::ClusterIdentity;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A deadline that only a hang reaches, also on a machine that builds at the same time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A quick heart, and patience for a busy machine.
pub(crate) const TIMINGS: Timings = Timings {
    heartbeat: Duration::from_millis(100),
    dead_after: Duration::from_secs(5),
    stalled_after: Duration::from_millis(500),
};

/// An invitation as an operator keeps it.
pub(crate) struct Invitation {
    pub(crate) hash: TokenHash,
    pub(crate) expired: bool,
    pub(crate) redeemed: bool,
}

/// What the scripted operator knows.
#[derive(Default)]
pub(crate) struct Books {
    pub(crate) peers: BTreeMap<String, Peer>,
    pub(crate) invitations: Vec<Invitation>,
}

/// A cluster with an operator that lets in the peers and tokens in its books, and hands on everything else.
pub(crate) struct TestCluster {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) books: Arc<Mutex<Books>>,
    pub(crate) local: watch::Sender<Arc<Announcement>>,
    pub(crate) news: mpsc::UnboundedReceiver<(ClusterIdentity, PeerEventKind)>,
    events: mpsc::Sender<PeerEvent>,
    tasks: Vec<JoinHandle<()>>,
}

impl TestCluster {
    pub(crate) fn new(name: &str) -> Self {
        let root = RootKey::generate(Timestamp::now()).expect("a root key");
        let credentials = Arc::new(Credentials::new(root, name.parse().expect("a cluster ID")));
        let books = Arc::new(Mutex::new(Books::default()));
        let (local, told) = watch::channel(Arc::new(announcement([cluster_record(name)])));
        let (events, inbox) = mpsc::channel(64);
        let (outbox, news) = mpsc::unbounded_channel();
        let operator = tokio::spawn(operate(inbox, outbox, Arc::clone(&books), told));
        Self { credentials, books, local, news, events, tasks: vec![operator] }
    }

    pub(crate) fn identity(&self) -> ClusterIdentity {
        self.credentials.identity().clone()
    }

    /// Makes a peering, as a ClusterPeering does.
    pub(crate) fn know(&self, identity: ClusterIdentity) -> Peer {
        let peer = Peer::new(identity.clone(), 1, self.local.subscribe());
        self.books.lock().unwrap().peers.insert(identity.to_string(), peer.clone());
        peer
    }

    pub(crate) fn invite(&self, bytes: [u8; 32]) -> Token {
        let token = Token::from_random(bytes);
        let invitation = Invitation { hash: token.hash(), expired: false, redeemed: false };
        self.books.lock().unwrap().invitations.push(invitation);
        token
    }

    pub(crate) async fn serve(&mut self) -> SocketAddr {
        self.serve_with(ServeLimits { timings: TIMINGS, ..ServeLimits::default() }).await
    }

    pub(crate) async fn serve_with(&mut self, limits: ServeLimits) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let serving = serve(listener, Arc::clone(&self.credentials), self.events.clone(), limits);
        self.tasks.push(tokio::spawn(serving));
        address
    }

    pub(crate) fn dial(&mut self, peer: &Peer, endpoints: &[SocketAddr], token: Option<Token>) {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        let target = DialTarget { endpoints, token, timings: TIMINGS };
        let dialling = dial(target, peer.clone(), Arc::clone(&self.credentials), self.events.clone(), || 0);
        self.tasks.push(tokio::spawn(dialling));
    }

    /// Ends everything that the cluster runs, as a killed operator would.
    pub(crate) fn kill(&mut self) {
        self.tasks.drain(1..).for_each(|task| task.abort());
    }

    /// Waits for the first news that `pick` wants, and returns it; reports all that came in vain.
    pub(crate) async fn expect<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&PeerEventKind) -> Option<T>,
    ) -> T {
        let mut seen = Vec::new();
        let found = timeout(DEADLINE, async {
            loop {
                let (_, kind) = self.news.recv().await.expect("the operator runs");
                if let Some(found) = pick(&kind) {
                    return found;
                }
                seen.push(format!("{kind:?}"));
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("{what} was not seen within {DEADLINE:?}; seen: {seen:#?}"),
        }
    }

    pub(crate) async fn expect_connected(&mut self) {
        self.expect("Connected", |kind| matches!(kind, PeerEventKind::Connected { .. }).then_some(())).await;
    }

    pub(crate) async fn expect_announced(&mut self, wanted: &Announcement) {
        let wanted = wanted.clone();
        self.expect("the announcement", |kind| match kind {
            PeerEventKind::Announced { announcement, .. } => (**announcement == wanted).then_some(()),
            _ => None,
        })
        .await;
    }

    pub(crate) async fn expect_disconnected(&mut self) -> String {
        self.expect("Disconnected", |kind| match kind {
            PeerEventKind::Disconnected { reason } => Some(reason.to_string()),
            _ => None,
        })
        .await
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn operate(
    mut inbox: mpsc::Receiver<PeerEvent>,
    outbox: mpsc::UnboundedSender<(ClusterIdentity, PeerEventKind)>,
    books: Arc<Mutex<Books>>,
    told: watch::Receiver<Arc<Announcement>>,
) {
    while let Some(PeerEvent { identity, kind }) = inbox.recv().await {
        match kind {
            PeerEventKind::Arrived { reply, .. } => {
                let known = books.lock().unwrap().peers.get(identity.as_str()).cloned();
                let _ = reply.send(known.map_or(Admission::Unknown, Admission::Known));
            }
            PeerEventKind::Redeem { token, reply, .. } => {
                let _ = reply.send(redeem(&mut books.lock().unwrap(), &identity, &token, &told));
            }
            other => {
                let _ = outbox.send((identity, other));
            }
        }
    }
}

fn redeem(
    books: &mut Books,
    identity: &ClusterIdentity,
    token: &Token,
    told: &watch::Receiver<Arc<Announcement>>,
) -> Redemption {
    let refused = |reason, message: &str| Redemption::Refused { reason, message: message.to_owned() };
    let Some(invitation) = books.invitations.iter_mut().find(|invitation| invitation.hash.matches(token))
    else {
        return refused(RefusedReason::TokenUnknown, "no invitation has this token");
    };
    if invitation.redeemed {
        return refused(RefusedReason::TokenUsed, "the token was redeemed before; ask for a new invitation");
    }
    if invitation.expired {
        return refused(RefusedReason::TokenExpired, "the token has expired; ask for a new invitation");
    }
    invitation.redeemed = true;
    let peer = Peer::new(identity.clone(), 1, told.clone());
    books.peers.insert(identity.to_string(), peer.clone());
    Redemption::Accepted(peer)
}

/// A client that holds a proven identity and says what the test wants.
pub(crate) struct BareClient {
    pub(crate) stream: TlsStream<TcpStream>,
    decoder: Decoder,
}

impl BareClient {
    pub(crate) async fn connect(address: SocketAddr, who: &RootKey, pin: &ClusterIdentity) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        // So small that a server notices soon when nothing is read.
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let stream = socket.connect(address).await.expect("a connection");
        let leaf = who.issue_leaf(Timestamp::now()).expect("a leaf");
        let connector = TlsConnector::from(tls::client_config(&leaf, pin).expect("a TLS client"));
        let stream = connector.connect(tls::server_name(pin), stream).await.expect("a handshake");
        Self { stream, decoder: Decoder::default() }
    }

    pub(crate) async fn send(&mut self, message: &Message) {
        self.send_bytes(&encode(message)).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the server takes it");
        self.stream.flush().await.expect("the server takes it");
    }

    /// The next message. None: the server closed the connection.
    pub(crate) async fn receive(&mut self) -> Option<Message> {
        let receiving = async {
            loop {
                if let Some(message) = self.decoder.next_message().expect("frames") {
                    return Some(message);
                }
                let mut bytes = [0; 4096];
                match self.stream.read(&mut bytes).await {
                    Ok(0) | Err(_) => return None,
                    Ok(count) => self.decoder.push(&bytes[..count]),
                }
            }
        };
        timeout(DEADLINE, receiving).await.expect("the server says or closes something in time")
    }

    /// The next message that is no ping.
    pub(crate) async fn receive_news(&mut self) -> Option<Message> {
        loop {
            match self.receive().await {
                Some(Message::Ping { .. }) => {}
                other => return other,
            }
        }
    }
}

pub(crate) fn cluster_record(name: &str) -> Record {
    Record::Cluster(Cluster {
        cluster_id: name.parse().unwrap(),
        pod_cidrs: vec!["10.2.0.0/16".parse().unwrap()],
    })
}

pub(crate) fn export_record(name: &str) -> Record {
    Record::Export(Export {
        namespace: "shop".into(),
        name: name.into(),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        kind: ExportKind::ClusterSetIP,
        ports: Vec::new(),
        session_affinity: SessionAffinity::None,
        internal_traffic_policy: None,
        traffic_distribution: None,
        ip_families: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    })
}
