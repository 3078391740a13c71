// SPDX-License-Identifier: Apache-2.0
//! `isthmus-cni`: the CNI plugin, and the plugin for addresses where it is called as `isthmus-ipam`. All work is done by the agent behind the Unix socket.

use std::env;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::exit;

use isthmus_cni::plugin;
use isthmus_cni::wire::{MAX_FRAME_BYTES, ROLE, ROLE_IPAM, Request};

const SOCKET: &str = "/run/isthmus/cni.sock";

fn main() {
    let mut stdin = Vec::new();
    // Half a frame is more than any configuration needs; without a limit a runtime's mistake would fill the memory.
    if let Err(error) = io::stdin().take(MAX_FRAME_BYTES as u64 / 2).read_to_end(&mut stdin) {
        eprintln!("isthmus-cni: standard input: {error}");
    }
    let variables = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut variables: Vec<_> = variables.filter(|(name, _)| name.starts_with("CNI_")).collect();
    let called = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if called.file_name().is_some_and(|name| name == "isthmus-ipam") {
        variables.push((ROLE.to_owned(), ROLE_IPAM.to_owned()));
    }
    let request = Request { env: variables, stdin };
    let socket = env::var_os("ISTHMUS_CNI_SOCKET").map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    let print = |stdout: &[u8]| io::stdout().write_all(stdout).and_then(|()| io::stdout().flush());
    let (outcome, printed) = plugin::run_and(&request, &socket, print);
    // Not by way of `main`'s end, which would give memory back piece by piece.
    exit(if printed.is_ok() { outcome.exit_code.into() } else { 1 })
}
