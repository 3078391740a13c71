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
    /// Look after pods' addresses.
    #[command(arg_required_else_help = true)]
    Ipam {
        #[command(subcommand)]
        command: IpamCommand,
    },
    /// Call CNI plugins, in any language, as a container runtime does. Needs no cluster.
    ///
    /// A drop-in for the Go project's cnitool, with the same variables and arguments; a link named `cnitool` to this program is one.
    #[command(arg_required_else_help = true)]
    Cni(Cni),
    /// Show the version of this program.
    Version,
    /// Print the completion script of a shell, such as `source <(isthmus completion bash)`.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum IpamCommand {
    /// Compare pods and blocks of the API with each node's journal and kernel.
    ///
    /// Finds addresses that leaked, are held twice, are not in the journal or outside of the node's blocks, and routes without owner.
    /// Ends with 0 if all agrees, 1 if something does not, 2 if nothing can be told. Runs a program in each agent's pod, as kubectl
    /// exec does.
    Check {
        /// Give back what is provably leaked: the pod is gone from the API, and its link from the kernel.
        #[arg(long)]
        fix: bool,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Cni {
    #[command(subcommand)]
    pub(crate) command: CniCommand,
    /// Directory of network configurations.
    #[arg(long, global = true, env = "NETCONFPATH", default_value = "/etc/cni/net.d", value_name = "DIR")]
    pub(crate) conf_dir: PathBuf,
    /// Directories of plugins, separated by colons.
    #[arg(long, global = true, env = "CNI_PATH", default_value = "/opt/cni/bin", value_name = "DIRS")]
    pub(crate) path: std::ffi::OsString,
    /// Arguments for the plugins, such as `IgnoreUnknown=1;IP=10.1.0.7`.
    #[arg(long, global = true, env = "CNI_ARGS", default_value = "", value_name = "ARGS")]
    pub(crate) args: String,
    /// Values of capabilities as a JSON object, such as `{"mac":"02:00:00:00:00:01"}`.
    #[arg(long, global = true, env = "CAP_ARGS", default_value = "", value_name = "JSON")]
    pub(crate) capability_args: String,
    /// Name of the interface in the container.
    #[arg(long, global = true, env = "CNI_IFNAME", default_value = "eth0", value_name = "NAME")]
    pub(crate) ifname: String,
    /// Container ID. Default: derived from the namespace's path.
    #[arg(long, global = true, env = "CNI_CONTAINERID", value_name = "ID")]
    pub(crate) container_id: Option<String>,
    /// Where results of ADD are kept for CHECK and DEL.
    #[arg(long, global = true, default_value = "/var/lib/cni", value_name = "DIR")]
    pub(crate) cache_dir: PathBuf,
    /// Seconds that one call of a plugin may take; then it is killed.
    #[arg(long = "timeout", global = true, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) timeout_s: u64,
}

#[derive(Subcommand, Debug)]
pub(crate) enum CniCommand {
    /// Add a network namespace to a network, and print the result.
    Add(CniNetwork),
    /// See whether all is as ADD left it.
    Check(CniNetwork),
    /// Take a network namespace out of a network.
    Del(CniNetwork),
    /// Take away what belongs to no attachment that is to be kept: everything, unless --keep says otherwise.
    Gc {
        /// Name of the network.
        network: String,
        /// Ignored; cnitool takes it.
        #[arg(hide = true)]
        netns: Option<String>,
        /// An attachment that stays. Can be given more than once.
        #[arg(long, value_name = "CONTAINER/INTERFACE")]
        keep: Vec<String>,
    },
    /// Ask whether ADD can be served.
    Status {
        /// Name of the network.
        network: String,
        /// Ignored; cnitool takes it.
        #[arg(hide = true)]
        netns: Option<String>,
    },
    /// Print the versions of the specification that a plugin speaks.
    Version {
        /// Its type, such as `bridge`.
        plugin: String,
    },
    /// Try what the specification asks of a plugin on one, in network namespaces of the check's own. Needs root.
    ///
    /// Ends with 0 if all is as it shall be, 1 if something is not. Give a configuration that the plugin can work with, and
    /// directories for what it keeps that are made for the check.
    Conformance {
        /// File with the plugin's configuration: a .conf, or a .conflist, whose first plugin is tried.
        config: PathBuf,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Write a crate with a CNI plugin that works, as a start for one's own: code, tests, configurations and a README.
    New {
        /// Name of the plugin: its type, its program and its crate.
        name: String,
        /// Directory to write to, which is made or is empty. Default: one of the plugin's name, here.
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Where the crate finds isthmus-cni-kit: a directory, the URL of a Git repository, or a version requirement.
        #[arg(long, value_name = "PATH|URL|VERSION")]
        kit: Option<String>,
    },
    /// Print what would be sent to each plugin. Nothing runs.
    Explain {
        #[command(flatten)]
        of: CniNetwork,
        /// Which call: ADD, DEL, CHECK, STATUS or GC.
        #[arg(long, default_value = "ADD", value_name = "CALL")]
        call: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CniNetwork {
    /// Name of the network.
    pub(crate) network: String,
    /// Path of the network namespace, such as /run/netns/test.
    pub(crate) netns: String,
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
