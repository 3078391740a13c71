// SPDX-License-Identifier: Apache-2.0
//! Keys in the protocol's notation: 64 hex digits.

use std::fmt;

use zeroize::Zeroizing;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// 32 secret bytes. Wiped when dropped, compared in constant time, never printed.
#[derive(Clone)]
struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    fn from_hex(text: &str) -> Option<Self> {
        let mut secret = Self(Zeroizing::new([0; 32]));
        // The error would tell which character is wrong.
        hex::decode_to_slice(text, secret.0.as_mut_slice()).ok()?;
        Some(secret)
    }

    fn is_zero(&self) -> bool {
        self.0.iter().fold(0, |seen, byte| seen | byte) == 0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0.iter()).fold(0, |differ, (one, another)| differ | (one ^ another)) == 0
    }
}

impl Eq for Secret {}

/// A private key, clamped (RFC 7748, 5) and never zero. Wiped when dropped; prints nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Secret);

impl PrivateKey {
    /// `None` inside stands for the all-zero key, which takes a private key away.
    pub(crate) fn from_hex(text: &str) -> Option<Option<Self>> {
        let mut secret = Secret::from_hex(text)?;
        if secret.is_zero() {
            return Some(None);
        }
        secret.0[0] &= 0xf8;
        secret.0[31] = secret.0[31] & 0x7f | 0x40;
        Some(Some(Self(secret)))
    }

    /// The clamped bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A pre-shared key, never zero. Wiped when dropped; prints nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(Secret);

impl PresharedKey {
    /// `None` inside stands for the all-zero key, which takes a pre-shared key away.
    pub(crate) fn from_hex(text: &str) -> Option<Option<Self>> {
        let secret = Secret::from_hex(text)?;
        Some(if secret.is_zero() { None } else { Some(Self(secret)) })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// A public key. Prints as hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the bytes of a point.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The all-zero point agrees on the same secret with everybody: it is nobody's key.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        (bytes != [0; 32]).then_some(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Appends the digits without a copy of them elsewhere.
pub(crate) fn push_hex(text: &mut String, bytes: &[u8; 32]) {
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
}
