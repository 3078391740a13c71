// SPDX-License-Identifier: Apache-2.0
//! The datagrams of a probe. An answer repeats the request's sequence and nonce, so that only who saw the request can make one,
//! and is never longer than the request, so that nobody is flooded through us.
//!
//! ```text
//! 0  magic "IsPr"    4  version (1)   5  kind (1 request, 2 answer)   6  purpose (0 alive, 1 size)   7  flags (1: more names)
//! 8  sequence, big-endian u32         12  nonce, u64                  20  answer: count, then length and bytes of each name
//! ```

use std::collections::BTreeSet;

use isthmus_model::ids::is_dns_label;

const MAGIC: [u8; 4] = *b"IsPr";
const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
const MORE: u8 = 1;
/// Bytes before the names.
pub(crate) const HEADER_BYTES: usize = 20;
/// The longest probe: an inner packet of 9000 bytes.
pub(crate) const MAX_BYTES: usize = 9000;

/// Why a probe was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Is the path up, how long does it take, what does the other end reach?
    Alive,
    /// Does a packet of this size pass, there and back?
    Size,
}

/// What request and answer have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) purpose: Purpose,
    pub(crate) sequence: u32,
    pub(crate) nonce: u64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) header: Header,
    /// Names of peers that the other end reaches.
    pub(crate) reaches: BTreeSet<String>,
    /// There are more names than the request had room for.
    pub(crate) more: bool,
}

/// Writes a request of `length` bytes.
pub(crate) fn request(header: Header, length: usize) -> Vec<u8> {
    let mut bytes = head(header, REQUEST);
    bytes.resize(length.clamp(HEADER_BYTES + 1, MAX_BYTES), 0);
    bytes
}

/// Reads a request.
pub(crate) fn read_request(bytes: &[u8]) -> Option<Header> {
    read_head(bytes, REQUEST)
}

/// Writes the answer to a request of `room` bytes: as long for [`Purpose::Size`], else no longer.
pub(crate) fn answer<'a>(header: Header, room: usize, reaches: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut bytes = head(header, ANSWER);
    bytes.push(0);
    for name in reaches {
        if bytes.len() + 1 + name.len() > room || bytes[HEADER_BYTES] == u8::MAX {
            bytes[7] |= MORE;
            break;
        }
        bytes[HEADER_BYTES] += 1;
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name.as_bytes());
    }
    if header.purpose == Purpose::Size {
        bytes.resize(room.max(bytes.len()), 0);
    }
    bytes
}

/// Reads an answer. Nothing of it is believed yet: sequence and nonce must be compared with what was sent.
pub(crate) fn read_answer(bytes: &[u8]) -> Option<Answer> {
    let header = read_head(bytes, ANSWER)?;
    let mut rest = bytes.get(HEADER_BYTES + 1..)?;
    let mut reaches = BTreeSet::new();
    for _ in 0..bytes[HEADER_BYTES] {
        let length = usize::from(*rest.first()?);
        let name = std::str::from_utf8(rest.get(1..1 + length)?).ok()?;
        if !is_dns_label(name) {
            return None;
        }
        reaches.insert(name.to_owned());
        rest = &rest[1 + length..];
    }
    Some(Answer { header, reaches, more: bytes[7] & MORE != 0 })
}

fn head(header: Header, kind: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend_from_slice(&MAGIC);
    let purpose = if header.purpose == Purpose::Size { 1 } else { 0 };
    bytes.extend_from_slice(&[VERSION, kind, purpose, 0]);
    bytes.extend_from_slice(&header.sequence.to_be_bytes());
    bytes.extend_from_slice(&header.nonce.to_be_bytes());
    bytes
}

fn read_head(bytes: &[u8], kind: u8) -> Option<Header> {
    if bytes.len() <= HEADER_BYTES || bytes[..4] != MAGIC || bytes[4] != VERSION || bytes[5] != kind {
        return None;
    }
    let purpose = match bytes[6] {
        0 => Purpose::Alive,
        1 => Purpose::Size,
        _ => return None,
    };
    let sequence = u32::from_be_bytes(bytes[8..12].try_into().ok()?);
    let nonce = u64::from_be_bytes(bytes[12..20].try_into().ok()?);
    Some(Header { purpose, sequence, nonce })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: Header = Header { purpose: Purpose::Alive, sequence: 7, nonce: 0x0123_4567_89ab_cdef };

    #[test]
    fn an_answer_carries_the_names_that_the_request_has_room_for_and_says_so_if_there_are_more() {
        let names = ["east", "north", "west"];
        let all = read_answer(&answer(HEADER, 128, names.into_iter())).unwrap();
        assert_eq!(all, Answer { header: HEADER, reaches: names.map(str::to_owned).into(), more: false });
        let some = read_answer(&answer(HEADER, HEADER_BYTES + 12, names.into_iter())).unwrap();
        assert_eq!((some.reaches.len(), some.more), (2, true));
    }

    #[test]
    fn an_answer_to_a_size_probe_is_as_long_as_the_probe() {
        let header = Header { purpose: Purpose::Size, ..HEADER };
        let sent = request(header, 1392);
        assert_eq!(sent.len(), 1392);
        assert_eq!(read_request(&sent), Some(header));
        assert_eq!(answer(header, sent.len(), std::iter::empty()).len(), 1392);
    }

    proptest! {
        #[test]
        fn an_answer_is_never_longer_than_its_request(length in 21usize..600, count in 0usize..40) {
            let names: Vec<String> = (0..count).map(|number| format!("peer-{number}")).collect();
            let sent = request(HEADER, length);
            let answered = answer(HEADER, sent.len(), names.iter().map(String::as_str));
            prop_assert!(answered.len() <= sent.len());
            let read = read_answer(&answered).unwrap();
            prop_assert_eq!(read.more, read.reaches.len() < count);
        }

        #[test]
        fn any_bytes_at_all_are_read_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), honest in any::<bool>()) {
            if honest && bytes.len() > 6 {
                bytes[..6].copy_from_slice(b"IsPr\x01\x02");
            }
            let _ = (read_request(&bytes), read_answer(&bytes));
        }
    }
}
