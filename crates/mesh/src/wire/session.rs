// SPDX-License-Identifier: Apache-2.0
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::ids::ClusterId;

use super::inbox::shown;
use super::{ByeReason, FrameError, Hello, Inbox, Message, Outbox, Position, Rate, Versions};
use crate::grant::Refusal;
use crate::record::{Announcement, InvalidRecord, RecordKey};

/// Records in one frame of a snapshot.
const SNAPSHOT_RECORDS: usize = 1000;
/// Changes that a peer that comes back is told one by one; beyond them a snapshot is the shorter way.
const RESUME_CHANGES_MAX: usize = 500;
/// Records that this side sends outside of snapshots.
const SENDING: Rate = Rate::new(50, 500);
/// Records and messages that this side takes outside of snapshots: twice what a peer of ours sends, so that a
/// delayed burst is no offence.
const TAKING: Rate = Rate::new(100, 1000);
/// Between two announcements to the application. Each may cost it a copy of all records, which a peer that sends
/// one change at a time must not turn into work without end.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(100);

/// How often a side is heard, and how long it may be silent or deaf.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// Between two pings.
    pub heartbeat: Duration,
    /// Without any message for this long the peer counts as gone.
    pub dead_after: Duration,
    /// A peer that takes longer than this to take one frame counts as stalled.
    pub stalled_after: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            dead_after: Duration::from_secs(5),
            stalled_after: Duration::from_secs(10),
        }
    }
}

/// What outlives a connection to a peer, so that the next one can go on where it ended.
#[derive(Debug)]
pub struct Memory {
    /// What this side announces.
    pub outbox: Outbox,
    /// What the other side announced.
    pub inbox: Inbox,
}

impl Memory {
    /// Nothing said and nothing heard. `epoch` as in [`Outbox::new`].
    pub fn new(epoch: u64) -> Self {
        Self { outbox: Outbox::new(epoch), inbox: Inbox::default() }
    }

    /// The first message of a conversation.
    pub fn hello(&self, cluster_id: ClusterId) -> Message {
        let (epoch, have) = (self.outbox.epoch(), self.inbox.position());
        Message::Hello(Hello { versions: Versions::OURS, cluster_id, epoch, have })
    }
}

/// What a session has to say to the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's announcement, whole and up to date.
    Announced {
        /// Its records.
        announcement: Arc<Announcement>,
        /// Records that break their own form.
        invalid: Vec<Refusal>,
    },
    /// The two have agreed on a version.
    Established {
        /// The peer's alias.
        cluster_id: ClusterId,
        /// The version.
        version: u32,
    },
    /// The peer lives.
    Heard,
}

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The peer closed it.
    #[error("the peer closed the connection: {message}")]
    Bye {
        /// Why, for a machine.
        reason: ByeReason,
        /// Why, for a person.
        message: String,
    },
    /// Bytes that are no frame.
    #[error("the peer sent garbage")]
    Frame(#[from] FrameError),
    /// Changes that do not follow upon what was received.
    #[error("the peer's changes do not follow upon each other; the whole announcement is asked for again")]
    Gap,
    /// Nothing was heard for too long.
    #[error("nothing was heard from the peer for {} s", .0.as_secs())]
    Silent(Duration),
    /// Too many records or messages in a short time.
    #[error("the peer sends changes faster than 100 a second")]
    TooFast,
    /// More records than a peer may have.
    #[error("the peer announces more than 16384 records or 64 MiB")]
    TooMuch,
    /// A message at the wrong time.
    #[error("the peer sent {0} where it has no place")]
    Unexpected(&'static str),
    /// No common version.
    #[error("the peer speaks versions {} to {} of the protocol, we {} to {}; upgrade the older side", .0.min, .0.max, Versions::OURS.min, Versions::OURS.max)]
    Version(Versions),
}

impl ProtocolError {
    /// What to tell the peer, where it should be told.
    pub fn bye(&self) -> Option<Message> {
        let reason = match self {
            Self::Bye { .. } | Self::Silent(_) => return None,
            Self::Version(_) => ByeReason::Version,
            Self::Frame(_) | Self::Gap | Self::TooFast | Self::TooMuch | Self::Unexpected(_) => {
                ByeReason::Protocol
            }
        };
        Some(Message::Bye { reason, message: self.to_string() })
    }
}

/// One conversation with one peer, from Hello to Bye.
#[derive(Debug)]
pub struct Session<'a> {
    memory: &'a mut Memory,
    timings: Timings,
    queue: VecDeque<Message>,
    events: VecDeque<Event>,
    sending: Sending,
    sending_rate: Rate,
    taking_rate: Rate,
    /// The epoch of the peer's announcement, once it has said Hello.
    peer_epoch: Option<u64>,
    /// Whether the peer's announcement is held whole in this session, so that only changes may follow.
    in_sync: bool,
    /// When the application may be told next, and whether there is something to tell.
    announce_from: Duration,
    changed: bool,
    heard_at: Duration,
    ping_at: Duration,
    pings: u64,
}

/// How far this side's announcement has been told.
#[derive(Clone, Copy, Debug)]
enum Sending {
    /// The peer's Hello is awaited.
    Waiting,
    /// The whole is told. Removals before `since` need no mention.
    Snapshot { told: u64, since: u64 },
    /// Changes are told. `greeted`: whether the peer knows already that it is up to date.
    Deltas { told: u64, greeted: bool },
}

impl<'a> Session<'a> {
    /// Begins a conversation. [`Memory::hello`] must be, or have been, the first message to the peer.
    pub fn new(memory: &'a mut Memory, timings: Timings, now: Duration) -> Self {
        memory.inbox.begin();
        Self {
            memory,
            timings,
            queue: VecDeque::new(),
            events: VecDeque::new(),
            sending: Sending::Waiting,
            sending_rate: SENDING,
            taking_rate: TAKING,
            peer_epoch: None,
            in_sync: false,
            announce_from: now,
            changed: false,
            heard_at: now,
            ping_at: now + timings.heartbeat,
            pings: 0,
        }
    }

    /// Makes this what the peer is told. Returns records that break their own form; they are withheld.
    pub fn publish(&mut self, announcement: &Announcement) -> Vec<(RecordKey, InvalidRecord)> {
        self.memory.outbox.publish(announcement)
    }

    /// Takes a message of the peer. After an error the session is over.
    pub fn handle_message(&mut self, message: Message, now: Duration) -> Result<(), ProtocolError> {
        self.heard_at = now;
        match (message, self.peer_epoch) {
            (Message::Bye { reason, message }, _) => {
                Err(ProtocolError::Bye { reason, message: shown(&message) })
            }
            (Message::Hello(hello), None) => self.handle_hello(hello),
            (Message::Ping { .. }, Some(_)) => self.handle_ping(now),
            (Message::Snapshot { revision, put, remove, done }, Some(epoch)) if !self.in_sync => {
                let position = Position { epoch, revision };
                self.memory.inbox.take_snapshot(position, put, &remove, done)?;
                self.in_sync = done;
                self.changed = done;
                self.announce(now);
                Ok(())
            }
            (Message::Delta { from, revision, put, remove }, Some(epoch)) => {
                let count = 1 + put.len() + remove.len();
                self.limit_taking(count, now)?;
                let from = Position { epoch, revision: from };
                self.memory.inbox.take_delta(from, revision, put, &remove)?;
                self.in_sync = true;
                self.changed = true;
                self.announce(now);
                Ok(())
            }
            (other, _) => Err(ProtocolError::Unexpected(other.name())),
        }
    }

    fn handle_hello(&mut self, hello: Hello) -> Result<(), ProtocolError> {
        let version = Versions::OURS.common(hello.versions).ok_or(ProtocolError::Version(hello.versions))?;
        self.peer_epoch = Some(hello.epoch);
        let outbox = &self.memory.outbox;
        self.sending = match (outbox.missing(hello.have), hello.have) {
            (Some(missing), Some(have)) if missing <= RESUME_CHANGES_MAX => {
                Sending::Deltas { told: have.revision, greeted: false }
            }
            _ => Sending::Snapshot { told: 0, since: outbox.revision() },
        };
        self.events.push_back(Event::Established { cluster_id: hello.cluster_id, version });
        Ok(())
    }

    fn handle_ping(&mut self, now: Duration) -> Result<(), ProtocolError> {
        self.limit_taking(1, now)?;
        self.events.push_back(Event::Heard);
        Ok(())
    }

    fn limit_taking(&mut self, count: usize, now: Duration) -> Result<(), ProtocolError> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if self.taking_rate.take(count, now) { Ok(()) } else { Err(ProtocolError::TooFast) }
    }

    fn announce(&mut self, now: Duration) {
        if self.changed && now >= self.announce_from {
            self.changed = false;
            self.announce_from = now + ANNOUNCE_INTERVAL;
            let inbox = &self.memory.inbox;
            self.events
                .push_back(Event::Announced { announcement: inbox.announcement(), invalid: inbox.invalid() });
        }
    }

    /// Tells the session that its connection has ended, so that what arrived last is not kept back.
    pub fn handle_end(&mut self, now: Duration) {
        self.announce_from = now;
        self.announce(now);
    }

    /// Tells the session that time has passed. After an error it is over.
    pub fn handle_timeout(&mut self, now: Duration) -> Result<(), ProtocolError> {
        let silence = now.saturating_sub(self.heard_at);
        if silence >= self.timings.dead_after {
            return Err(ProtocolError::Silent(silence));
        }
        self.announce(now);
        if now >= self.ping_at {
            self.ping_at = now + self.timings.heartbeat;
            if self.peer_epoch.is_some() {
                self.pings += 1;
                self.queue.push_back(Message::Ping { sequence: self.pings });
            }
        }
        Ok(())
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do next.
    pub fn poll_timeout(&self) -> Duration {
        let timers = self.ping_at.min(self.heard_at + self.timings.dead_after);
        if self.changed { timers.min(self.announce_from) } else { timers }
    }

    /// When [`poll_transmit`](Self::poll_transmit), which just gave nothing, may give something: changes are held
    /// back to keep the rate.
    pub fn poll_held_back(&self, now: Duration) -> Option<Duration> {
        match self.sending {
            Sending::Deltas { told, .. } if told < self.memory.outbox.revision() => {
                Some(self.sending_rate.ready_at(now))
            }
            _ => None,
        }
    }

    /// The next message to send, if any. Ask again once it is on its way: what it skips in the meantime is never sent.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Message> {
        if let Some(message) = self.queue.pop_front() {
            return Some(message);
        }
        let outbox = &self.memory.outbox;
        match self.sending {
            Sending::Waiting => None,
            Sending::Snapshot { told, since } => {
                let chunk = outbox.chunk(told, SNAPSHOT_RECORDS, since);
                let done = chunk.revision == outbox.revision();
                self.sending = if done {
                    Sending::Deltas { told: chunk.revision, greeted: true }
                } else {
                    Sending::Snapshot { told: chunk.revision, since }
                };
                Some(Message::Snapshot {
                    revision: chunk.revision,
                    put: chunk.put,
                    remove: chunk.remove,
                    done,
                })
            }
            Sending::Deltas { told, greeted } => {
                if greeted && told == outbox.revision() {
                    return None;
                }
                let room = self.sending_rate.room(now);
                let chunk = outbox.chunk(told, room as usize, told);
                let count = chunk.put.len() + chunk.remove.len();
                if greeted && count == 0 {
                    return None;
                }
                let counted = self.sending_rate.take(u32::try_from(count).unwrap_or(u32::MAX), now);
                debug_assert!(counted, "the chunk was cut to the room");
                self.sending = Sending::Deltas { told: chunk.revision, greeted: true };
                Some(Message::Delta {
                    from: told,
                    revision: chunk.revision,
                    put: chunk.put,
                    remove: chunk.remove,
                })
            }
        }
    }

    /// The next thing to tell the application.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests;
