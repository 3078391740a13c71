// SPDX-License-Identifier: Apache-2.0
//! The data plane process alone, as the namespace tests start it: `serve SOCKET STATE_DIR [auto|kernel|userspace [LANES]]`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(state_dir)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve SOCKET STATE_DIR [auto|kernel|userspace [LANES]]".into());
    };
    let level = if std::env::var_os("DATAPLANE_TRACE").is_some() {
        tracing::Level::TRACE
    } else {
        tracing::Level::DEBUG
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    let wireguard =
        arguments.next().map_or(Ok(isthmus_dataplane::WireGuardChoice::Userspace), |w| w.parse())?;
    let lanes =
        arguments.next().map_or(Ok(isthmus_dataplane::LaneChoice::Exactly(1)), |lanes| lanes.parse())?;
    let (socket, state_dir) = (PathBuf::from(socket), PathBuf::from(state_dir));
    Ok(isthmus_dataplane::run(&isthmus_dataplane::Options { socket, state_dir, wireguard, lanes })?)
}
