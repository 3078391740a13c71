// SPDX-License-Identifier: Apache-2.0
//! A stream of bytes, cut into requests.

use zeroize::Zeroizing;

use crate::{MAX_LINE_BYTES, MAX_LINES, MAX_REQUEST_BYTES, Operation, Reason, Refusal, Request, parse};

/// Collects what a connection brings. It holds no more than one request and the last piece, and wipes what it held.
///
/// A refused request does not disturb the next one. Only one that goes beyond the bounds ends the conversation, because its
/// end is not looked for.
#[derive(Default)]
pub struct Reader {
    bytes: Zeroizing<Vec<u8>>,
    /// Where the request begins, where its current line does, and up to where it was looked through.
    start: usize,
    line_start: usize,
    seen: usize,
    lines: usize,
    over: bool,
}

impl Reader {
    /// Takes what has arrived. [`Self::next_request`] is asked after each piece.
    pub fn push(&mut self, piece: &[u8]) {
        if self.over {
            return;
        }
        let kept = self.bytes.len() - self.start;
        if self.start > 0 || kept + piece.len() > self.bytes.capacity() {
            // A vector that grows by itself leaves its old bytes behind.
            let mut moved = Zeroizing::new(Vec::with_capacity((kept + piece.len()).next_power_of_two()));
            moved.extend_from_slice(&self.bytes[self.start..]);
            self.bytes = moved;
            self.line_start -= self.start;
            self.seen -= self.start;
            self.start = 0;
        }
        self.bytes.extend_from_slice(piece);
    }

    /// The next whole request, or why it is refused; `None` until more has arrived.
    pub fn next_request(&mut self) -> Option<Result<Request, Refusal>> {
        while let Some(offset) = self.bytes[self.seen..].iter().position(|byte| *byte == b'\n') {
            let end = self.seen + offset;
            self.seen = end + 1;
            if end == self.line_start {
                let request = parse(&self.bytes[self.start..=end]);
                (self.start, self.line_start, self.lines) = (end + 1, end + 1, 0);
                return Some(request);
            }
            if let Some(reason) = self.beyond(end) {
                return Some(Err(self.end(reason)));
            }
            self.lines += 1;
            self.line_start = end + 1;
        }
        self.seen = self.bytes.len();
        let reason = self.beyond(self.seen)?;
        Some(Err(self.end(reason)))
    }

    /// Nothing more is read: the connection is to be closed after the answer.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The bound that the request breaks with a line up to `end`.
    fn beyond(&self, end: usize) -> Option<Reason> {
        if end - self.line_start > MAX_LINE_BYTES {
            return Some(Reason::LongLine { line: self.lines + 1 });
        }
        if self.lines + usize::from(end > self.line_start) > MAX_LINES {
            return Some(Reason::TooManyLines);
        }
        (end - self.start >= MAX_REQUEST_BYTES).then_some(Reason::TooLong)
    }

    fn end(&mut self, reason: Reason) -> Refusal {
        let request = &self.bytes[self.start..];
        let operation = match request.get(..6) {
            Some(b"get=1\n") => Some(Operation::Get),
            Some(b"set=1\n") => Some(Operation::Set),
            _ => None,
        };
        *self = Self { over: true, ..Self::default() };
        Refusal { operation, reason }
    }
}
