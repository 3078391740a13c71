// SPDX-License-Identifier: Apache-2.0
//! Frames between the plugin and the agent on the Unix socket.
//!
//! A frame is a length (`u32`, big endian, at most [`MAX_FRAME_BYTES`]) and a payload. The plugin sends one [`Request`]; the
//! agent answers with [`Answer::Done`], and with [`Answer::Wait`] before if that takes long: so a hung agent is told from a busy one.
//! In between it may ask with [`Answer::Delegate`] for another plugin to be run where the runtime runs plugins, and is told
//! with [`Delegated`] how that ended. Once the plugin has printed the result of ADD it sends one byte, [`PRINTED`]: a connection
//! that ends without it is an answer that nobody may have got.

use std::fmt;
use std::io::{self, Read};

/// Longest payload that either side accepts, bytes.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
const REQUEST_MAGIC: &[u8; 4] = b"ICN1";
const TAG_WAIT: u8 = 0;
const TAG_DONE: u8 = 1;
const TAG_DELEGATE: u8 = 2;
/// The runtime was handed the result.
pub const PRINTED: u8 = 1;
/// The variable of a request in which the program says what it was called as; it is none of the specification's.
pub const ROLE: &str = "ISTHMUS_ROLE";
/// The role of a plugin for addresses.
pub const ROLE_IPAM: &str = "ipam";

/// What the runtime gave to the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The `CNI_*` variables, `CNI_COMMAND` among them.
    pub env: Vec<(String, String)>,
    /// The network configuration as it came on standard input.
    pub stdin: Vec<u8>,
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request is being worked on; wait at most so many seconds from now.
    Wait {
        /// Seconds.
        seconds: u8,
    },
    /// Run this plugin of `CNI_PATH` with the same variables but the command, and the same standard input.
    Delegate {
        /// Name of its file.
        plugin: String,
        /// `CNI_COMMAND` for it.
        command: String,
    },
    /// The end: exit code and standard output of the plugin.
    Done {
        /// 0, or 1 with an error object in `stdout`.
        exit_code: u8,
        /// What the plugin prints.
        stdout: Vec<u8>,
    },
}

/// How another plugin ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegated {
    /// 0, or 1 with an error object in `stdout`.
    pub exit_code: u8,
    /// What it printed.
    pub stdout: Vec<u8>,
}

impl Delegated {
    /// The whole frame, length included.
    pub fn to_frame(&self) -> Vec<u8> {
        let mut payload = vec![self.exit_code];
        payload.extend(&self.stdout);
        frame(&payload)
    }

    /// Reads a payload (a frame without its length).
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let (exit_code, stdout) = payload.split_first().ok_or(Malformed("cut short"))?;
        Ok(Self { exit_code: *exit_code, stdout: stdout.to_vec() })
    }
}

/// A frame that breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed frame: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

impl Request {
    /// The value of a variable, if it is set and not empty.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.env
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// The whole frame, length included.
    pub fn to_frame(&self) -> Vec<u8> {
        let mut payload = REQUEST_MAGIC.to_vec();
        payload.extend((self.env.len() as u16).to_be_bytes());
        for (name, value) in &self.env {
            put_bytes(&mut payload, name.as_bytes());
            put_bytes(&mut payload, value.as_bytes());
        }
        put_bytes(&mut payload, &self.stdin);
        frame(&payload)
    }

    /// Reads a payload (a frame without its length).
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let mut rest = payload
            .strip_prefix(REQUEST_MAGIC.as_slice())
            .ok_or(Malformed("not a request of this version"))?;
        let count = u16::from_be_bytes(*take_array::<2>(&mut rest)?);
        let mut env = Vec::new();
        for _ in 0..count {
            env.push((take_text(&mut rest)?, take_text(&mut rest)?));
        }
        let stdin = take_bytes(&mut rest)?.to_vec();
        if rest.is_empty() { Ok(Self { env, stdin }) } else { Err(Malformed("bytes after the end")) }
    }
}

impl Answer {
    /// The whole frame, length included.
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Wait { seconds } => frame(&[TAG_WAIT, *seconds]),
            Self::Delegate { plugin, command } => {
                let mut payload = vec![TAG_DELEGATE];
                put_bytes(&mut payload, plugin.as_bytes());
                put_bytes(&mut payload, command.as_bytes());
                frame(&payload)
            }
            Self::Done { exit_code, stdout } => {
                let mut payload = vec![TAG_DONE, *exit_code];
                payload.extend(stdout);
                frame(&payload)
            }
        }
    }

    /// Reads a payload (a frame without its length).
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        match payload {
            [TAG_WAIT, seconds] => Ok(Self::Wait { seconds: *seconds }),
            [TAG_DONE, exit_code, stdout @ ..] => {
                Ok(Self::Done { exit_code: *exit_code, stdout: stdout.to_vec() })
            }
            [TAG_DELEGATE, rest @ ..] => {
                let mut rest = rest;
                let (plugin, command) = (take_text(&mut rest)?, take_text(&mut rest)?);
                if rest.is_empty() {
                    Ok(Self::Delegate { plugin, command })
                } else {
                    Err(Malformed("bytes after the end"))
                }
            }
            _ => Err(Malformed("unknown kind of answer")),
        }
    }
}

/// Reads one frame's payload. A length over the limit is `InvalidData`.
pub fn read_payload(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, Malformed("longer than the limit")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok(payload)
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes().to_vec();
    frame.extend(payload);
    frame
}

fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u32).to_be_bytes());
    to.extend(bytes);
}

fn take_array<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], Malformed> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(Malformed("cut short"))?;
    *rest = tail;
    Ok(head)
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = u32::from_be_bytes(*take_array::<4>(rest)?) as usize;
    let (head, tail) = rest.split_at_checked(length).ok_or(Malformed("cut short"))?;
    *rest = tail;
    Ok(head)
}

fn take_text(rest: &mut &[u8]) -> Result<String, Malformed> {
    String::from_utf8(take_bytes(rest)?.to_vec()).map_err(|_| Malformed("text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            env: vec![("CNI_COMMAND".into(), "ADD".into()), ("CNI_ARGS".into(), String::new())],
            stdin: br#"{"name":"x"}"#.to_vec(),
        }
    }

    #[test]
    fn a_request_arrives_as_it_was_sent() {
        let frame = request().to_frame();
        let payload = read_payload(&mut frame.as_slice()).unwrap();
        assert_eq!(Request::parse(&payload).unwrap(), request());
        assert_eq!(request().var("CNI_COMMAND"), Some("ADD"));
        assert_eq!(request().var("CNI_ARGS"), None, "an empty variable counts as missing");
    }

    #[test]
    fn an_answer_arrives_as_it_was_sent() {
        let delegate = Answer::Delegate { plugin: "host-local".into(), command: "ADD".into() };
        let done = Answer::Done { exit_code: 1, stdout: b"{}".to_vec() };
        let delegated = Delegated { exit_code: 0, stdout: b"{}".to_vec() };
        let payload = read_payload(&mut delegated.to_frame().as_slice()).unwrap();
        assert_eq!(Delegated::parse(&payload).unwrap(), delegated);
        for answer in [Answer::Wait { seconds: 20 }, delegate, done] {
            let frame = answer.to_frame();
            assert_eq!(Answer::parse(&read_payload(&mut frame.as_slice()).unwrap()).unwrap(), answer);
        }
    }

    #[test]
    fn a_request_cut_at_any_byte_is_an_error_and_no_panic() {
        let frame = request().to_frame();
        let payload = &frame[4..];
        for end in 0..payload.len() {
            assert!(Request::parse(&payload[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_frame_that_claims_more_than_the_limit_is_refused_before_it_is_read() {
        let error = read_payload(&mut [0xff, 0xff, 0xff, 0xff].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
