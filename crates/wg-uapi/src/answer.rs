// SPDX-License-Identifier: Apache-2.0
//! What is sent back.

use std::fmt::Write as _;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::key::push_hex;
use crate::{Endpoint, Errno, Interface, PublicKey};

/// More than the lines of an interface, of a peer and of a network can have, in bytes.
const INTERFACE_BYTES: usize = 256;
const PEER_BYTES: usize = 640;
const NETWORK_BYTES: usize = 64;
const NO_KEY: [u8; 32] = [0; 32];

/// What only the engine knows of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerFacts {
    /// Where the peer was last heard from; `None` for where it was said to be.
    pub endpoint: Option<Endpoint>,
    /// When the last handshake was done, since 1970-01-01 UTC; zero for never.
    pub last_handshake: Duration,
    /// Bytes received from the peer.
    pub rx_bytes: u64,
    /// Bytes sent to the peer.
    pub tx_bytes: u64,
}

impl Interface {
    /// The answer to `get`. It holds keys, and is wiped when dropped.
    pub fn answer_to_get(&self, mut facts: impl FnMut(&PublicKey) -> PeerFacts) -> Zeroizing<String> {
        let networks: usize = self.peers().values().map(|peer| peer.allowed_ips.len()).sum();
        let bytes = INTERFACE_BYTES + PEER_BYTES * self.peers().len() + NETWORK_BYTES * networks;
        // A text that grows leaves its old bytes behind.
        let mut text = Zeroizing::new(String::with_capacity(bytes));
        if let Some(key) = self.private_key() {
            key_line(&mut text, "private_key", key.as_bytes());
        }
        if self.listen_port() != 0 {
            line(&mut text, format_args!("listen_port={}", self.listen_port()));
        }
        if self.fwmark() != 0 {
            line(&mut text, format_args!("fwmark={}", self.fwmark()));
        }
        for (public_key, peer) in self.peers() {
            let facts = facts(public_key);
            key_line(&mut text, "public_key", public_key.as_bytes());
            let preshared_key = peer.preshared_key.as_ref().map_or(&NO_KEY, |key| key.as_bytes());
            key_line(&mut text, "preshared_key", preshared_key);
            line(&mut text, format_args!("protocol_version=1"));
            if let Some(endpoint) = facts.endpoint.as_ref().or(peer.endpoint.as_ref()) {
                line(&mut text, format_args!("endpoint={endpoint}"));
            }
            let handshake = facts.last_handshake;
            line(&mut text, format_args!("last_handshake_time_sec={}", handshake.as_secs()));
            line(&mut text, format_args!("last_handshake_time_nsec={}", handshake.subsec_nanos()));
            line(&mut text, format_args!("tx_bytes={}", facts.tx_bytes));
            line(&mut text, format_args!("rx_bytes={}", facts.rx_bytes));
            line(&mut text, format_args!("persistent_keepalive_interval={}", peer.keepalive_s));
            for network in &peer.allowed_ips {
                line(&mut text, format_args!("allowed_ip={network}"));
            }
        }
        text.push_str("errno=0\n\n");
        debug_assert!(text.len() <= bytes);
        text
    }
}

/// The answer to `set`. An error is a negative number, as wireguard-go has it and `wg(8)` reads it.
pub fn answer_to_set(result: Result<(), Errno>) -> String {
    match result {
        Ok(()) => "errno=0\n\n".to_owned(),
        Err(errno) => format!("errno=-{}\n\n", errno.number()),
    }
}

fn key_line(text: &mut String, name: &str, key: &[u8; 32]) {
    text.push_str(name);
    text.push('=');
    push_hex(text, key);
    text.push('\n');
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes everything");
}
