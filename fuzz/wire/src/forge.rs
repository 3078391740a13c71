// SPDX-License-Identifier: Apache-2.0
//! What anybody can make who knows a public key.

use blake2::digest::consts::U16;
use blake2::digest::{Digest, Mac};
use blake2::{Blake2s256, Blake2sMac};
use isthmus_wg::PublicKey;

use crate::mutate::Generator;

/// A message of this kind and length with nothing genuine in it but the code over it (WireGuard paper, 5.4.4: mac1).
pub fn message(kind: u8, length: usize, receiver: PublicKey, generator: &mut Generator) -> Vec<u8> {
    let mut message: Vec<u8> = (0..length).map(|_| generator.number() as u8).collect();
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    let at = length - 32;
    let label = [b"mac1----".as_slice(), receiver.as_bytes()].concat();
    let mac = Blake2sMac::<U16>::new_from_slice(&Blake2s256::digest(label)).expect("a key of 32 bytes");
    let code = mac.chain_update(&message[..at]).finalize().into_bytes();
    message[at..at + 16].copy_from_slice(&code);
    message
}
