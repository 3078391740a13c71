// SPDX-License-Identifier: Apache-2.0
//! One program for all plugins: the name that it is called by says which.

use std::process::ExitCode;

fn main() -> ExitCode {
    isthmus_plugins::main(std::env::args_os().collect())
}
