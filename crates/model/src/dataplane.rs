// SPDX-License-Identifier: Apache-2.0
//! What the agent tells the data plane process, and what that reports.
//!
//! Frames on the Unix socket are one JSON value a line. The agent sends [`Request`]s; the process answers each
//! `Configure` with a `State` and sends further `State`s whenever something changed (at most every 100 ms).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{LinkName, PeerName};

/// A WireGuard public key (Curve25519), base64 of 32 bytes as `wg(8)` prints it.
pub type PublicKey = String;

/// The place of a node's key. A device has one key: while the key rotates there are two devices for each tunnel, told apart
/// by the slots of their keys, and the next key has the slot that the present one has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeySlot {
    /// Of a node's first key.
    #[default]
    First,
    /// Of the key after that.
    Second,
}

impl KeySlot {
    /// The slot that a key in this one leaves free.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// For serde, which calls it with a reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_first(&self) -> bool {
        *self == Self::First
    }
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Run exactly this from now on. Tunnels that stay keep their sessions.
    Configure(DataplaneConfig),
    /// Make a new private key now; the old one goes once every peer that is reached with it is reached with the new one.
    RotateKey,
}

/// From the data plane process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// What runs.
    State(DataplaneState),
    /// The last request could not be carried out in full; what could, was.
    Failed(String),
}

/// Everything the data plane process shall do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataplaneConfig {
    /// Whether the WireGuard socket shall be open at all (gateway nodes only).
    pub gateway: bool,
    /// UDP port of the first lane; [`crate::ownership::lane_port`] says those of the others.
    pub listen_port: u16,
    /// The generation of the key that shall be in use: a key of an older one is rotated.
    #[serde(default)]
    pub key_generation: u64,
    /// Tunnels by device name: one for each remote gateway and key of ours, and for each pair of lanes.
    pub tunnels: BTreeMap<LinkName, Tunnel>,
    /// Probes to run, by a name that the agent chooses.
    pub probes: BTreeMap<String, Probe>,
    /// Addresses on which the responder answers probes, port [`crate::ownership::PROBE_PORT`] (node and mesh addresses).
    pub respond_on: BTreeSet<IpAddr>,
}

/// A tunnel to one remote gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The peering that it belongs to; the responder names it while the tunnel's probe is up.
    pub peer: PeerName,
    /// The remote gateway's key.
    pub peer_key: PublicKey,
    /// Where it was announced to listen; an authenticated packet from elsewhere moves it (roaming).
    pub endpoint: Option<SocketAddr>,
    /// Inner source addresses that may come out, inner destinations that may go in.
    pub allowed: BTreeSet<IpNet>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive_s: u16,
    /// Which of our keys the tunnel has.
    #[serde(default, skip_serializing_if = "KeySlot::is_first")]
    pub key_slot: KeySlot,
    /// Which of our lanes carries it. The lane's key follows from the node's.
    #[serde(default, skip_serializing_if = "is_first_lane")]
    pub lane: u8,
}

/// For serde, which calls it with a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_first_lane(lane: &u8) -> bool {
    *lane == 0
}

/// A probe: a small datagram that the responder at the other end sends back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Where to.
    pub target: SocketAddr,
    /// Source address.
    pub source: Option<IpAddr>,
    /// Bound to this device, so that it measures this path and no other.
    pub device: Option<LinkName>,
    /// Milliseconds between probes.
    pub interval_ms: u32,
    /// The path is down after so many unanswered in a row.
    pub down_after: u8,
    /// Also search the path MTU, between 1280 and this many bytes of inner packet.
    pub mtu_max: Option<u16>,
}

/// What runs, as measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataplaneState {
    /// Our public key.
    pub public_key: Option<PublicKey>,
    /// Its slot.
    #[serde(default, skip_serializing_if = "KeySlot::is_first")]
    pub key_slot: KeySlot,
    /// The key before it, while peers may still use that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_public_key: Option<PublicKey>,
    /// The key after it, while tunnels with that come up beside the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_public_key: Option<PublicKey>,
    /// Keys of each lane, of which the first has those above; none from a process that does not know of lanes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lanes: Vec<LaneKeys>,
    /// Who encrypts.
    #[serde(default)]
    pub mode: WireGuardMode,
    /// Generation of that key.
    #[serde(default)]
    pub key_generation: u64,
    /// What of the kernel's features is used to move many packets at once, by name; nothing while there is no tunnel.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub offload: BTreeSet<String>,
    /// Tunnels by device name.
    pub tunnels: BTreeMap<LinkName, TunnelState>,
    /// Probes by name.
    pub probes: BTreeMap<String, ProbeState>,
}

/// The public keys of one lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneKeys {
    /// The present one.
    pub public_key: PublicKey,
    /// The key before it, while peers may still use that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_public_key: Option<PublicKey>,
    /// The key after it, while tunnels with that come up beside the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_public_key: Option<PublicKey>,
}

/// Who encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WireGuardMode {
    /// The data plane process, all tunnels of a lane over one port.
    #[default]
    Userspace,
    /// The kernel, each device with a port of its own.
    Kernel,
}

impl WireGuardMode {
    /// As it stands in a status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Userspace => "Userspace",
            Self::Kernel => "Kernel",
        }
    }
}

/// A tunnel as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelState {
    /// Where packets go now.
    pub endpoint: Option<SocketAddr>,
    /// Unix time of the last completed handshake, seconds.
    pub last_handshake_s: Option<u64>,
    /// Bytes of inner packets received; in the kernel with what WireGuard adds to them.
    pub received_bytes: u64,
    /// Bytes of inner packets sent; in the kernel with what WireGuard adds to them.
    pub sent_bytes: u64,
    /// UDP port of this device alone, where each has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
}

/// A probe as measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeState {
    /// Answers come.
    pub up: bool,
    /// Round trip, microseconds, smoothed.
    pub rtt_us: Option<u32>,
    /// Lost of the last 100, per cent.
    pub loss_percent: u8,
    /// Largest inner packet that came back, bytes.
    pub path_mtu: Option<u16>,
    /// What the responder said of itself: names of the peers (ClusterPeerings) that it reaches now.
    pub reaches: BTreeSet<String>,
    /// Datagrams of this path leave one by one: segmented sends (UDP_SEGMENT) were lost on it, single ones not.
    #[serde(default)]
    pub unsegmented: bool,
}
