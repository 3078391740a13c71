// SPDX-License-Identifier: Apache-2.0
//! Logs on standard error: JSON, one line an event, for collectors; plain text for a person at a terminal.

use std::io::{IsTerminal, stderr};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Logs from now on what the filter lets through (`info`, `isthmus_kernel=debug,info`).
///
/// # Errors
/// The filter cannot be parsed.
pub fn start(filter: &str) -> anyhow::Result<()> {
    let parsed = EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?}"))?;
    let logs = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(stderr);
    if stderr().is_terminal() {
        logs.init()
    } else {
        logs.json().init()
    }
    Ok(())
}
