// SPDX-License-Identifier: Apache-2.0
//! A DHCP client (RFC 2131, section 4.4) without sockets and clock: it says what to send and when to ask it again.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::lease::Lease;
use super::wire::{Kind, Mac, Message, Options, address, code};

/// Requests for one offer; after these another one is looked for.
const REQUESTS: u32 = 4;
/// RFC 2131, section 4.4.5: not more often while a lease is prolonged.
const RENEW_PAUSE: Duration = Duration::from_secs(60);
/// Until what failed on the node is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// What a frame of Ethernet carries.
const MAX_BYTES: u16 = 1500;

/// Who asks, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) mac: Mac,
    /// Option 61.
    pub(crate) client_id: Vec<u8>,
    /// Further options to send with each message but the last.
    pub(crate) provide: Options,
    /// Codes of the options to ask for.
    pub(crate) request: Vec<u8>,
    /// Answers shall come to everybody.
    pub(crate) broadcast: bool,
}

impl Identity {
    /// Option 61 as the server sees it: `provide` may name another one, and a lease is given back by whom it was given to
    /// (RFC 2131, section 4.4.6).
    fn said_id(&self) -> &Vec<u8> {
        self.provide.get(&code::CLIENT_ID).unwrap_or(&self.client_id)
    }
}

/// How long the client waits before it says something again: twice as long each time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) first: Duration,
    pub(crate) most: Duration,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is a lease, or it was prolonged.
    Bound,
    /// The lease is over, and why. The client does nothing more.
    Lost(String),
}

/// A message, and whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) message: Message,
    /// A server that the address itself can reach; otherwise everybody.
    pub(crate) to: Option<Ipv4Addr>,
}

#[derive(Clone, Debug)]
enum State {
    Selecting,
    Requesting {
        address: Ipv4Addr,
        server: Ipv4Addr,
        tries: u32,
    },
    /// Also while it is prolonged, before and after the time for rebinding.
    Bound {
        lease: Lease,
        since: Instant,
        /// When it was last asked for again, if that is not answered yet.
        asked: Option<Instant>,
    },
    Lost(String),
}

/// The client of one interface.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) identity: Identity,
    patience: Patience,
    xid: u32,
    state: State,
    /// When the request was begun that is waited for: a lease counts from there.
    asked: Instant,
    /// When there is something to do; never for a lease without an end.
    next: Option<Instant>,
    pause: Duration,
    /// Why the last answer was of no use.
    refused: Option<String>,
}

impl Client {
    /// `xid` tells the client's messages from others' (RFC 2131, section 2), and spreads clients in time: it is to be random.
    pub(crate) fn new(identity: Identity, patience: Patience, xid: u32, now: Instant) -> Self {
        let pause = patience.first;
        Self {
            identity,
            patience,
            xid,
            state: State::Selecting,
            asked: now,
            next: Some(now),
            pause,
            refused: None,
        }
    }

    /// A client that goes on with a lease from before.
    pub(crate) fn holding(
        identity: Identity,
        patience: Patience,
        xid: u32,
        lease: Lease,
        since: Instant,
    ) -> Self {
        let next = lease.times.map(|times| since + times.renew);
        let state = State::Bound { lease, since, asked: None };
        Self { state, next, ..Self::new(identity, patience, xid, since) }
    }

    /// When [`Self::poll`] has something to do.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// How long to listen after a message, at most for `listen`: a short lease may be due again before.
    pub(crate) fn listens_until(&self, now: Instant, listen: Duration) -> Instant {
        self.next.map_or(now + listen, |next| next.min(now + listen))
    }

    /// The lease that is held, and since when.
    pub(crate) fn lease(&self) -> Option<(&Lease, Instant)> {
        match &self.state {
            State::Bound { lease, since, .. } => Some((lease, *since)),
            _ => None,
        }
    }

    /// Why there is no lease any more, or not yet.
    pub(crate) fn reason(&self) -> Option<&str> {
        match &self.state {
            State::Lost(reason) => Some(reason),
            _ => self.refused.as_deref(),
        }
    }

    /// What is to be sent now, and whether the lease ended.
    pub(crate) fn poll(&mut self, now: Instant) -> (Option<Outgoing>, Option<Event>) {
        if self.next.is_none_or(|next| now < next) {
            return (None, None);
        }
        match self.state.clone() {
            State::Selecting => {
                self.asked = now;
                self.again(now);
                (Some(self.broadcast(Kind::Discover, Options::new())), None)
            }
            State::Requesting { tries, .. } if tries >= REQUESTS => {
                self.look_again(now, "the server does not confirm its offer".to_owned());
                (None, None)
            }
            State::Requesting { address, server, tries } => {
                self.state = State::Requesting { address, server, tries: tries + 1 };
                self.again(now);
                let options = [(code::REQUESTED_ADDRESS, address), (code::SERVER, server)];
                let options = options.map(|(code, address)| (code, address.octets().to_vec()));
                (Some(self.broadcast(Kind::Request, options.into())), None)
            }
            State::Bound { lease, since, .. } => self.prolong(lease, since, now),
            State::Lost(reason) => {
                self.next = None;
                (None, Some(Event::Lost(reason)))
            }
        }
    }

    /// What is due, or was done last, failed on the node: it is due again a little later, the end of a lease too.
    pub(crate) fn postpone(&mut self, now: Instant) {
        let later = self.next.filter(|next| *next > now).unwrap_or(now + RETRY_PAUSE);
        self.next = Some(later);
    }

    fn prolong(&mut self, lease: Lease, since: Instant, now: Instant) -> (Option<Outgoing>, Option<Event>) {
        let Some(times) = lease.times else { return (None, None) };
        let (rebind, end) = (since + times.rebind, since + times.end);
        if now >= end {
            let why = self.refused.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            let event =
                self.lose(format!("the lease of {} ended, nobody prolonged it{why}", lease.address.addr()));
            return (None, Some(event));
        }
        let until = if now < rebind { rebind } else { end };
        // RFC 2131, section 4.4.5: half of the time that is left.
        self.next = Some(until.min(now + ((until - now) / 2).max(RENEW_PAUSE)));
        self.asked = now;
        let mut outgoing = self.broadcast(Kind::Request, Options::new());
        outgoing.message.ciaddr = lease.address.addr();
        outgoing.message.broadcast = false;
        outgoing.to = (now < rebind).then_some(lease.server);
        self.state = State::Bound { lease, since, asked: Some(now) };
        (Some(outgoing), None)
    }

    /// Takes a message. What is not for this client, or not what it waits for, changes nothing.
    pub(crate) fn handle(&mut self, message: &Message, now: Instant) -> Option<Event> {
        if !message.reply || message.xid != self.xid || message.mac != self.identity.mac {
            return None;
        }
        let from = message.options.get(&code::SERVER).and_then(|value| address(value));
        match (message.kind, self.state.clone()) {
            (Kind::Offer, State::Selecting) => match Lease::read(message) {
                Ok(lease) => {
                    self.state =
                        State::Requesting { address: lease.address.addr(), server: lease.server, tries: 0 };
                    self.pause = self.patience.first;
                    self.asked = now;
                    self.next = Some(now);
                    None
                }
                Err(why) => self.refuse(from, why),
            },
            (Kind::Ack, State::Requesting { address, server, .. }) if from == Some(server) => {
                self.bind(message, address)
            }
            (Kind::Nak, State::Requesting { server, .. }) if from == Some(server) => {
                self.look_again(now, format!("{server} refused what it had offered: {}", text_of(message)));
                None
            }
            (kind @ (Kind::Ack | Kind::Nak), State::Bound { lease, since, asked: Some(asked) }) => {
                let anybody = lease.times.is_some_and(|times| asked >= since + times.rebind);
                match kind {
                    _ if !anybody && from != Some(lease.server) => None,
                    Kind::Ack => self.bind(message, lease.address.addr()),
                    _ => {
                        let (own, text) = (lease.address.addr(), text_of(message));
                        Some(self.lose(format!("the server does not prolong the lease of {own}: {text}")))
                    }
                }
            }
            _ => None,
        }
    }

    fn refuse(&mut self, from: Option<Ipv4Addr>, why: &str) -> Option<Event> {
        let from = from.map_or_else(|| "a server".to_owned(), |from| from.to_string());
        self.refused = Some(format!("the answer of {from} is of no use: {why}"));
        None
    }

    /// Nothing that was not asked for: an address other than the one that is held is none of ours.
    fn bind(&mut self, message: &Message, own: Ipv4Addr) -> Option<Event> {
        let from = message.options.get(&code::SERVER).and_then(|value| address(value));
        match Lease::read(message) {
            Ok(lease) if lease.address.addr() == own => {
                self.next = lease.times.map(|times| self.asked + times.renew);
                self.pause = self.patience.first;
                self.refused = None;
                self.state = State::Bound { lease, since: self.asked, asked: None };
                Some(Event::Bound)
            }
            Ok(lease) => self.refuse(from, &format!("it is for {}, not for {own}", lease.address.addr())),
            Err(why) => self.refuse(from, why),
        }
    }

    /// Gives the lease back; none if there is none. The client is of no more use then.
    pub(crate) fn release(&self) -> Option<Outgoing> {
        let (lease, _) = self.lease()?;
        let own = Options::from([
            (code::SERVER, lease.server.octets().to_vec()),
            (code::CLIENT_ID, self.identity.said_id().clone()),
        ]);
        let message = Message {
            ciaddr: lease.address.addr(),
            broadcast: false,
            options: own,
            ..self.broadcast(Kind::Release, Options::new()).message
        };
        Some(Outgoing { message, to: Some(lease.server) })
    }

    fn lose(&mut self, reason: String) -> Event {
        self.state = State::Lost(reason.clone());
        self.next = None;
        Event::Lost(reason)
    }

    fn look_again(&mut self, now: Instant, why: String) {
        self.refused = Some(why);
        self.state = State::Selecting;
        self.pause = self.patience.first;
        self.next = Some(now + self.patience.first);
    }

    fn again(&mut self, now: Instant) {
        // Clients that began together do not go on together (RFC 2131, section 4.1).
        let spread = self.pause / 4 * (self.xid.rotate_left(self.pause.as_secs() as u32 % 32) % 256) / 256;
        self.next = Some(now + self.pause - self.pause / 8 + spread);
        self.pause = (self.pause * 2).min(self.patience.most);
    }

    fn broadcast(&self, kind: Kind, mut options: Options) -> Outgoing {
        options.insert(code::CLIENT_ID, self.identity.client_id.clone());
        options.insert(code::MAX_BYTES, MAX_BYTES.to_be_bytes().to_vec());
        if !self.identity.request.is_empty() {
            options.insert(code::WANTED, self.identity.request.clone());
        }
        options.extend(self.identity.provide.clone());
        let message = Message {
            kind,
            reply: false,
            xid: self.xid,
            broadcast: self.identity.broadcast,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            mac: self.identity.mac,
            options,
        };
        Outgoing { message, to: None }
    }
}

/// What the server says to people (option 56), on one line.
fn text_of(message: &Message) -> String {
    let text = message.options.get(&code::TEXT).map(|text| String::from_utf8_lossy(text).into_owned());
    let text: String =
        text.unwrap_or_default().chars().filter(|letter| !letter.is_control()).take(128).collect();
    if text.is_empty() { "it does not say why".to_owned() } else { text }
}

#[cfg(test)]
mod tests;
