// SPDX-License-Identifier: Apache-2.0
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::peer::{Direction, NoTurn};
use crate::stream::{Conversation, Frames, tell};
use crate::tls::{self, NotProven};
use crate::{Credentials, HANDSHAKE_TIMEOUT, LinkError, Peer, PeerEvent, PeerEventKind};
use isthmus_mesh::invitation::Token;
use isthmus_mesh::wire::{Message, ProtocolError, RefusedReason, Timings};

/// How long a TCP connection to one endpoint may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the peer may take to let us in: its operator's time and the way there.
const LET_IN_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A link that lived this long was good: the next attempt comes soon.
const GOOD_LINK: Duration = Duration::from_secs(10);

/// Where a peer listens, and what to show it if it does not know us.
#[derive(Clone, Debug)]
pub struct DialTarget {
    /// `host:port` each. All are tried, from the one that worked last.
    pub endpoints: Vec<String>,
    /// An invitation's token.
    pub token: Option<Token>,
    /// Of the conversation.
    pub timings: Timings,
}

/// Keeps a link to the peer until the peer is closed: connects, speaks, and connects again with growing pauses.
/// `random` spreads the pauses, so that clusters that lost each other at once do not come back at once.
pub async fn dial(
    target: DialTarget,
    peer: Peer,
    credentials: Arc<Credentials>,
    events: mpsc::Sender<PeerEvent>,
    mut random: impl FnMut() -> u64 + Send,
) {
    let mut dialler = Dialler { target, peer, credentials, events, next_endpoint: 0 };
    let mut backoff = BACKOFF_MIN;
    while dialler.peer.floor_is_free(Direction::Dialled).await {
        let began = Instant::now();
        if let Err(reason) = dialler.link().await {
            tell(&dialler.events, dialler.peer.identity(), PeerEventKind::Disconnected { reason }).await;
        }
        if began.elapsed() >= GOOD_LINK {
            backoff = BACKOFF_MIN;
        }
        sleep(jittered(backoff, random())).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Between half and all of the pause.
fn jittered(pause: Duration, random: u64) -> Duration {
    let share = 0.5 + (random >> 11) as f64 / (1u64 << 54) as f64;
    pause.mul_f64(share)
}

struct Dialler {
    target: DialTarget,
    peer: Peer,
    credentials: Arc<Credentials>,
    events: mpsc::Sender<PeerEvent>,
    next_endpoint: usize,
}

impl Dialler {
    /// Makes one link and keeps it up until it ends. The error is why it could not be made.
    async fn link(&mut self) -> Result<(), LinkError> {
        let (frames, remote) = self.connect().await?;
        self.converse(frames, remote).await
    }

    /// Tries the endpoints in turn. The error is that of the last.
    async fn connect(&mut self) -> Result<(Frames<TlsStream<TcpStream>>, SocketAddr), LinkError> {
        let count = self.target.endpoints.len();
        let none = || io::Error::new(io::ErrorKind::NotFound, "the ClusterPeering has no endpoints");
        let mut fault = LinkError::Unreachable { endpoint: "the peer".to_owned(), fault: none() };
        for _ in 0..count {
            let endpoint = self.target.endpoints[self.next_endpoint % count].clone();
            match self.connect_to(&endpoint).await {
                Ok((stream, remote)) => return Ok((Frames::new(stream), remote)),
                Err(this) => fault = this,
            }
            self.next_endpoint = (self.next_endpoint + 1) % count;
        }
        Err(fault)
    }

    async fn connect_to(&self, endpoint: &str) -> Result<(TlsStream<TcpStream>, SocketAddr), LinkError> {
        let unreachable = |fault| LinkError::Unreachable { endpoint: endpoint.to_owned(), fault };
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let connecting = async {
            let addresses: Vec<SocketAddr> = lookup_host(endpoint).await?.collect();
            TcpStream::connect(addresses.as_slice()).await
        };
        let connected = timeout(CONNECT_TIMEOUT, connecting).await.map_err(late).flatten();
        let stream = connected.map_err(unreachable)?;
        let remote = stream.peer_addr().map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;

        let pin = self.peer.identity();
        let connector = TlsConnector::from(self.credentials.client(pin, Timestamp::now())?);
        let shaking = connector.connect(tls::server_name(pin), stream);
        let failed = |fault: String| LinkError::Tls { endpoint: endpoint.to_owned(), fault };
        let stream = match timeout(HANDSHAKE_TIMEOUT, shaking).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(fault)) => {
                return Err(not_proven(endpoint, &fault).unwrap_or_else(|| failed(fault.to_string())));
            }
            Err(_) => return Err(failed("it took too long".to_owned())),
        };
        if tls::peer_identity(stream.get_ref().1).as_ref() != Some(pin) {
            return Err(failed("the server does not speak isthmus/1".to_owned()));
        }
        Ok((stream, remote))
    }

    /// Says Hello, redeems the token where it is needed, and then speaks.
    async fn converse(
        &self,
        mut frames: Frames<TlsStream<TcpStream>>,
        remote: SocketAddr,
    ) -> Result<(), LinkError> {
        // The floor comes first: what the Hello says that we have must still be so when the peer acts on it.
        let turn = self.peer.take_floor(Direction::Dialled).await.map_err(|why| match why {
            NoTurn::Closed => LinkError::Closed,
            NoTurn::Occupied => LinkError::Superseded,
        })?;
        frames.send(&turn.memory.hello(self.credentials.cluster_id().clone())).await?;
        let hello = self.be_let_in(&mut frames).await?;
        let (peer, events, timings) = (self.peer.clone(), self.events.clone(), self.target.timings);
        Conversation { peer, turn, remote, events, timings, hello }.hold(frames).await;
        Ok(())
    }

    /// Returns the peer's Hello.
    async fn be_let_in(&self, frames: &mut Frames<TlsStream<TcpStream>>) -> Result<Message, LinkError> {
        let mut token = self.target.token.clone();
        loop {
            match frames.receive(LET_IN_TIMEOUT).await? {
                hello @ Message::Hello(_) => return Ok(hello),
                Message::Redeemed => {}
                Message::Refused { reason: RefusedReason::UnknownIdentity, message } => {
                    let Some(token) = token.take() else {
                        return Err(LinkError::Refused { reason: RefusedReason::UnknownIdentity, message });
                    };
                    let cluster_id = self.credentials.cluster_id().clone();
                    frames.send(&Message::Redeem { token, cluster_id }).await?;
                }
                Message::Refused { reason, message } => return Err(LinkError::Refused { reason, message }),
                other => return Err(ProtocolError::Unexpected(other.name()).into()),
            }
        }
    }
}

/// What our own verifier said, out of the wrappings of TLS and I/O.
fn not_proven(endpoint: &str, fault: &io::Error) -> Option<LinkError> {
    let fault = fault.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = fault else {
        return None;
    };
    let fault = other.0.downcast_ref::<NotProven>()?.clone();
    Some(LinkError::NotProven { endpoint: endpoint.to_owned(), fault })
}
