// SPDX-License-Identifier: Apache-2.0
//! Writing netlink attributes. Numbers of nf_tables travel in network byte order.

const NESTED: u16 = 0x8000;

/// A byte string of attributes under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let terminated: Vec<u8> = value.bytes().chain([0]).collect();
        self.bytes(kind, &terminated)
    }

    pub(crate) fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::attributes_of;

    #[test]
    fn nested_attributes_are_padded_and_read_back() {
        let inner = Attributes::default().text(1, "ab").u32(2, 7);
        let outer = Attributes::default().nest(3, inner).u8(4, 9).into_bytes();
        let read: Vec<(u16, Vec<u8>)> = attributes_of(&outer).map(|(k, v)| (k, v.to_vec())).collect();
        assert_eq!(read[1], (4, vec![9]));
        let inner: Vec<(u16, Vec<u8>)> = attributes_of(&read[0].1).map(|(k, v)| (k, v.to_vec())).collect();
        assert_eq!(inner, [(1, b"ab\0".to_vec()), (2, vec![0, 0, 0, 7])]);
    }
}
