// SPDX-License-Identifier: Apache-2.0
//! Probe datagrams: requests of anybody who reaches the port, answers of anybody who guesses it.

use isthmus_model::ids::is_dns_label;

use crate::Seed;
use crate::private::probe::datagram::{
    HEADER_BYTES, Header, MAX_BYTES, Purpose, answer, read_answer, read_request, request,
};

const NAMES: [&str; 5] = ["east", "north-1", "south", "west", "x"];

pub(crate) fn run(bytes: &[u8]) {
    if let Some(header) = read_request(bytes) {
        let again = request(header, bytes.len());
        assert_eq!(read_request(&again), Some(header));
        assert!(again.len() <= bytes.len().min(MAX_BYTES));
        answered(header, bytes.len());
        assert_eq!(read_answer(bytes), None, "request and answer at once");
    }
    if let Some(read) = read_answer(bytes) {
        assert!(read.reaches.iter().all(|name| is_dns_label(name)));
        let names = read.reaches.iter().map(String::as_str);
        let again = read_answer(&answer(read.header, bytes.len(), names.clone())).expect("an answer");
        assert_eq!((again.header, &again.reaches), (read.header, &read.reaches));
        assert!(HEADER_BYTES + 1 + names.map(|name| name.len() + 1).sum::<usize>() <= bytes.len());
    }
}

/// An answer floods nobody, and says what there was room for.
fn answered(header: Header, room: usize) {
    let bytes = answer(header, room, NAMES.into_iter());
    assert!(bytes.len() <= room, "{} bytes answer {room}", bytes.len());
    assert!(header.purpose == Purpose::Alive || bytes.len() == room);
    let read = read_answer(&bytes).expect("an answer");
    assert_eq!(read.header, header);
    assert_eq!(read.more, read.reaches.len() < NAMES.len());
    assert!(read.reaches.iter().all(|name| NAMES.contains(&name.as_str())));
    assert_eq!(read_request(&bytes), None, "two responders would answer each other for ever");
}

pub(crate) fn seeds() -> Vec<Seed> {
    let header = |purpose| Header { purpose, sequence: 7, nonce: 0x0123_4567_89ab_cdef };
    let alive = request(header(Purpose::Alive), 128);
    let whole = answer(header(Purpose::Alive), 128, NAMES.into_iter());
    let mut upper = whole.clone();
    upper[HEADER_BYTES + 2] = b'E';
    vec![
        ("alive", alive.clone()),
        ("size", request(header(Purpose::Size), 1392)),
        ("shortest", alive[..HEADER_BYTES + 1].to_vec()),
        ("answer", whole.clone()),
        ("answer-with-more", answer(header(Purpose::Alive), 32, NAMES.into_iter())),
        ("answer-cut", whole[..whole.len() - 1].to_vec()),
        ("answer-with-a-bad-name", upper),
        ("answer-of-a-size", answer(header(Purpose::Size), 300, NAMES.into_iter())),
    ]
}
