// SPDX-License-Identifier: Apache-2.0
//! Fuzz targets: one function for each place that takes bytes from a peer, a pod, a file or a socket.
//!
//! A target takes any bytes at all, never panics on what it is given, and asserts what has to hold beyond that. The corpus in
//! `corpus/<target>` holds an input a file; `tests/replay.rs` runs all of them and mutations of them, `guided/` looks for more.
//! What was found stays in the corpus under a name that says what it was. The target `wg-wire` is a package of its own, `wire/`,
//! where time is virtual.

mod changed;
pub mod corpus;
pub mod fixture;
mod input;
pub mod mutate;
mod private;
mod targets;

// The module that reads a CNI call names it so.
use isthmus_node_agent::addresses;

/// What runs one input. It panics if something does not hold.
pub type Run = fn(&[u8]);
/// An input to begin with: its file name, and its bytes.
pub type Seed = (&'static str, Vec<u8>);
/// What gives the inputs to begin with.
pub type Seeds = fn() -> Vec<Seed>;

/// All targets by name.
pub const TARGETS: &[(&str, Run)] = &[
    ("agent-journal", targets::journal::run),
    ("agent-ledger", targets::ledger::run),
    ("agent-memory", targets::memory::run),
    ("cni-call", targets::cni_call::run),
    ("cni-config", targets::cni_config::run),
    ("cni-kit", targets::cni_kit::run),
    ("cni-plugin-files", targets::cni_plugin_files::run),
    ("cni-wire", targets::cni_wire::run),
    ("corefile", targets::corefile::run),
    ("dataplane-lines", targets::dataplane_lines::run),
    ("dhcp-messages", targets::dhcp_messages::run),
    ("dhcp-records", targets::dhcp_records::run),
    ("mesh-certificates", targets::certificates::run),
    ("mesh-frames", targets::mesh_frames::run),
    ("mesh-invitation", targets::invitation::run),
    ("mesh-records", targets::mesh_records::run),
    ("mesh-session", targets::mesh_session::run),
    ("names", targets::names::run),
    ("objects", targets::objects::run),
    ("packets", targets::packets::run),
    ("probe-datagrams", targets::probe_datagrams::run),
    ("probe-path", targets::probe_path::run),
    ("root-key", targets::root_key::run),
    ("wg-datagrams", targets::wg_datagrams::run),
    ("wg-packets", targets::wg_packets::run),
    ("wg-uapi", targets::wg_uapi::run),
];

/// The inputs to begin with of each target, in the order of [`TARGETS`]. `cargo run -p isthmus-fuzz --example corpus` writes them.
pub const SEEDS: &[(&str, Seeds)] = &[
    ("agent-journal", targets::journal::seeds),
    ("agent-ledger", targets::ledger::seeds),
    ("agent-memory", targets::memory::seeds),
    ("cni-call", targets::cni_call::seeds),
    ("cni-config", targets::cni_config::seeds),
    ("cni-kit", targets::cni_kit::seeds),
    ("cni-plugin-files", targets::cni_plugin_files::seeds),
    ("cni-wire", targets::cni_wire::seeds),
    ("corefile", targets::corefile::seeds),
    ("dataplane-lines", targets::dataplane_lines::seeds),
    ("dhcp-messages", targets::dhcp_messages::seeds),
    ("dhcp-records", targets::dhcp_records::seeds),
    ("mesh-certificates", targets::certificates::seeds),
    ("mesh-frames", targets::mesh_frames::seeds),
    ("mesh-invitation", targets::invitation::seeds),
    ("mesh-records", targets::mesh_records::seeds),
    ("mesh-session", targets::mesh_session::seeds),
    ("names", targets::names::seeds),
    ("objects", targets::objects::seeds),
    ("packets", targets::packets::seeds),
    ("probe-datagrams", targets::probe_datagrams::seeds),
    ("probe-path", targets::probe_path::seeds),
    ("root-key", targets::root_key::seeds),
    ("wg-datagrams", targets::wg_datagrams::seeds),
    ("wg-packets", targets::wg_packets::seeds),
    ("wg-uapi", targets::wg_uapi::seeds),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Run> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run)
}
