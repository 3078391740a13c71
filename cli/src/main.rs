// SPDX-License-Identifier: Apache-2.0
//! `isthmus`, also `kubectl isthmus`: invites peers, shows how the network is.

mod args;
mod cni;
mod connect;
mod failure;
mod ipam;
mod node;
mod out;
mod peer;
mod report;
mod scaffold;
mod status;
mod table;
mod yaml;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

use args::{Cli, Command, IpamCommand, NodeCommand, PeerCommand};
use out::{put, say};

/// Everything is as it shall be.
const OK: u8 = 0;
/// Something is not ready, or a command did not reach its aim.
const NOT_READY: u8 = 1;
/// Nothing can be told: no API server, no permission, not installed.
const CANNOT_TELL: u8 = 2;

fn main() -> ExitCode {
    let cli = parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("isthmus: no event loop can be made: {error}");
            return ExitCode::from(CANNOT_TELL);
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("isthmus: {error:#}");
            ExitCode::from(CANNOT_TELL)
        }
    }
}

/// Parses the command line; as a kubectl plugin the usage lines name `kubectl isthmus`.
fn parse() -> Cli {
    if called_as("cnitool") {
        let given = std::env::args_os().skip(1);
        let given = ["cnitool".into(), "cni".into()].into_iter().chain(given);
        return Cli::parse_from(given);
    }
    let name = if called_as("kubectl-isthmus") { "kubectl isthmus" } else { "isthmus" };
    let matches = Cli::command().bin_name(name).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn called_as(wanted: &str) -> bool {
    let own = std::env::args_os().next().map(std::path::PathBuf::from);
    own.as_deref().and_then(|path| path.file_name()).is_some_and(|name| name == wanted)
}

async fn run(cli: Cli) -> anyhow::Result<u8> {
    match cli.command {
        Command::Version => say!("isthmus {}", env!("CARGO_PKG_VERSION")),
        Command::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "isthmus", &mut text);
            put!("{}", String::from_utf8_lossy(&text));
        }
        Command::Cni(cni) => {
            return cni::run(&cni).or_else(|error| {
                eprintln!("isthmus: {error:#}");
                Ok(NOT_READY)
            });
        }
        Command::Status { output } => {
            let (client, context) = connect::client(&cli.target).await?;
            return status::run(client, context, output).await;
        }
        Command::Ipam { command: IpamCommand::Check { fix, output } } => {
            let (client, _) = connect::client(&cli.target).await?;
            return ipam::run(client, output, fix).await;
        }
        Command::Node { command: NodeCommand::RotateKey { node } } => {
            let (client, _) = connect::client(&cli.target).await?;
            return node::rotate_key(client, &node).await;
        }
        Command::Peer { command } => {
            let (client, _) = connect::client(&cli.target).await?;
            match command {
                PeerCommand::Invite(invite) => return peer::invite(client, &invite).await,
                PeerCommand::List { output } => peer::list(client, output).await?,
                PeerCommand::Delete { name } => peer::delete(client, &name).await?,
            }
        }
    }
    Ok(OK)
}
