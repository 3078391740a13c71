// SPDX-License-Identifier: Apache-2.0
//! `isthmus-agent`: the node agent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use isthmus_kernel::PodLinks;
use isthmus_model::ids::NodeName;
use isthmus_node_agent::addresses::{AttachmentKey, inspect};
use isthmus_node_agent::{install, logs, run};

/// The Isthmus agent of a node.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// What is logged: a level, or levels by module.
    #[arg(long, env = "ISTHMUS_LOG", default_value = "info", global = true)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put the CNI plugin on the node (init step).
    Install {
        /// The plugin in this image.
        #[arg(long, default_value = "/usr/bin/isthmus-cni")]
        source: PathBuf,
        /// The host's directory of CNI plugins.
        #[arg(long, default_value = "/host/opt/cni/bin")]
        target: PathBuf,
        /// Reference plugins to put there as well: names, or `all`. Those that the node has from somebody else stay as they are.
        #[arg(long, env = "ISTHMUS_CNI_PLUGINS", value_delimiter = ',')]
        plugins: Vec<String>,
        /// The program that is all reference plugins, in this image.
        #[arg(long, default_value = "/usr/bin/isthmus-plugins")]
        plugins_source: PathBuf,
    },
    /// Take the CNI configuration and the plugin off the node again.
    Uninstall {
        /// The container runtime's directory of network configurations.
        #[arg(long, default_value = "/etc/cni/net.d")]
        cni_config: PathBuf,
        /// The host's directory of CNI plugins.
        #[arg(long, default_value = "/host/opt/cni/bin")]
        target: PathBuf,
    },
    /// Look into this node's addresses, beside the agent that runs. `isthmus ipam check` calls it.
    Ipam {
        /// Journal and snapshots.
        #[arg(long, default_value = "/var/lib/isthmus", global = true)]
        state_dir: PathBuf,
        #[command(subcommand)]
        command: IpamCommand,
    },
    /// Bring this node to what the cluster decided, until SIGTERM.
    Run {
        /// Name of this node in Kubernetes.
        #[arg(long, env = "NODE_NAME")]
        node: NodeName,
        /// Journal and snapshots.
        #[arg(long, default_value = "/var/lib/isthmus")]
        state_dir: PathBuf,
        /// Socket for the CNI plugin.
        #[arg(long, default_value = "/run/isthmus/cni.sock")]
        cni_socket: PathBuf,
        /// Socket of the data plane process.
        #[arg(long, default_value = "/run/isthmus/dataplane.sock")]
        dataplane_socket: PathBuf,
        /// The container runtime's directory of network configurations.
        #[arg(long, default_value = "/etc/cni/net.d")]
        cni_config: PathBuf,
        /// The container runtime's directory of plugins.
        #[arg(long, default_value = "/opt/cni/bin")]
        cni_plugins: PathBuf,
        /// Whether the plugin is the first of its list, or behind that of another one.
        #[arg(long, env = "CNI_MODE", default_value = "first")]
        cni_mode: CniMode,
        /// Where health and metrics are served.
        #[arg(long, env = "METRICS_ADDRESS", default_value = "127.0.0.1:9471")]
        metrics: SocketAddr,
    },
}

/// What the plugin is to pods.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CniMode {
    /// It makes their interfaces and gives them addresses.
    First,
    /// Another plugin does; the agent puts this one behind it.
    Chained,
}

#[derive(Subcommand)]
enum IpamCommand {
    /// Print what the journal and the kernel hold, as JSON.
    Dump,
    /// Have the agent give back what an interface of a container holds that has no link in the kernel.
    Release {
        /// CNI_CONTAINERID.
        #[arg(long)]
        container: String,
        /// CNI_IFNAME.
        #[arg(long)]
        ifname: String,
        /// Socket for the CNI plugin.
        #[arg(long, default_value = "/run/isthmus/cni.sock")]
        cni_socket: PathBuf,
    },
}

/// The journal of addresses in a state directory.
fn journal(state_dir: &Path) -> PathBuf {
    state_dir.join("journal").join("addresses")
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    logs::start(&options.log)?;
    match options.command {
        Command::Install { source, target, plugins, plugins_source } => {
            install::install(&source, &target)?;
            install::install_plugins(&plugins_source, &plugins, &target)
        }
        Command::Uninstall { cni_config, target } => install::uninstall(&cni_config, &target),
        Command::Ipam { state_dir, command: IpamCommand::Dump } => {
            let found = inspect::dump(&journal(&state_dir), &PodLinks::open()?)?;
            serde_json::to_writer(std::io::stdout().lock(), &found)?;
            Ok(())
        }
        Command::Ipam { state_dir, command: IpamCommand::Release { container, ifname, cni_socket } } => {
            let key = AttachmentKey { container, ifname };
            inspect::release(&journal(&state_dir), &PodLinks::open()?, &key, &cni_socket)
        }
        Command::Run {
            node,
            state_dir,
            cni_socket,
            dataplane_socket,
            cni_config,
            cni_plugins,
            cni_mode,
            metrics,
        } => {
            let journal = journal(&state_dir);
            let memory = state_dir.join("intent");
            let places = run::Places {
                node,
                journal,
                memory,
                cni_socket,
                dataplane_socket,
                cni_config,
                cni_plugins,
                cni_chained: cni_mode == CniMode::Chained,
                metrics,
            };
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let outcome = runtime.block_on(run::run(places));
            // Calls in flight have journalled what they do; waiting for them would only delay the next agent.
            runtime.shutdown_background();
            outcome
        }
    }
}
