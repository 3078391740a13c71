// SPDX-License-Identifier: Apache-2.0
//! Curve25519 keys in the notation of `wg(8)`: base64 of 32 bytes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput, KeyInit, Update};
use boringtun::x25519;
use zeroize::{Zeroize, Zeroizing};

/// What sets lanes' keys apart from anything else that might be made of the node's.
const LANE_LABEL: &[u8] = b"isthmus lane";

/// Why a text is not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Not base64 of 32 bytes.
    #[error("not a WireGuard key: expected 44 characters of base64, as `wg genkey` prints them")]
    Malformed,
    /// The all-zero point agrees on the same secret with everybody.
    #[error("the all-zero key is not a WireGuard key")]
    Zero,
}

/// A private key. Wiped from memory when dropped; has no `Display` and prints nothing of itself.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// Takes 32 random bytes; the curve clamps them (RFC 7748, 5).
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let key = Self(Zeroizing::new(bytes));
        bytes.zeroize();
        key
    }

    /// Reads what [`Self::to_base64`] wrote.
    ///
    /// # Errors
    /// [`InvalidKey`], without a word about the text.
    pub fn from_base64(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(Self::from_bytes)
    }

    /// The notation of `wg genkey`.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_slice()))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.secret()).to_bytes())
    }

    /// The key of one of the node's lanes: the key itself for the first, and for each other one what keyed BLAKE2s makes of the lane's number.
    /// So one secret is kept, and with it all change; who knows a lane's key learns nothing of the node's or of another lane's.
    #[must_use]
    pub fn of_lane(&self, lane: u8) -> Self {
        if lane == 0 {
            return self.clone();
        }
        let mut mac = Blake2sMac256::new((&*self.0).into());
        mac.update(LANE_LABEL);
        mac.update(&[lane]);
        let mut key = Zeroizing::new([0; 32]);
        mac.finalize_into((&mut *key).into());
        Self(key)
    }

    /// The bytes, for a kernel that encrypts itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(*self.0)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A pre-shared key. Wiped from memory when dropped; prints nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(Zeroizing<[u8; 32]>);

impl PresharedKey {
    /// Takes 32 random bytes.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let key = Self(Zeroizing::new(bytes));
        bytes.zeroize();
        key
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the bytes of a point.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn point(self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.0)
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let bytes = decode(text)?;
        if bytes == [0; 32] { Err(InvalidKey::Zero) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

fn decode(text: &str) -> Result<[u8; 32], InvalidKey> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).map_err(|_| InvalidKey::Malformed)?);
    bytes.as_slice().try_into().map_err(|_| InvalidKey::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_and_print_as_wg_prints_them() {
        // RFC 7748, 6.1: Alice's keys.
        let private = PrivateKey::from_base64("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        assert_eq!(private.public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        assert_eq!(private.to_base64().as_str(), "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=");
    }

    #[test]
    fn lanes_have_keys_of_their_own_which_are_the_same_each_time_and_the_first_has_the_nodes() {
        let node = PrivateKey::from_bytes([7; 32]);
        let publics =
            |node: &PrivateKey| (0..=255).map(|lane| node.of_lane(lane).public()).collect::<Vec<_>>();
        let lanes = publics(&node);
        assert_eq!(lanes[0], node.public());
        assert_eq!(lanes, publics(&node));
        let others = publics(&PrivateKey::from_bytes([8; 32]));
        let all: std::collections::BTreeSet<_> = lanes.iter().chain(&others).collect();
        assert_eq!(all.len(), 512, "no two are the same");
        // Another way to make them would leave every peer with keys that nobody has, in the midst of an upgrade. The value is that of
        // `hashlib.blake2s(b"isthmus lane\1", key=b"\7" * 32)` of Python.
        assert_eq!(
            hex(node.of_lane(1).as_bytes()),
            "2a080e846f9b387661febd3cd16e21a88fd6251d7962fc67690156e2ac47121d"
        );
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_private_key_never_shows_in_a_debug_print() {
        let private = PrivateKey::from_bytes([7; 32]);
        assert_eq!(format!("{private:?}"), "PrivateKey(..)");
    }

    #[test]
    fn short_long_and_zero_keys_are_refused() {
        for wrong in ["", "AAAA", "not base64", &STANDARD.encode([1; 33])] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(InvalidKey::Malformed), "{wrong}");
        }
        assert_eq!(STANDARD.encode([0; 32]).parse::<PublicKey>(), Err(InvalidKey::Zero));
    }
}
