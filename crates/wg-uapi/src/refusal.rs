// SPDX-License-Identifier: Apache-2.0
//! Why a request is refused, for the log and for the one who asked.

use crate::{MAX_LINE_BYTES, MAX_LINES, MAX_PEERS, MAX_REQUEST_BYTES};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The state of the interface.
    Get,
    /// Changes of it.
    Set,
}

/// Errors by their numbers on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// EIO: a system call failed otherwise.
    Io,
    /// EINVAL: the request is malformed.
    Invalid,
    /// EPROTO: a line is none of the protocol.
    Protocol,
    /// EADDRINUSE: the port or the mark cannot be had.
    AddressInUse,
}

impl Errno {
    /// The number, as in `errno.h`.
    pub fn number(self) -> u16 {
        match self {
            Self::Io => 5,
            Self::Invalid => 22,
            Self::Protocol => 71,
            Self::AddressInUse => 98,
        }
    }
}

/// A refused request. Its text goes to a log: it tells lines by their number and never what stands in them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What was asked for, where that could be read.
    pub operation: Option<Operation>,
    /// Why not.
    pub reason: Reason,
}

impl Refusal {
    /// The error in one number.
    pub fn errno(&self) -> Errno {
        match self.reason {
            Reason::NoEquals { .. } => Errno::Protocol,
            _ => Errno::Invalid,
        }
    }

    /// What is sent back.
    pub fn answer(&self) -> String {
        match self.operation {
            Some(Operation::Set) => crate::answer_to_set(Err(self.errno())),
            _ => format!("errno={}\n\n", self.errno().number()),
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The first line is neither `get=1` nor `set=1`.
    #[error("the request begins with neither `get=1` nor `set=1`")]
    UnknownOperation,
    /// There are lines in a `get`.
    #[error("`get=1` is not followed by an empty line")]
    LinesInGet,
    /// The empty line that ends a request is not there.
    #[error("the request has no empty line at its end")]
    Unfinished,
    /// A line longer than [`MAX_LINE_BYTES`].
    #[error("line {line} has more than {MAX_LINE_BYTES} bytes")]
    LongLine {
        /// Counted from 1.
        line: usize,
    },
    /// More than [`MAX_LINES`].
    #[error("the request has more than {MAX_LINES} lines")]
    TooManyLines,
    /// More than [`MAX_REQUEST_BYTES`].
    #[error("the request has more than {MAX_REQUEST_BYTES} bytes")]
    TooLong,
    /// More than [`MAX_PEERS`], in the request or in the interface after it.
    #[error("more than {MAX_PEERS} peers")]
    TooManyPeers,
    /// A line without `=`.
    #[error("line {line} is not of the form `key=value`")]
    NoEquals {
        /// Counted from 1.
        line: usize,
    },
    /// A key that the protocol does not have, or not there. Its name is not told: it can be a secret in the wrong place.
    #[error("line {line} has a key that does not belong there")]
    UnknownKey {
        /// Counted from 1.
        line: usize,
    },
    /// A value that its key does not take.
    #[error("line {line}: the value of `{key}` is not valid")]
    BadValue {
        /// Counted from 1.
        line: usize,
        /// The name of a key of the protocol.
        key: &'static str,
    },
}
