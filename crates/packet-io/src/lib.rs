// SPDX-License-Identifier: Apache-2.0
//! System calls of the packet path: TUN devices, UDP in batches, probe sockets, descriptors passed between processes.
//!
//! The only packet-path crate with `unsafe`; every block states why it is sound. Nothing here knows WireGuard or Isthmus.

mod address;
mod descriptor;
mod feature;
mod offload;
mod probe;
mod record;
mod sources;
mod tun;
mod udp;
mod wiping;

pub use descriptor::{bequeath, inherited, receive_byte, receive_record, send_byte, send_record};
pub use feature::{Feature, Features};
pub use offload::{Outgoing, Run};
pub use probe::{Arrival, ProbeSocket, ProbeSocketOptions};
pub use record::{accept_record, connect_record, is_listened_at, listen_record, record_pair};
pub use tun::{Lifetime, READ_BYTES, Tun};
pub use udp::{Arrived, ReceiveBatch, SLOT_BYTES, SendBatch, Sent, UdpPort};
pub use wiping::Wiping;
