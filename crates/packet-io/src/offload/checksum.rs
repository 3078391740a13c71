// SPDX-License-Identifier: Apache-2.0
//! The Internet checksum (RFC 1071). Sums are kept in the machine's byte order, which RFC 1071 section 2 (B) allows: the bytes of
//! the result, written as they lie in memory, are right.

/// Adds up the bytes as 32-bit words; an odd end counts as followed by zeros. `bytes` begins at an even offset of what is summed.
pub(super) fn sum(bytes: &[u8], start: u64) -> u64 {
    // Four sums, so that the compiler may add four words at once; none can overflow with packets of 64 KiB.
    let mut sums = [0_u64; 4];
    let mut blocks = bytes.chunks_exact(16);
    for block in &mut blocks {
        for (sum, word) in sums.iter_mut().zip(block.chunks_exact(4)) {
            *sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let rest = blocks.remainder();
    let mut total = start + sums.iter().sum::<u64>();
    for word in rest.chunks(4) {
        let mut padded = [0; 4];
        padded[..word.len()].copy_from_slice(word);
        total += u64::from(u32::from_ne_bytes(padded));
    }
    total
}

/// Folds a sum to 16 bits, not complemented.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of the bytes and what was summed before.
pub(super) fn of(bytes: &[u8], start: u64) -> u16 {
    !fold(sum(bytes, start))
}

/// The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1) of a packet whose layer 4 has this length.
pub(super) fn pseudo_header(packet: &[u8], protocol: u8, length: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let length = (length as u32).to_be_bytes();
    let protocol = [0, protocol];
    sum(addresses, 0) + sum(&length, 0) + u64::from(u16::from_ne_bytes(protocol))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071 has it, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_plain_sum(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(of(&bytes, 0).to_ne_bytes(), plain(&bytes).to_be_bytes());
        }
    }
}
