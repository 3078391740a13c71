// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use isthmus_model::ids::{NodeName, PeerName};

/// Joins Kubernetes clusters into one encrypted network.
#[derive(Parser, Debug)]
#[command(name = "isthmus", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster is spoken to.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// Context of the kubeconfig to use instead of the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Kubeconfig file to use instead of $KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Join another cluster, or part from it.
    #[command(arg_required_else_help = true)]
    Peer {
        #[command(subcommand)]
        command: PeerCommand,
    },
    /// Ask something of one node.
    #[command(arg_required_else_help = true)]
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Show how the network of this cluster is: problems first, then nodes, pools, peerings, tunnels, services.
    ///
    /// Ends with 0 if all is ready, 1 if something is not, 2 if nothing can be told.
    Status {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Show the version of this program.
    Version,
    /// Print the completion script of a shell, such as `source <(isthmus completion bash)`.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Give the node a new WireGuard key. Its tunnels move to it without losing a packet; the old key is then forgotten.
    RotateKey {
        /// Name of the node.
        node: NodeName,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum PeerCommand {
    /// Invite another cluster: prints the manifest that is to be applied there.
    ///
    /// The manifest holds a single-use token: treat it as a secret, and apply it before it expires.
    /// What the invited cluster may announce here is what --allow-cidr and --allow-namespace grant; nothing by default.
    ///
    /// Example: isthmus peer invite west --allow-cidr 10.2.0.0/16 --allow-namespace shop | kubectl --context west apply -f -
    #[command(verbatim_doc_comment)]
    Invite(Invite),
    /// List the peerings and the open invitations.
    List {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Part from a cluster: removes the peering and the invitation of this name. Its services and routes go with it.
    Delete {
        /// Name of the peering here.
        name: PeerName,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Invite {
    /// Name of the peering in this cluster, such as the other cluster's name.
    pub(crate) name: PeerName,
    /// How long the token can be redeemed, such as 15m or 1h30m.
    #[arg(long, default_value = "15m")]
    pub(crate) ttl: String,
    /// Where the invited cluster reaches this one's operator. Default: the addresses of the nodes with the NodePort.
    #[arg(long = "endpoint", value_name = "HOST:PORT")]
    pub(crate) endpoints: Vec<String>,
    /// Pod CIDR that the invited cluster may announce here. Can be given more than once.
    #[arg(long = "allow-cidr", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) allow_cidrs: Vec<String>,
    /// Namespace whose services may be shared. Can be given more than once.
    #[arg(long = "allow-namespace", value_name = "NAMESPACE", value_delimiter = ',')]
    pub(crate) allow_namespaces: Vec<String>,
    /// Replace an invitation of this name that expired or was redeemed.
    #[arg(long)]
    pub(crate) renew: bool,
    /// How to print the manifest.
    #[arg(short, long, value_enum, default_value_t = Manifest::Yaml)]
    pub(crate) output: Manifest,
}

/// Formats of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// Formats of manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Manifest {
    /// Several YAML documents.
    Yaml,
    /// One JSON List.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_peering_name_that_kubernetes_would_refuse_is_refused_with_the_rule() {
        let error = Cli::try_parse_from(["isthmus", "peer", "invite", "West_1"]).unwrap_err().to_string();

        assert!(error.contains("lower-case letters"), "{error}");
    }

    #[test]
    fn grants_are_given_one_by_one_or_joined_by_commas() {
        let line = [
            "isthmus",
            "peer",
            "invite",
            "west",
            "--allow-cidr",
            "10.2.0.0/16,fd00:10:2::/56",
            "--allow-cidr",
            "10.3.0.0/16",
        ];
        let Command::Peer { command: PeerCommand::Invite(invite) } =
            Cli::try_parse_from(line).unwrap().command
        else {
            panic!("an invitation")
        };

        assert_eq!(invite.allow_cidrs, ["10.2.0.0/16", "fd00:10:2::/56", "10.3.0.0/16"]);
        assert_eq!(invite.ttl, "15m");
    }

    #[test]
    fn the_context_may_stand_at_the_end() {
        let cli = Cli::try_parse_from(["isthmus", "status", "-o", "json", "--context", "east"]).unwrap();

        assert_eq!(cli.target.context.as_deref(), Some("east"));
    }
}
