// SPDX-License-Identifier: Apache-2.0
//! The targets: `run` takes any bytes, `seeds` gives inputs to begin with.

pub(crate) mod certificates;
pub(crate) mod cni_call;
pub(crate) mod cni_config;
pub(crate) mod cni_kit;
pub(crate) mod cni_plugin_files;
pub(crate) mod cni_wire;
mod compiled;
pub(crate) mod corefile;
pub(crate) mod dataplane_lines;
pub(crate) mod dhcp_messages;
pub(crate) mod dhcp_records;
pub(crate) mod invitation;
pub(crate) mod journal;
pub(crate) mod ledger;
pub(crate) mod memory;
pub(crate) mod mesh_frames;
pub(crate) mod mesh_records;
pub(crate) mod mesh_session;
pub(crate) mod names;
mod object_script;
pub(crate) mod objects;
pub(crate) mod packets;
pub(crate) mod probe_datagrams;
pub(crate) mod probe_path;
pub(crate) mod root_key;
mod tunnels;
pub(crate) mod wg_datagrams;
pub(crate) mod wg_packets;
pub(crate) mod wg_uapi;

/// A folder for a file that is read again at once: in memory, where the machine has such a place.
fn folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a place for files")
}
