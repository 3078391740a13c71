// SPDX-License-Identifier: Apache-2.0
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::ids::ClusterIdentity;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::peer::Turn;
use crate::{ADMISSION_TIMEOUT, LinkError, Peer, PeerEvent, PeerEventKind};
use isthmus_mesh::record::Announcement;
use isthmus_mesh::wire::{ByeReason, Decoder, Event, Message, ProtocolError, Session, Timings, encode};

/// Bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;
/// How long saying goodbye may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// A TLS stream that carries messages.
pub(super) struct Frames<S> {
    stream: S,
    decoder: Decoder,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, decoder: Decoder::default() }
    }

    /// The next message, within the limit.
    pub(super) async fn receive(&mut self, limit: Duration) -> Result<Message, LinkError> {
        let silent = |_| LinkError::Protocol(ProtocolError::Silent(limit));
        timeout(limit, receive(&mut self.stream, &mut self.decoder)).await.map_err(silent)?
    }

    /// Sends a message within [`ADMISSION_TIMEOUT`].
    pub(super) async fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        write(&mut self.stream, &encode(message), ADMISSION_TIMEOUT).await
    }

    /// Sends a last message and closes the stream in order.
    pub(super) async fn finish(mut self, last: &Message) {
        // The connection ends either way; that the peer learns why is a courtesy.
        if self.send(last).await.is_ok() {
            let _ = timeout(ADMISSION_TIMEOUT, self.stream.shutdown()).await;
        }
    }
}

async fn receive(stream: &mut (impl AsyncRead + Unpin), decoder: &mut Decoder) -> Result<Message, LinkError> {
    let mut bytes = [0; READ_BYTES];
    loop {
        if let Some(message) = decoder.next_message().map_err(ProtocolError::from)? {
            return Ok(message);
        }
        // Cancel-safe: what was read is in the decoder before anything else is awaited.
        match stream.read(&mut bytes).await.map_err(LinkError::Broken)? {
            0 => return Err(LinkError::Broken(std::io::ErrorKind::UnexpectedEof.into())),
            count => decoder.push(&bytes[..count]),
        }
    }
}

async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: &[u8],
    limit: Duration,
) -> Result<(), LinkError> {
    let written = async {
        stream.write_all(frame).await?;
        stream.flush().await
    };
    timeout(limit, written).await.map_err(|_| LinkError::Stalled(limit))?.map_err(LinkError::Broken)
}

/// What a conversation needs beside the stream.
pub(super) struct Conversation {
    pub(super) peer: Peer,
    pub(super) turn: Turn,
    pub(super) remote: SocketAddr,
    pub(super) events: mpsc::Sender<PeerEvent>,
    pub(super) timings: Timings,
    /// The peer's Hello. Ours has been sent.
    pub(super) hello: Message,
}

impl Conversation {
    /// Speaks with the peer until one of the two ends it.
    pub(super) async fn hold<S: AsyncRead + AsyncWrite + Unpin>(mut self, frames: Frames<S>) {
        let reason = self.exchange(frames).await;
        // Told before the turn ends, so that it comes before what the next connection has to tell.
        tell(&self.events, self.peer.identity(), PeerEventKind::Disconnected { reason }).await;
    }

    async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(&mut self, frames: Frames<S>) -> LinkError {
        let Frames { stream, mut decoder } = frames;
        let (mut reader, mut writer) = tokio::io::split(stream);
        // One frame at a time: whatever changes while it is being written is told in its latest form.
        let (outgoing, mut queue) = mpsc::channel::<Message>(1);
        let stalled_after = self.timings.stalled_after;
        let writing = async {
            while let Some(message) = queue.recv().await {
                if let Err(fault) = write(&mut writer, &encode(&message), stalled_after).await {
                    return fault;
                }
            }
            std::future::pending().await
        };
        let fault = {
            let speaking = self.speak(&mut reader, &mut decoder, &outgoing);
            tokio::select! {
                fault = speaking => fault,
                fault = writing => fault,
            }
        };
        if let Some(bye) = farewell(&fault) {
            let parting = async {
                write(&mut writer, &encode(&bye), FAREWELL_TIMEOUT).await?;
                writer.shutdown().await.map_err(LinkError::Broken)
            };
            // A courtesy: the connection ends either way.
            let _ = timeout(FAREWELL_TIMEOUT, parting).await;
        }
        fault
    }

    async fn speak(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        decoder: &mut Decoder,
        outgoing: &mpsc::Sender<Message>,
    ) -> LinkError {
        let start = Instant::now();
        let mut turn_end = self.turn.end();
        let mut local = self.peer.local();
        let mut session = Session::new(&mut self.turn.memory, self.timings, Duration::ZERO);
        let mut pending = None;
        let outside = Outside { peer: &self.peer, remote: self.remote, events: &self.events };
        outside.publish(&mut session, &mut local);
        if let Err(fault) = session.handle_message(self.hello.clone(), Duration::ZERO) {
            return fault.into();
        }
        loop {
            outside.report(&mut session).await;
            let now = start.elapsed();
            pending = pending.or_else(|| session.poll_transmit(now));
            let held_back = if pending.is_none() { session.poll_held_back(now) } else { None };
            let wake = start + held_back.map_or(session.poll_timeout(), |at| at.min(session.poll_timeout()));
            let step = tokio::select! {
                received = receive(reader, decoder) => received.and_then(|message| {
                    session.handle_message(message, start.elapsed()).map_err(LinkError::from)
                }),
                permit = outgoing.reserve(), if pending.is_some() => {
                    if let (Ok(permit), Some(message)) = (permit, pending.take()) {
                        permit.send(message);
                    }
                    Ok(())
                }
                changed = local.changed() => match changed {
                    Ok(()) => {
                        outside.publish(&mut session, &mut local);
                        Ok(())
                    }
                    // The operator dropped what it announces: the peering is gone.
                    Err(_) => Err(LinkError::Closed),
                },
                () = sleep_until(wake) => session.handle_timeout(start.elapsed()).map_err(LinkError::from),
                fault = turn_end.over() => Err(fault),
            };
            if let Err(fault) = step {
                session.handle_end(start.elapsed());
                outside.report(&mut session).await;
                return fault;
            }
        }
    }
}

/// Where a session's news go.
struct Outside<'a> {
    peer: &'a Peer,
    remote: SocketAddr,
    events: &'a mpsc::Sender<PeerEvent>,
}

impl Outside<'_> {
    fn publish(&self, session: &mut Session<'_>, local: &mut watch::Receiver<Arc<Announcement>>) {
        let announcement = Arc::clone(&local.borrow_and_update());
        for (key, fault) in session.publish(&announcement) {
            tracing::warn!(peer = %self.peer.identity(), %key, %fault, "a record of ours is not announced");
        }
    }

    async fn report(&self, session: &mut Session<'_>) {
        while let Some(event) = session.poll_event() {
            let kind = match event {
                Event::Announced { announcement, invalid } => {
                    PeerEventKind::Announced { announcement, invalid }
                }
                Event::Established { cluster_id, .. } => {
                    PeerEventKind::Connected { cluster_id, remote: self.remote }
                }
                Event::Heard => PeerEventKind::Heard,
            };
            tell(self.events, self.peer.identity(), kind).await;
        }
    }
}

/// Tells the operator. If it is gone, so is whoever would care.
pub(super) async fn tell(events: &mpsc::Sender<PeerEvent>, identity: &ClusterIdentity, kind: PeerEventKind) {
    let _ = events.send(PeerEvent { identity: identity.clone(), kind }).await;
}

fn farewell(fault: &LinkError) -> Option<Message> {
    let reason = match fault {
        LinkError::Closed => ByeReason::Closed,
        LinkError::Superseded => ByeReason::Superseded,
        LinkError::Protocol(fault) => return fault.bye(),
        _ => return None,
    };
    Some(Message::Bye { reason, message: fault.to_string() })
}
