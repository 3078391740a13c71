// SPDX-License-Identifier: Apache-2.0
//! Running another plugin on the agent's behalf: plugins are on the node, where the agent's container need not see them all.

use std::env;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use crate::plugin::Outcome;
use crate::wire::{MAX_FRAME_BYTES, Request};

/// Runs a plugin of `CNI_PATH` with the same variables but the command, and the same standard input (CNI 1.1.0, section 4).
///
/// # Errors
/// There is no such plugin, or it cannot be run: why, in words.
pub(crate) fn run(request: &Request, plugin: &str, command: &str) -> Result<Outcome, String> {
    let path = find(request, plugin)?;
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let variables = request.env.iter().map(|(name, value)| (name, value));
    let mut child = Command::new(&path)
        .envs(variables)
        .env("CNI_COMMAND", command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let config = request.stdin.clone();
    // A plugin that answers before it has read all must not be waited for here; one that reads nothing has its reasons.
    let writer = thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&config)));
    let mut stdout = Vec::new();
    // What is longer than a frame would break the agent's connection: it is cut, and no JSON then.
    let limit = MAX_FRAME_BYTES as u64 / 2;
    let printed = child.stdout.take().map(|printed| printed.take(limit).read_to_end(&mut stdout));
    printed.transpose().map_err(failed)?;
    let status = child.wait().map_err(failed)?;
    let _ = writer.join();
    Ok(Outcome { exit_code: u8::from(!status.success()), stdout })
}

fn find(request: &Request, plugin: &str) -> Result<PathBuf, String> {
    if plugin.is_empty() || plugin.starts_with('.') || plugin.contains('/') {
        return Err(format!("{plugin:?} is no name of a plugin"));
    }
    let paths = request.var("CNI_PATH").unwrap_or_default();
    // A relative one would be another for each directory that a runtime happens to run in.
    let directories = env::split_paths(paths).filter(|directory| directory.is_absolute());
    let mut files = directories.map(|directory| directory.join(plugin));
    files.find(|file| file.is_file()).ok_or_else(|| format!("no plugin {plugin} in CNI_PATH {paths:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_directories_of_cni_path_are_searched() {
        let found = |paths: &str| {
            let env = vec![("CNI_PATH".to_owned(), paths.to_owned())];
            find(&Request { env, stdin: Vec::new() }, "Cargo.toml")
        };
        // Tests run in the directory of the package.
        assert!(PathBuf::from("Cargo.toml").is_file());
        for relative in ["", ".", "../cni", ":."] {
            assert!(found(relative).is_err(), "{relative:?}");
        }
        let absolute = env!("CARGO_MANIFEST_DIR");
        assert_eq!(found(&format!(".:{absolute}")).unwrap(), PathBuf::from(absolute).join("Cargo.toml"));
    }
}
