// SPDX-License-Identifier: Apache-2.0
//! Addresses of ours on another plugin's links, and another plugin's addresses on ours, with Debian's `bridge` and `host-local`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use isthmus_cni_conformance::{Row, Verdict, run_here};
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::runtime::exec::{Call, Programs};
use isthmus_testkit::{Lab, Namespace, within};
use serde_json::{Map, Value, json};

use super::conformance::installed;
use super::node::{Node, addresses};

const SOON: Duration = Duration::from_secs(5);

/// The runtime's side: programs, and the node that they run on.
struct Caller<'a> {
    node: &'a Node,
    path: [PathBuf; 2],
}

impl<'a> Caller<'a> {
    fn new(node: &'a Node) -> Self {
        Self { node, path: [installed(node), "/usr/lib/cni".into()] }
    }

    fn programs(&self) -> Programs {
        Programs { path: self.path.to_vec(), deadline: Duration::from_secs(60) }
    }

    /// One call of the plugin that the configuration names: what it printed, or its error.
    fn call(&self, command: &str, config: &Value, container: &str, pod: &Namespace) -> Result<Value, Error> {
        let path: Vec<String> = self.path.iter().map(|path| path.display().to_string()).collect();
        let netns = pod.path().display().to_string();
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", &path.join(":")),
        ];
        let env: BTreeMap<_, _> = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let plugin = config["type"].as_str().unwrap().to_owned();
        let (call, programs) =
            (Call { plugin, env, stdin: config.to_string().into_bytes() }, self.programs());
        let output = self.node.namespace.run(move || programs.output(&call))?;
        if output.success {
            Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
        } else {
            Err(Error::of_output(&output.stdout, &output.stderr))
        }
    }

    /// Rows of the specification's check that did not pass.
    /// Debian's plugins are of 1.0.0, in which some calls do not exist.
    fn wrong(&self, config: &Value) -> Vec<Row> {
        let (programs, config): (_, Map<String, Value>) =
            (self.programs(), serde_json::from_value(config.clone()).unwrap());
        let rows = self.node.namespace.run(move || run_here(programs, config)).unwrap();
        let right = |row: &Row| match &row.verdict {
            Verdict::Passed => true,
            Verdict::Skipped(why) => why.contains("speaks up to 1.0.0"),
            Verdict::Failed(_) => false,
        };
        rows.into_iter().filter(|row| !right(row)).collect()
    }
}

fn bridge() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "others", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": { "type": "isthmus-ipam" } })
}

fn ours() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "isthmus", "type": "isthmus-cni" })
}

fn ours_with_host_local(node: &Node) -> Value {
    let ranges = json!([[{ "subnet": "10.1.0.64/28" }], [{ "subnet": "fd00:1::40/124" }]]);
    let ipam = json!({ "type": "host-local", "dataDir": node.path("leases"), "ranges": ranges });
    let mut config = ours();
    config["ipam"] = ipam;
    config
}

fn with(config: &Value, key: &str, value: &Value) -> Value {
    let mut config = config.clone();
    config[key] = value.clone();
    config
}

#[test]
fn debians_bridge_takes_addresses_of_ours_and_its_pods_reach_ours() {
    let Some(lab) = Lab::new("our-ipam") else { return };
    let node = Node::new(&lab);
    let mut agent = node.started_agent();
    let caller = Caller::new(&node);
    let (a, b, c) = (lab.namespace("a"), lab.namespace("b"), lab.namespace("c"));
    let made = caller.call("ADD", &bridge(), "a", &a).unwrap();
    let other = caller.call("ADD", &bridge(), "b", &b).unwrap();
    let mixed = caller.call("ADD", &ours(), "c", &c).unwrap_err();
    assert!(mixed.code == 7 && mixed.msg.contains("the network others by isthmus-ipam"), "{mixed}");
    assert_eq!(made["ips"][0]["address"], "10.1.0.1/29");
    for target in addresses(&other).iter().map(String::as_str).chain(["172.18.0.1"]) {
        a.ping(target).unwrap_or_else(|error| {
            panic!(
                "{error:#}\n{}",
                node.namespace.sh("ip a; ip route; ip -6 route; nft list table inet isthmus")
            )
        });
    }
    // As what comes out of a tunnel: no route of ours hides the bridge's.
    for target in addresses(&made) {
        // The bridge is new: the kernel still makes sure of its addresses.
        within(SOON, || node.namespace.ping(&target).map_err(|error| format!("{error:#}")));
    }

    agent.kill();
    agent = node.started_agent();
    assert_eq!(agent.ledger().unwrap().held.len(), 2, "leases outlive the agent");
    caller.call("CHECK", &with(&bridge(), "prevResult", &made), "a", &a).unwrap();
    // A runtime's mistake: what the container has must not be given back when the second call fails.
    caller.call("ADD", &bridge(), "a", &a).unwrap_err();
    assert_eq!(agent.ledger().unwrap().held["a"], addresses(&made));

    // GC of ours speaks of another network, and that of the lease's takes only what it does not name.
    let valid = |network: &str, kind: &str, kept: &[&str]| {
        let kept: Vec<Value> = kept.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        json!({ "cniVersion": "1.1.0", "name": network, "type": kind, "cni.dev/valid-attachments": kept })
    };
    caller.call("GC", &valid("isthmus", "isthmus-cni", &[]), "", &c).unwrap();
    assert_eq!(agent.ledger().unwrap().held.len(), 2);
    caller.call("GC", &valid("others", "isthmus-ipam", &["b"]), "", &c).unwrap();
    let held: Vec<String> = agent.ledger().unwrap().held.into_keys().collect();
    assert_eq!(held, ["b"]);
    for _ in 0..2 {
        caller.call("DEL", &bridge(), "b", &b).unwrap();
    }
    let ledger = agent.ledger().unwrap();
    assert_eq!((ledger.held.len(), ledger.in_use), (0, 0), "{ledger:?}");
}

#[test]
fn ours_takes_addresses_of_host_local_and_gives_them_back_when_its_link_fails() {
    let Some(lab) = Lab::new("other-ipam") else { return };
    let node = Node::new(&lab);
    let mut agent = node.started_agent();
    let caller = Caller::new(&node);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    let config = ours_with_host_local(&node);
    let made = caller.call("ADD", &config, "a", &a).unwrap();
    let own = caller.call("ADD", &ours(), "b", &b).unwrap();
    let leases =
        || node.namespace.sh(&format!("ls {} 2>/dev/null || true", node.path("leases/isthmus").display()));
    assert!(leases().contains(addresses(&made)[0].as_str()), "{}", leases());
    for target in addresses(&made) {
        b.ping(&target).unwrap();
    }
    for target in addresses(&own) {
        a.ping(&target).unwrap();
    }
    caller.call("ADD", &config, "a", &a).unwrap_err();
    caller.call("CHECK", &with(&config, "prevResult", &made), "a", &a).unwrap();
    agent.kill();
    agent = node.started_agent();
    assert_eq!(agent.ledger().unwrap().held["a"], addresses(&made));

    // A name that is taken in the pod: the link fails, and the address goes back.
    let taken = lab.namespace("taken");
    taken.sh("ip link add eth0 type bridge");
    let before = leases();
    let error = caller.call("ADD", &config, "taken", &taken).unwrap_err();
    assert!(error.msg.contains("exists already"), "{error}");
    // The next lease goes on behind the last one, which host-local keeps.
    let files = |all: &str| {
        all.lines()
            .filter(|line| !line.starts_with("last_") && *line != "lock")
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(files(&leases()), files(&before));
    for _ in 0..2 {
        caller.call("DEL", &config, "a", &a).unwrap();
    }
    assert!(files(&leases()).is_empty(), "{}", leases());
    assert_eq!(agent.ledger().unwrap().held.into_keys().collect::<Vec<_>>(), ["b"]);
    let missing = with(&config, "ipam", &json!({ "type": "nowhere" }));
    assert!(caller.call("ADD", &missing, "a", &a).unwrap_err().msg.contains("no plugin nowhere"));
    let path = with(&config, "ipam", &json!({ "type": "../x" }));
    assert_eq!(caller.call("ADD", &path, "a", &a).unwrap_err().code, 7);
}

#[test]
fn both_pass_the_specifications_check_as_far_as_debians_plugins_do() {
    let Some(lab) = Lab::new("ipam-conformance") else { return };
    let node = Node::wide(&lab);
    let _agent = node.started_agent();
    let caller = Caller::new(&node);
    let wrong = caller.wrong(&ours_with_host_local(&node));
    assert!(wrong.is_empty(), "{wrong:#?}");
    let wrong = caller.wrong(&bridge());
    let of_go = |row: &Row| row.check == "an error object says its cniVersion";
    assert!(wrong.iter().all(of_go), "{wrong:#?}");
}
