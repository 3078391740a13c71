// SPDX-License-Identifier: Apache-2.0
//! Frames: four bytes of length, big-endian, then one message as JSON.

use super::Message;

/// The largest frame, in bytes without its length.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// How deep arrays and objects may be nested.
const DEPTH_MAX: usize = 32;
const LENGTH_BYTES: usize = 4;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Nested deeper than any message is.
    #[error("a frame is nested deeper than {DEPTH_MAX} levels")]
    Depth,
    /// Not the JSON of a message.
    #[error("a frame is not a message of the protocol isthmus/1")]
    Json(#[source] serde_json::Error),
    /// Empty or larger than allowed.
    #[error("a frame announces {0} bytes; 1 to {FRAME_BYTES_MAX} are allowed")]
    Length(usize),
}

/// Writes a message as a frame.
///
/// # Panics
/// If the frame is larger than [`FRAME_BYTES_MAX`], which the bounds of records rule out.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, message)
        .expect("messages have string keys and writing to memory succeeds");
    let length = frame.len() - LENGTH_BYTES;
    assert!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes was about to be sent");
    let length = u32::try_from(length).expect("1 MiB fits 32 bits");
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    frame
}

/// Finds messages in a stream of bytes. Holds no more than one frame and what arrived with it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next whole message. After an error the stream is lost.
    pub fn next_message(&mut self) -> Result<Option<Message>, FrameError> {
        let Some((head, rest)) = self.buffer.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if !(1..=FRAME_BYTES_MAX).contains(&length) {
            return Err(FrameError::Length(length));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        if depth(body) > DEPTH_MAX {
            return Err(FrameError::Depth);
        }
        let message = serde_json::from_slice(body).map_err(FrameError::Json)?;
        self.buffer.drain(..LENGTH_BYTES + length);
        Ok(Some(message))
    }
}

/// How deep the JSON is nested, whether or not it is well-formed.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0usize, 0usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8]) -> Result<Option<Message>, FrameError> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        decoder.next_message()
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
    }

    #[test]
    fn messages_come_out_whole_however_the_bytes_are_cut() {
        let messages = [Message::Redeemed, Message::Ping { sequence: 7 }, Message::Redeemed];
        let bytes: Vec<u8> = messages.iter().flat_map(encode).collect();
        for size in 1..bytes.len() {
            let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
            for part in bytes.chunks(size) {
                decoder.push(part);
                while let Some(message) = decoder.next_message().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, messages, "in parts of {size}");
        }
    }

    #[test]
    fn an_oversize_frame_is_refused_by_its_length_alone() {
        assert!(matches!(decode(&[0, 0x10, 0, 1]), Err(FrameError::Length(1_048_577))));
        assert!(matches!(decode(&[0xff; 4]), Err(FrameError::Length(_))));
        assert!(matches!(decode(&[0; 4]), Err(FrameError::Length(0))));
    }

    #[test]
    fn deep_nesting_is_refused_before_it_is_parsed() {
        let deep = format!(r#"{{"type":"ping","sequence":1,"x":{}1{}}}"#, "[".repeat(40), "]".repeat(40));
        assert!(matches!(decode(&framed(deep.as_bytes())), Err(FrameError::Depth)));
        let text = format!(r#"{{"type":"bye","reason":"closed","message":"{}"}}"#, "[".repeat(40));
        assert!(decode(&framed(text.as_bytes())).unwrap().is_some());
    }

    #[test]
    fn a_reason_of_a_later_version_is_understood_as_other() {
        let json = br#"{"type":"refused","reason":"moonPhase","message":"wait"}"#;
        let Some(Message::Refused { reason, .. }) = decode(&framed(json)).unwrap() else {
            panic!("not Refused")
        };
        assert_eq!(reason, crate::wire::RefusedReason::Other);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode(&bytes);
            let _ = decode(&framed(&bytes));
        }
    }
}
