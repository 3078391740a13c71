// SPDX-License-Identifier: Apache-2.0
//! The stream of frames that a peer sends, in parts of any size.

use isthmus_mesh::wire::{Decoder, FRAME_BYTES_MAX, Hello, Message, Position, Versions, encode};

use super::mesh_records::{cluster, export, gateway, slice};
use crate::Seed;
use crate::input::Input;

/// The first byte is the size of the parts; all others are the stream.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let part_bytes = usize::from(input.u8()).max(1);
    let stream = input.rest();
    let whole = decode([stream].into_iter());
    let parts = decode(stream.chunks(part_bytes));
    assert_eq!(whole, parts, "it matters how the bytes are cut");
    for message in &whole.0 {
        encodes_to_itself(message);
    }
}

/// What decodes is the same after it was encoded and decoded.
pub(super) fn encodes_to_itself(message: &Message) {
    let frame = encode(message);
    assert!(frame.len() <= 4 + FRAME_BYTES_MAX);
    let again = decode([frame.as_slice()].into_iter());
    assert_eq!(again.1, None, "{message:?}");
    assert_eq!(again.0.as_slice(), std::slice::from_ref(message));
}

/// All messages, and the fault after them.
fn decode<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<Message>, Option<String>) {
    let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
    for part in parts {
        decoder.push(part);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(fault) => return (messages, Some(fault.to_string())),
            }
        }
    }
    (messages, None)
}

pub(crate) fn seeds() -> Vec<Seed> {
    let versions = Versions::OURS;
    let have = Some(Position { epoch: 1, revision: 7 });
    let hello = |have| {
        Message::Hello(Hello { versions, cluster_id: "west".parse().expect("a label"), epoch: 3, have })
    };
    let put =
        vec![cluster(&["10.2.0.0/16"]), gateway("g1", 7, "10.2.0.0"), export("shop", "web"), slice("web", 2)];
    let remove = vec![export("shop", "old").key()];
    let snapshot = Message::Snapshot { revision: 9, put: put.clone(), remove: remove.clone(), done: true };
    let delta = Message::Delta { from: 9, revision: 10, put, remove };
    let token = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".parse().expect("43 letters");
    let redeem = Message::Redeem { token, cluster_id: "west".parse().expect("a label") };
    let stream = |messages: &[&Message]| {
        let frames = messages.iter().flat_map(|message| encode(message));
        std::iter::once(16).chain(frames).collect::<Vec<u8>>()
    };
    let framed = |text: String| [&[255, 0, 0, 0, text.len() as u8], text.as_bytes()].concat();
    vec![
        ("conversation", stream(&[&hello(None), &snapshot, &delta, &Message::Ping { sequence: 1 }])),
        ("resumed", stream(&[&hello(have), &Message::Ping { sequence: 1 }])),
        ("redeemed", stream(&[&redeem, &Message::Redeemed])),
        ("refused", framed(r#"{"type":"refused","reason":"moonPhase","message":"wait"}"#.into())),
        ("bye", framed(r#"{"type":"bye","reason":"closed","message":"\u0007 and []"}"#.into())),
        (
            "deep",
            framed(format!(r#"{{"type":"ping","sequence":1,"x":{}1{}}}"#, "[".repeat(40), "]".repeat(40))),
        ),
        ("too-long", vec![1, 0, 0x10, 0, 1]),
        ("empty-frame", vec![1, 0, 0, 0, 0]),
    ]
}
