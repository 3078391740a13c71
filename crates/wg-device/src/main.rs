// SPDX-License-Identifier: Apache-2.0
//! `isthmus-wg`: one WireGuard device in userspace, configured by `wg(8)`.

use std::process::ExitCode;

use isthmus_packet_io::Wiping;

/// `boringtun` and `ring` keep keys of sessions, and a pre-shared key, that they do not wipe.
#[global_allocator]
static ALLOCATOR: Wiping = Wiping::new();

fn main() -> ExitCode {
    isthmus_wg_device::program::main()
}
