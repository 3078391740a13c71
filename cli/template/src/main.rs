// SPDX-License-Identifier: Apache-2.0
//! A CNI plugin: joins a container to the host with a veth pair, or sets up the interface that a plugin before it made.

mod ip;
mod plugin;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use isthmus_cni_kit::runtime::exec::CniPath;

fn main() -> ExitCode {
    isthmus_cni_kit::plugin::main(&plugin::Veth { ip: &ip::run, exec: &CniPath::default() })
}
