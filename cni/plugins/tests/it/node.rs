// SPDX-License-Identifier: Apache-2.0
//! A node with our plugins in a directory, and pods.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::runtime::exec::{Call, Exec, Programs};
use isthmus_testkit::{Lab, Namespace};
use serde_json::{Value, json};

/// Room for a machine with other work.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test. In the virtual machine it lies beside the tests.
pub(crate) fn program() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_isthmus-plugins"));
    let beside = || std::env::current_exe().expect("a path").with_file_name("isthmus-plugins");
    if built.exists() { built } else { beside() }
}

/// The Go project's programs, built once. In the virtual machine they lie beside the tests.
pub(crate) fn go_programs() -> PathBuf {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let beside = std::env::current_exe().expect("a path").with_file_name("go");
        if beside.is_dir() {
            return beside;
        }
        let places = xtask::places::Places::find().expect("the repository");
        xtask::tools::CNI.build(&places).expect("the Go project's programs: make deps")
    });
    BUILT.clone()
}

pub(crate) struct Node {
    pub(crate) lab: Lab,
    pub(crate) host: Namespace,
    pub(crate) dir: tempfile::TempDir,
    /// Where plugins are looked for.
    pub(crate) path: Vec<PathBuf>,
}

impl Node {
    /// With our plugins, or none where the test cannot run.
    pub(crate) fn new(name: &'static str) -> Option<Self> {
        let lab = Lab::new(name)?;
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for plugin in isthmus_plugins::names() {
            std::os::unix::fs::symlink(program(), bin.join(plugin)).unwrap();
        }
        let host = lab.namespace("host");
        Some(Self { lab, host, path: vec![bin], dir })
    }

    /// The same with the Go project's plugins.
    pub(crate) fn with_go(name: &'static str) -> Option<Self> {
        Some(Self { path: vec![go_programs()], ..Self::new(name)? })
    }

    pub(crate) fn pod(&self, name: &str) -> Namespace {
        self.lab.namespace(name)
    }

    /// Addresses of the node's own for a network.
    pub(crate) fn host_local(&self, subnets: &[&str]) -> Value {
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let routes: Vec<Value> = subnets
            .iter()
            .map(|subnet| json!({ "dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" } }))
            .collect();
        json!({ "type": "host-local", "dataDir": self.dir.path().join("leases"), "ranges": ranges, "routes": routes })
    }

    /// Addresses that are reserved in a network.
    pub(crate) fn leases(&self, network: &str) -> usize {
        let Ok(files) = std::fs::read_dir(self.dir.path().join("leases").join(network)) else { return 0 };
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).count()
    }

    /// One call, from the node's namespace: what was printed, as JSON.
    pub(crate) fn call(&self, command: &str, of: Option<&Pod<'_>>, config: &Value) -> Result<Value, Error> {
        let paths: Vec<String> = self.path.iter().map(|dir| dir.display().to_string()).collect();
        let mut env = BTreeMap::from([
            ("CNI_COMMAND".to_owned(), command.to_owned()),
            ("CNI_PATH".to_owned(), paths.join(":")),
        ]);
        if let Some(pod) = of {
            env.insert("CNI_CONTAINERID".to_owned(), pod.id.to_owned());
            env.insert("CNI_IFNAME".to_owned(), pod.ifname.to_owned());
            env.insert("CNI_ARGS".to_owned(), pod.args.to_owned());
            if let Some(space) = pod.space {
                env.insert("CNI_NETNS".to_owned(), space.path().display().to_string());
            }
        }
        let plugin = config["type"].as_str().expect("a type").to_owned();
        let programs = Programs { path: self.path.clone(), deadline: PATIENCE };
        let call = Call { plugin, env, stdin: config.to_string().into_bytes() };
        let printed = self.host.run(move || programs.run(&call))?;
        Ok(serde_json::from_slice(&printed).unwrap_or(Value::Null))
    }

    /// ADD that has to succeed.
    #[track_caller]
    pub(crate) fn add(&self, of: &Pod<'_>, config: &Value) -> Value {
        self.call("ADD", Some(of), config).unwrap_or_else(|error| panic!("ADD {}: {error}", config["type"]))
    }

    #[track_caller]
    pub(crate) fn del(&self, of: &Pod<'_>, config: &Value) {
        self.call("DEL", Some(of), config).unwrap_or_else(|error| panic!("DEL {}: {error}", config["type"]));
    }

    /// CHECK with the result of ADD.
    pub(crate) fn check(&self, of: &Pod<'_>, config: &Value, result: &Value) -> Result<(), Error> {
        self.call("CHECK", Some(of), &with(config, &json!({ "prevResult": result }))).map(drop)
    }

    /// GC that keeps these containers' eth0.
    pub(crate) fn gc(&self, config: &Value, keep: &[&str]) -> Result<(), Error> {
        let valid: Vec<Value> =
            keep.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        self.call("GC", None, &with(config, &json!({ "cni.dev/valid-attachments": valid }))).map(drop)
    }

    /// Links of the node, by name.
    pub(crate) fn links(&self) -> Vec<String> {
        let text = self.host.sh("ip -o link show");
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        text.lines().filter_map(name).filter(|name| name != "lo").collect()
    }
}

/// What the calls of one attachment have in common.
#[derive(Clone, Copy)]
pub(crate) struct Pod<'a> {
    pub(crate) id: &'a str,
    pub(crate) ifname: &'a str,
    pub(crate) args: &'a str,
    pub(crate) space: Option<&'a Namespace>,
}

impl<'a> Pod<'a> {
    pub(crate) fn of(id: &'a str, space: &'a Namespace) -> Self {
        Self { id, ifname: "eth0", args: "", space: Some(space) }
    }
}

/// A configuration with more fields.
pub(crate) fn with(config: &Value, more: &Value) -> Value {
    let mut config = config.clone();
    let fields = config.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    config
}
