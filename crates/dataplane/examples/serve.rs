// SPDX-License-Identifier: Apache-2.0
//! The data plane process alone, as the namespace tests start it: `serve SOCKET STATE_DIR`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(socket), Some(state_dir)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve SOCKET STATE_DIR".into());
    };
    let level = if std::env::var_os("DATAPLANE_TRACE").is_some() {
        tracing::Level::TRACE
    } else {
        tracing::Level::DEBUG
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    Ok(isthmus_dataplane::run(&isthmus_dataplane::Options { socket, state_dir })?)
}
