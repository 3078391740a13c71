// SPDX-License-Identifier: Apache-2.0
//! Which indices sessions have. Two engines that serve one port for a while take a half each: so whoever receives a datagram knows
//! whose it is.

/// Of a session's index, what is the peer's.
const INDEX_MASK: u32 = 0x00ff_ffff;
/// Of that, what says which half it is in.
const HALF_BIT: u32 = 0x0080_0000;

/// A half of all indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// Those without the highest bit.
    Lower,
    /// Those with it.
    Upper,
}

impl Half {
    /// The one that is not this.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Lower => Self::Upper,
            Self::Upper => Self::Lower,
        }
    }

    fn of(index: u32) -> Self {
        if index & HALF_BIT == 0 { Self::Lower } else { Self::Upper }
    }
}

/// Whom a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressee {
    /// Whoever has the session: its index is in this half.
    Session(Half),
    /// Whoever begins sessions: it is the first message of a handshake.
    Anyone,
}

/// Whom a datagram is for; none for what is no message of the protocol.
pub fn addressee(datagram: &[u8]) -> Option<Addressee> {
    let at = match datagram.first_chunk::<4>()? {
        [1, 0, 0, 0] => return Some(Addressee::Anyone),
        [2, 0, 0, 0] => 8,
        [3 | 4, 0, 0, 0] => 4,
        _ => return None,
    };
    let index = u32::from_le_bytes(datagram.get(at..at + 4)?.try_into().ok()?);
    Some(Addressee::Session(Half::of(index >> 8)))
}

/// Gives indices out, one after the other.
pub(super) struct Indices {
    half: Option<Half>,
    next: u32,
}

impl Indices {
    /// Of one half, or of all, from `first` on.
    pub(super) fn new(half: Option<Half>, first: u32) -> Self {
        Self { half, next: first }
    }

    /// The next that is free. There are more than there can be peers in memory.
    pub(super) fn next(&mut self, is_taken: impl Fn(u32) -> bool) -> u32 {
        loop {
            let index = match self.half {
                None => self.next & INDEX_MASK,
                Some(Half::Lower) => self.next & INDEX_MASK & !HALF_BIT,
                Some(Half::Upper) => self.next & INDEX_MASK | HALF_BIT,
            };
            self.next = self.next.wrapping_add(1);
            if !is_taken(index) {
                return index;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_messages_of_a_session_go_to_its_half_and_a_first_one_to_anyone() {
        let index = |index: u32| (index << 8 | 0x7f).to_le_bytes();
        for (at, kind) in [(8, 2u8), (4, 3), (4, 4)] {
            for (number, half) in [(0x7f_ffff, Half::Lower), (0x80_0000, Half::Upper), (0, Half::Lower)] {
                let mut datagram = [0; 32];
                datagram[0] = kind;
                datagram[at..at + 4].copy_from_slice(&index(number));
                assert_eq!(addressee(&datagram), Some(Addressee::Session(half)), "{kind} {number:x}");
                assert_eq!(addressee(&datagram[..at + 3]), None);
            }
        }
        assert_eq!(addressee(&[1, 0, 0, 0]), Some(Addressee::Anyone));
        for other in [&[][..], &[1, 0, 0], &[5, 0, 0, 0, 0, 0, 0, 0], &[4, 0, 1, 0, 0, 0, 0, 0]] {
            assert_eq!(addressee(other), None);
        }
    }

    proptest! {
        #[test]
        fn two_halves_have_no_index_in_common_and_all_fit(first: u32, count in 1usize..300) {
            let mut taken = std::collections::BTreeSet::new();
            for half in [Half::Lower, Half::Upper] {
                let mut indices = Indices::new(Some(half), first);
                for _ in 0..count {
                    let index = indices.next(|index| taken.contains(&index));
                    prop_assert!(index <= INDEX_MASK && Half::of(index) == half);
                    prop_assert!(taken.insert(index));
                }
            }
        }
    }
}
