// SPDX-License-Identifier: Apache-2.0
//! `isthmus-wg`: one WireGuard device in userspace, configured by `wg(8)`.

use std::process::ExitCode;

fn main() -> ExitCode {
    isthmus_wg_device::program::main()
}
