// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask`: what the Makefile calls.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use xtask::lab::{self, oci_runtime};
use xtask::places::Places;
use xtask::{conformance, demo, deps, fuzz, node_image, suite, tools, vm};

#[derive(Parser)]
#[command(name = "xtask", about = "What the Makefile calls")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the Debian packages that are missing and check Go and Rust
    Deps,
    /// Build the programs and the node image of the lab without starting it
    Build,
    /// Write the Isthmus image from the binaries in target/, and print where
    Image {
        /// The cargo profile whose binaries go in
        #[arg(long, env = "ISTHMUS_PROFILE", default_value = "dev")]
        profile: String,
    },
    /// Two clusters from nothing to one network, each step shown; the lab stays up
    Demo {
        /// The cargo profile whose binaries run
        #[arg(long, env = "ISTHMUS_PROFILE", default_value = "dev")]
        profile: String,
        /// What the lab looks like: duo, or another topology of east and west
        #[arg(long, env = "ISTHMUS_TOPOLOGY", default_value = "duo")]
        topology: String,
        /// End once all is set up
        #[arg(long)]
        only_set_up: bool,
    },
    /// Run the tests: all of them, or what needs neither root nor Go
    Test {
        /// Neither namespaces nor API servers nor clusters
        #[arg(long)]
        fast: bool,
    },
    /// Kubernetes' own network tests on a cluster of the lab
    Conformance {
        /// The cluster
        #[arg(long, default_value = "east")]
        cluster: String,
        /// Specs side by side
        #[arg(long, default_value_t = 4)]
        processes: u8,
        /// Which specs, a regular expression
        #[arg(long)]
        focus: Option<String>,
        /// The cargo profile whose programs run, where the lab is not up yet
        #[arg(long, env = "ISTHMUS_PROFILE", default_value = "dev")]
        profile: String,
    },
    /// Tests that want a kernel with WireGuard, in a virtual machine
    VmTest {
        /// Part of the names of the tests that run; all, if it is not given
        #[arg(default_value = "")]
        only: String,
    },
    /// Look for inputs that break a fuzz target
    Fuzz {
        /// The target: a folder of fuzz/corpus
        #[arg(default_value = "")]
        target: String,
        /// For how long
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// The lab of kind clusters
    #[command(subcommand)]
    Lab(Lab),
    /// Become the lab's Docker daemon
    #[command(hide = true)]
    LabDaemon { config: PathBuf },
}

#[derive(Subcommand)]
enum Lab {
    /// Bring the clusters of a topology up
    Up {
        #[arg(default_value = "duo", env = "ISTHMUS_TOPOLOGY")]
        topology: String,
    },
    /// Take the lab down
    Down,
    /// Say what is up
    Status {
        #[arg(short, long, default_value = "text")]
        output: Output,
    },
    /// Build our image and load it onto all nodes
    Load {
        /// The cargo profile whose binaries go in
        #[arg(long, env = "ISTHMUS_PROFILE", default_value = "dev")]
        profile: String,
    },
    /// Write all nodes' logs into a folder
    Logs { folder: PathBuf },
    /// Run a program in the lab's network, or in a node (for example east/worker)
    Exec {
        node: Option<String>,
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut words = std::env::args();
    let called_as = words.next().unwrap_or_default();
    if called_as.rsplit('/').next() == Some(oci_runtime::NAME) {
        return oci_runtime::run(&words.collect::<Vec<_>>()).map(drop);
    }
    let places = Places::find()?;
    match Arguments::parse().command {
        Command::Deps => deps::install(&places.repo),
        Command::Build => build(&places),
        Command::Image { profile } => {
            let (archive, id) = lab::load::isthmus_archive(&places, &profile)?;
            println!("{} {id}", archive.display());
            Ok(())
        }
        Command::Demo { profile, topology, only_set_up } => {
            demo::run(&places, &profile, &topology, only_set_up)
        }
        Command::Conformance { cluster, processes, focus, profile } => {
            conformance::run(&places, &conformance::Choice { cluster, processes, focus, profile })
        }
        Command::Test { fast } => suite::run(!fast),
        Command::VmTest { only } => vm::test(&places, &only),
        Command::Fuzz { target, seconds } => fuzz::run(&places, &target, seconds),
        Command::LabDaemon { config } => lab::daemon::become_daemon(&config).map(drop),
        Command::Lab(command) => run_lab(&places, command),
    }
}

fn run_lab(places: &Places, command: Lab) -> Result<()> {
    match command {
        Lab::Up { topology } => lab::up::up(places, &topology),
        Lab::Down => lab::down::down(places),
        Lab::Status { output } => lab::status::print(places, matches!(output, Output::Json)),
        Lab::Load { profile } => lab::load::load(places, &profile),
        Lab::Logs { folder } => lab::logs::export(places, &folder),
        Lab::Exec { node, program } => lab::exec::exec(places, node.as_deref(), &program).map(drop),
    }
}

fn build(places: &Places) -> Result<()> {
    tools::KIND.build(places)?;
    let image = node_image::build(places, &node_image::Parts::build(places)?)?;
    println!("{}", image.reference);
    Ok(())
}
