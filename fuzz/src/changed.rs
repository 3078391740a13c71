// SPDX-License-Identifier: Apache-2.0
//! WireGuard's datagrams, as somebody on the way changes them.

use crate::input::Input;

/// A genuine datagram with one byte changed or without its end. The last 16 bytes of a handshake message are checked under
/// load only (WireGuard paper, 5.4.4): they stay.
pub(crate) fn changed(genuine: &[u8], input: &mut Input<'_>) -> Option<Vec<u8>> {
    let checked = if matches!(genuine.first()?, 1 | 2) { genuine.len() - 16 } else { genuine.len() };
    let at = usize::from(input.u16()) % checked;
    let change = input.u8();
    let mut datagram = genuine.to_vec();
    if change == 0 {
        datagram.truncate(at);
    } else {
        datagram[at] ^= change;
    }
    Some(datagram)
}
