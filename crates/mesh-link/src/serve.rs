// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::ids::{ClusterId, ClusterIdentity};
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::peer::{Direction, NoTurn};
use crate::stream::{Conversation, Frames, tell};
use crate::tls;
use crate::{
    ADMISSION_TIMEOUT, Admission, Credentials, HANDSHAKE_TIMEOUT, LinkError, Peer, PeerEvent, PeerEventKind,
    Redemption,
};
use isthmus_mesh::invitation::Token;
use isthmus_mesh::wire::{Message, ProtocolError, Rate, RefusedReason, Timings};

/// What a server lets happen at once.
#[derive(Clone, Copy, Debug)]
pub struct ServeLimits {
    /// Connections between accept and the operator's yes.
    pub arrivals: usize,
    /// New connections of one address.
    pub per_source: Rate,
    /// Of the conversations.
    pub timings: Timings,
}

impl Default for ServeLimits {
    fn default() -> Self {
        // Generous for one source: a NodePort may show all peers as one node of ours.
        Self { arrivals: 64, per_source: Rate::new(3, 20), timings: Timings::default() }
    }
}

/// Serves peers on the listener for ever. Dropping the future closes all its connections.
pub async fn serve(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    events: mpsc::Sender<PeerEvent>,
    limits: ServeLimits,
) {
    let arrivals = Arc::new(Semaphore::new(limits.arrivals));
    let mut sources = Sources::new(limits.per_source);
    let mut links = JoinSet::new();
    let start = Instant::now();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = links.join_next(), if !links.is_empty() => continue,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(fault) => {
                // Out of descriptors, most likely: trying at once would only spin.
                tracing::warn!(%fault, "cannot accept a peer's connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !sources.admits(remote.ip(), start.elapsed()) {
            tracing::debug!(%remote, "connection dropped: too many from this address");
            continue;
        }
        let Ok(permit) = Arc::clone(&arrivals).try_acquire_owned() else {
            tracing::warn!("connection dropped: too many handshakes at once");
            continue;
        };
        let arrival = Arrival { remote, credentials: credentials.clone(), events: events.clone(), limits };
        links.spawn(arrival.attend(stream, permit));
    }
}

/// How often each address connected lately. Bounded: beyond that, addresses share what is left.
struct Sources {
    fresh: Rate,
    seen: BTreeMap<IpAddr, Rate>,
}

impl Sources {
    const MAX: usize = 4096;

    fn new(fresh: Rate) -> Self {
        Self { fresh, seen: BTreeMap::new() }
    }

    fn admits(&mut self, source: IpAddr, now: Duration) -> bool {
        if self.seen.len() >= Self::MAX && !self.seen.contains_key(&source) {
            self.seen.retain(|_, rate| !rate.is_full(now));
            if self.seen.len() >= Self::MAX {
                return false;
            }
        }
        self.seen.entry(source).or_insert(self.fresh).take(1, now)
    }
}

/// One connection that was accepted.
struct Arrival {
    remote: SocketAddr,
    credentials: Arc<Credentials>,
    events: mpsc::Sender<PeerEvent>,
    limits: ServeLimits,
}

/// A peer that may speak.
struct Welcome {
    peer: Peer,
    hello: Message,
    greeting: Option<Message>,
}

impl Arrival {
    async fn attend(self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let (stream, identity) = match self.shake_hands(stream).await {
            Ok(proven) => proven,
            Err(fault) => return tracing::debug!(remote = %self.remote, %fault, "no peer"),
        };
        let mut frames = Frames::new(stream);
        let welcome = match self.admit(&mut frames, &identity).await {
            Ok(Ok(welcome)) => welcome,
            Ok(Err(refused)) => return frames.finish(&refused).await,
            Err(fault) => return tracing::debug!(remote = %self.remote, %identity, %fault, "peer left"),
        };
        let turn = match welcome.peer.take_floor(Direction::Served).await {
            Ok(turn) => turn,
            Err(why) => return frames.finish(&no_turn(why)).await,
        };
        drop(permit);
        let ours = turn.memory.hello(self.credentials.cluster_id().clone());
        for message in welcome.greeting.iter().chain([&ours]) {
            if let Err(fault) = frames.send(message).await {
                return tracing::debug!(remote = %self.remote, %identity, %fault, "peer left");
            }
        }
        let conversation = Conversation {
            peer: welcome.peer,
            turn,
            remote: self.remote,
            events: self.events,
            timings: self.limits.timings,
            hello: welcome.hello,
        };
        conversation.hold(frames).await;
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, ClusterIdentity), LinkError> {
        let failed = |fault: String| LinkError::Tls { endpoint: self.remote.to_string(), fault };
        stream.set_nodelay(true).map_err(LinkError::Broken)?;
        let acceptor = TlsAcceptor::from(self.credentials.server(Timestamp::now())?);
        let accepted = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
        let stream = accepted
            .map_err(|_| failed("it took too long".to_owned()))?
            .map_err(|f| failed(f.to_string()))?;
        let identity = tls::peer_identity(stream.get_ref().1);
        let identity = identity.ok_or_else(|| failed("the client does not speak isthmus/1".to_owned()))?;
        Ok((stream, identity))
    }

    /// Lets the operator decide. The inner error is what to tell the other side before closing.
    async fn admit(
        &self,
        frames: &mut Frames<TlsStream<TcpStream>>,
        identity: &ClusterIdentity,
    ) -> Result<Result<Welcome, Message>, LinkError> {
        let refused = |reason, message: &str| Message::Refused { reason, message: message.to_owned() };
        let hello = match frames.receive(ADMISSION_TIMEOUT).await? {
            Message::Hello(hello) => hello,
            other => return Err(ProtocolError::Unexpected(other.name()).into()),
        };
        if identity == self.credentials.identity() {
            let message = "this is the cluster itself; the ClusterPeering belongs into the other cluster";
            return Ok(Err(refused(RefusedReason::SelfPeering, message)));
        }
        let cluster_id = hello.cluster_id.clone();
        let hello = Message::Hello(hello);
        let (reply, answer) = oneshot::channel();
        tell(&self.events, identity, PeerEventKind::Arrived { cluster_id, reply }).await;
        match timeout(ADMISSION_TIMEOUT, answer).await {
            Ok(Ok(Admission::Known(peer))) => Ok(Ok(Welcome { peer, hello, greeting: None })),
            Ok(Ok(Admission::Refused { message })) => Ok(Err(refused(RefusedReason::Other, &message))),
            Ok(Ok(Admission::Unknown)) => {
                let message = "no ClusterPeering of this cluster has your identity, and no token was shown";
                frames.send(&refused(RefusedReason::UnknownIdentity, message)).await?;
                let Message::Redeem { token, cluster_id } = frames.receive(ADMISSION_TIMEOUT).await? else {
                    return Err(ProtocolError::Unexpected("something else than Redeem").into());
                };
                Ok(self.redeem(identity, token, cluster_id).await.map(|peer| Welcome {
                    peer,
                    hello,
                    greeting: Some(Message::Redeemed),
                }))
            }
            Ok(Err(_)) | Err(_) => Ok(Err(busy())),
        }
    }

    async fn redeem(
        &self,
        identity: &ClusterIdentity,
        token: Token,
        cluster_id: ClusterId,
    ) -> Result<Peer, Message> {
        let (reply, answer) = oneshot::channel();
        tell(&self.events, identity, PeerEventKind::Redeem { token, cluster_id, reply }).await;
        match timeout(ADMISSION_TIMEOUT, answer).await {
            Ok(Ok(Redemption::Accepted(peer))) => Ok(peer),
            Ok(Ok(Redemption::Refused { reason, message })) => Err(Message::Refused { reason, message }),
            Ok(Err(_)) | Err(_) => Err(busy()),
        }
    }
}

fn no_turn(why: NoTurn) -> Message {
    let (reason, message) = match why {
        NoTurn::Closed => (RefusedReason::Other, "the peering with you was removed here"),
        NoTurn::Occupied => (RefusedReason::AlreadyConnected, "we are connected to you already"),
    };
    Message::Refused { reason, message: message.to_owned() }
}

fn busy() -> Message {
    let message = "the operator could not decide in time; it will be asked again".to_owned();
    Message::Refused { reason: RefusedReason::Busy, message }
}
