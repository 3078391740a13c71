// SPDX-License-Identifier: Apache-2.0
//! Conversations with the kernel over netlink sockets: batches of requests and dumps, in any network namespace.
//!
//! Blocking on purpose: the kernel works inside `sendmsg`, under its own lock, so an asynchronous socket would
//! block just the same.

pub mod netns;

use std::io;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkDeserializable,
    NetlinkHeader, NetlinkSerializable,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Requests of one datagram: their answers must fit the socket's receive buffer.
const BATCH_REQUESTS_MAX: usize = 64;
/// The kernel answers within its `sendmsg`; this only bounds how long a lost answer can hold us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_LEN: usize = 16;
/// Below every system's default of net.core.wmem_default.
const SEND_LEN_DEFAULT: usize = 64 * 1024;
const RECEIVE_LEN: usize = 64 * 1024;

/// A request without its netlink header.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: u16,
    pub flags: u16,
    pub body: Vec<u8>,
}

impl Request {
    /// A request of the routing family.
    pub fn route(message: &RouteNetlinkMessage, flags: u16) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Self { kind: message.message_type(), flags, body }
    }

    /// Appends the whole message, padded.
    pub fn encode(&self, sequence: u32, flags: u16, out: &mut Vec<u8>) {
        let length = (HEADER_LEN + self.body.len()) as u32;
        out.extend(length.to_ne_bytes());
        out.extend(self.kind.to_ne_bytes());
        out.extend((self.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        out.extend(sequence.to_ne_bytes());
        out.extend(0u32.to_ne_bytes());
        out.extend(&self.body);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// What the kernel said to a request that it did not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub errno: i32,
    pub text: Option<String>,
}

impl Refusal {
    /// What was to be removed is not there (any more).
    pub fn is_absent(&self) -> bool {
        matches!(self.errno, libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        match &self.text {
            Some(text) => write!(f, ": {text}"),
            None => Ok(()),
        }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        match &refusal.text {
            Some(_) => io::Error::other(refusal.to_string()),
            None => io::Error::from_raw_os_error(refusal.errno),
        }
    }
}

/// A message from the kernel.
pub struct Answer {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Who asked for this, in a notification.
    pub port: u32,
    pub body: Vec<u8>,
}

impl Answer {
    /// The result that an NLMSG_ERROR carries (0 = acknowledged).
    pub fn verdict(&self) -> Result<(), Refusal> {
        let code = self.body.first_chunk::<4>().map_or(-libc::EBADMSG, |b| i32::from_ne_bytes(*b));
        if code == 0 {
            return Ok(());
        }
        let capped = self.flags & rtnetlink::packet_core::NLM_F_CAPPED != 0;
        let echoed = self.body.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let text_at = 4 + if capped { HEADER_LEN } else { (echoed as usize).next_multiple_of(4) };
        Err(Refusal { errno: -code, text: self.body.get(text_at..).and_then(extended_text) })
    }
}

/// NLMSGERR_ATTR_MSG among the attributes after an error.
fn extended_text(attributes: &[u8]) -> Option<String> {
    let message = attributes_of(attributes).find(|(kind, _)| *kind == 1)?.1;
    Some(String::from_utf8_lossy(message).trim_end_matches('\0').to_owned())
}

/// The attributes in a byte string: type without its flag bits, and value. Ends at the first malformed one.
pub fn attributes_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A netlink socket and its running sequence number.
pub struct Wire {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Wire {
    /// Opens a routing socket in the calling thread's network namespace.
    pub fn open_route() -> io::Result<Self> {
        let wire = Self::open(NETLINK_ROUTE)?;
        wire.socket.set_netlink_get_strict_chk(true)?;
        Ok(wire)
    }

    /// Opens a socket of any netlink family in the calling thread's network namespace.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        Self::over(socket)
    }

    /// Uses a socket that is already bound.
    pub fn over(socket: Socket) -> io::Result<Self> {
        let timeout = TimeVal::milliseconds(ANSWER_TIMEOUT.as_millis() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_LEN) })
    }

    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Carries out the requests in order and returns each one's result. An error means that the socket failed.
    pub fn execute(&mut self, requests: &[Request]) -> io::Result<Vec<Result<(), Refusal>>> {
        let mut results = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH_REQUESTS_MAX) {
            let first = self.advance(batch.len() as u32);
            let last = batch.len() - 1;
            let mut datagram = Vec::new();
            for (offset, request) in batch.iter().enumerate() {
                // The kernel tells of each refusal, in order. So the last answer says that the others were carried out.
                let flags = if offset == last { NLM_F_ACK } else { 0 };
                request.encode(first.wrapping_add(offset as u32), flags, &mut datagram);
            }
            self.send(&datagram)?;
            results.extend(self.collect_verdicts(first, batch.len())?);
        }
        Ok(results)
    }

    /// Carries out one request.
    pub fn execute_one(&mut self, request: Request) -> io::Result<Result<(), Refusal>> {
        let mut results = self.execute(std::slice::from_ref(&request))?;
        Ok(results.pop().unwrap_or(Err(Refusal { errno: libc::EBADMSG, text: None })))
    }

    /// Asks for one object: the message, or the refusal.
    pub fn ask(&mut self, question: &Request) -> io::Result<Result<Answer, Refusal>> {
        self.ask_after(&[], question)
    }

    /// Carries out a request, then asks for one object, in one go: the message, or the first refusal.
    pub fn execute_and_ask(
        &mut self,
        request: &Request,
        question: &Request,
    ) -> io::Result<Result<Answer, Refusal>> {
        self.ask_after(std::slice::from_ref(request), question)
    }

    fn ask_after(&mut self, before: &[Request], question: &Request) -> io::Result<Result<Answer, Refusal>> {
        let first = self.advance(before.len() as u32 + 1);
        let last = first.wrapping_add(before.len() as u32);
        let mut datagram = Vec::new();
        for (offset, request) in before.iter().chain([question]).enumerate() {
            request.encode(first.wrapping_add(offset as u32), 0, &mut datagram);
        }
        self.send(&datagram)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut refused = None;
        loop {
            for answer in self.receive(deadline)? {
                let ours = answer.sequence.wrapping_sub(first) as usize <= before.len();
                if ours && answer.kind == NLMSG_ERROR {
                    let refusal = answer.verdict().err();
                    refused = refused.or(refusal.or(Some(Refusal { errno: libc::ENODATA, text: None })));
                }
                if answer.sequence == last {
                    return Ok(refused.map_or(Ok(answer), Err));
                }
            }
        }
    }

    /// Reads a whole table. A dump that the kernel reports as interrupted is begun again.
    pub fn dump(&mut self, request: &Request) -> io::Result<Vec<Answer>> {
        for _ in 0..8 {
            if let Some(answers) = self.dump_once(request)? {
                return Ok(answers);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the kernel's table changed during each of 8 dumps"))
    }

    fn dump_once(&mut self, request: &Request) -> io::Result<Option<Vec<Answer>>> {
        let sequence = self.advance(1);
        let mut datagram = Vec::new();
        request.encode(sequence, NLM_F_DUMP, &mut datagram);
        self.send(&datagram)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        loop {
            for answer in self.receive(deadline)?.into_iter().filter(|a| a.sequence == sequence) {
                interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(answers)),
                    NLMSG_ERROR => answer.verdict()?,
                    _ => answers.push(answer),
                }
            }
        }
    }

    /// Reads a table of the routing family. Entries that our parser does not know are foreign: they are left out.
    pub fn dump_route(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let answers = self.dump(&Request::route(message, 0))?;
        Ok(answers.iter().filter_map(parse_route).collect())
    }

    /// Reserves sequence numbers and returns the first.
    pub fn advance(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends one datagram of any length: beyond the default limit the limit is raised first.
    pub fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        if datagram.len() > SEND_LEN_DEFAULT {
            setsockopt(&self.socket, sockopt::SndBufForce, &(2 * datagram.len()))?;
        }
        self.socket.send_to(datagram, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    /// The messages of the next datagram.
    pub fn receive(&mut self, deadline: Instant) -> io::Result<Vec<Answer>> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(split(&self.buffer)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Throws away what is left over from an earlier owner of the socket or an interrupted request.
    pub fn drain(&mut self) {
        self.buffer.clear();
        while self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT).is_ok() {
            self.buffer.clear();
        }
    }

    /// Until the last of the batch is acknowledged, what is not refused was carried out.
    fn collect_verdicts(&mut self, first: u32, count: usize) -> io::Result<Vec<Result<(), Refusal>>> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut results = vec![Ok(()); count];
        loop {
            for answer in self.receive(deadline)?.iter().filter(|answer| answer.kind == NLMSG_ERROR) {
                let place = answer.sequence.wrapping_sub(first) as usize;
                if let Some(result) = results.get_mut(place) {
                    *result = answer.verdict();
                }
                if place + 1 == count {
                    return Ok(results);
                }
            }
        }
    }
}

/// The answer as a message of the routing family.
pub fn parse_route(answer: &Answer) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = answer.kind;
    match RouteNetlinkMessage::deserialize(&header, &answer.body) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::debug!(kind = answer.kind, %error, "skipped a netlink message of a form that is not ours");
            None
        }
    }
}

/// Cuts a datagram into messages.
pub fn split(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER_LEN>() {
        let field =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = field(0) as usize;
        let Some(body) = bytes.get(HEADER_LEN..length) else { break };
        answers.push(Answer {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: field(8),
            port: field(12),
            body: body.to_vec(),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_was_encoded_is_read_back_whole() {
        let request = Request { kind: 24, flags: 0x400, body: vec![1, 2, 3, 4, 5] };
        let mut datagram = Vec::new();
        request.encode(7, NLM_F_ACK, &mut datagram);
        request.encode(8, 0, &mut datagram);
        let answers = split(&datagram);
        assert_eq!(answers.iter().map(|a| a.sequence).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(answers[0].body, request.body);
        assert_eq!(answers[0].flags, 0x400 | NLM_F_ACK | NLM_F_REQUEST);
    }

    #[test]
    fn a_truncated_datagram_ends_the_reading_instead_of_panicking() {
        let mut datagram = Vec::new();
        Request { kind: 1, flags: 0, body: vec![0; 64] }.encode(1, 0, &mut datagram);
        for length in 0..datagram.len() {
            assert!(split(&datagram[..length]).is_empty());
        }
        assert_eq!(attributes_of(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attributes_of(&[0, 0, 1, 0]).count(), 0);
    }
}
