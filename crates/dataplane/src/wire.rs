// SPDX-License-Identifier: Apache-2.0
//! Frames between agent and data plane: after one byte each way (the protocol's version), one JSON value a line.

use std::io::{self, BufRead, Read, Write};

/// The first byte of either side.
pub(crate) const PROTOCOL_VERSION: u8 = 1;
/// Longest line, in bytes.
pub(crate) const MAX_FRAME_BYTES: usize = 1 << 20;

/// Reads the next line; `None` at the end of the stream.
///
/// # Errors
/// `InvalidData` for a line that is too long or is cut off.
pub(crate) fn read_frame(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(MAX_FRAME_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a line was cut off or exceeds 1 MiB")),
    }
}

/// Writes one value as a line.
///
/// # Errors
/// `InvalidData` for a value that makes too long a line; else what the stream says.
pub(crate) fn write_frame(writer: &mut impl Write, line: &str) -> io::Result<()> {
    if line.len() >= MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message exceeds 1 MiB"));
    }
    let mut bytes = Vec::with_capacity(line.len() + 1);
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    writer.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_one_by_one_and_then_the_end() {
        let mut stream = Vec::new();
        write_frame(&mut stream, "one").unwrap();
        write_frame(&mut stream, "two").unwrap();
        let mut reader = stream.as_slice();
        assert_eq!(read_frame(&mut reader).unwrap().unwrap(), b"one");
        assert_eq!(read_frame(&mut reader).unwrap().unwrap(), b"two");
        assert_eq!(read_frame(&mut reader).unwrap(), None);
    }

    #[test]
    fn a_line_that_is_cut_off_or_endless_is_an_error() {
        assert!(read_frame(&mut b"half".as_slice()).is_err());
        assert!(read_frame(&mut vec![b'x'; MAX_FRAME_BYTES + 9].as_slice()).is_err());
        assert!(write_frame(&mut Vec::new(), &"x".repeat(MAX_FRAME_BYTES)).is_err());
    }
}
