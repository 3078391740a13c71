// SPDX-License-Identifier: Apache-2.0
//! How much a peer may say. Beyond these a record, or what is too much of them, is dropped and named.

/// CIDRs of a peer.
pub const CIDRS: usize = 64;
/// Gateways of a peer.
pub const GATEWAYS: usize = 64;
/// Endpoints and mesh addresses of one gateway, each.
pub const GATEWAY_ADDRESSES: usize = 8;
/// Tunnels of one gateway that have a port of their own.
pub const GATEWAY_PORTS: usize = 256;
/// Lanes of one gateway.
pub const LANES: usize = isthmus_model::ownership::LANES_MAX as usize;
/// Exported Services of a peer.
pub const EXPORTS: usize = 2_000;
/// Endpoints of a peer, over all Services.
pub const ENDPOINTS: usize = 10_000;
/// Endpoints of one Service of a peer.
pub const ENDPOINTS_PER_NAME: usize = 500;
/// Ports of a Service or of an EndpointSlice.
pub const PORTS: usize = 100;
/// Labels and annotations of an export, each.
pub const METADATA_ENTRIES: usize = 64;
/// Annotations of an export, in bytes of keys and values.
pub const ANNOTATION_BYTES: usize = 16 * 1024;
/// Records that are held of one peer; a peer that sends more is disconnected.
pub const RECORDS: usize = 16_384;
/// Memory that the records of one peer may take, in bytes as sent; a peer that sends more is disconnected.
pub const RECORD_BYTES: usize = 64 * 1024 * 1024;
