// SPDX-License-Identifier: Apache-2.0
//! `isthmus cni` with the Go project's plugins, as Debian packages them, in network namespaces of its own.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

const PLUGINS: &str = "/usr/lib/cni";

/// A namespace that lives as long as a sleeping process.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up; echo ready; exec sleep 300"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) runs");
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).expect("a namespace");
        Self(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn run(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program).args(args);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node with a directory of configurations, and a pod.
struct Bench {
    node: Namespace,
    pod: Namespace,
    dir: tempfile::TempDir,
}

impl Bench {
    /// None, with a word, where it cannot be.
    fn new(test: &str) -> Option<Self> {
        let missing =
            [(!nix_is_root(), "needs root"), (!Path::new(PLUGINS).join("bridge").exists(), "make deps")];
        if let Some((_, why)) = missing.iter().find(|(missing, _)| *missing) {
            let _ = writeln!(std::io::stderr(), "{test}: skipped: {why}");
            return None;
        }
        let bench = Self { node: Namespace::new(), pod: Namespace::new(), dir: tempfile::tempdir().unwrap() };
        let leases = bench.dir.path().join("leases");
        let list = json!({
            "cniVersion": "1.0.0",
            "name": "test",
            "plugins": [
                {
                    "type": "bridge", "bridge": "t0", "isGateway": true,
                    "ipam": {
                        "type": "host-local", "dataDir": leases, "subnet": "10.77.0.0/24",
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "tuning", "capabilities": { "mac": true }, "dataDir": bench.dir.path().join("tuning") },
            ],
        });
        fs::write(bench.dir.path().join("test.conflist"), list.to_string()).unwrap();
        Some(bench)
    }

    fn cni(&self, args: &[&str]) -> Output {
        let cache = self.dir.path().join("cache");
        let mut command = self.node.run(env!("CARGO_BIN_EXE_isthmus"), &["cni"]);
        command.args(args).arg("--cache-dir").arg(cache);
        command.env("NETCONFPATH", self.dir.path()).env("CNI_PATH", PLUGINS);
        command.env("CAP_ARGS", r#"{"mac":"02:00:00:00:77:01"}"#).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.cni(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn leases(&self) -> usize {
        let Ok(files) = fs::read_dir(self.dir.path().join("leases/test")) else { return 0 };
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("10.77.")).count()
    }
}

fn nix_is_root() -> bool {
    let id = Command::new("id").arg("-u").output().map(|output| output.stdout);
    id.is_ok_and(|id| id == b"0\n")
}

#[test]
fn a_list_of_go_plugins_is_added_checked_and_deleted_twice() {
    let Some(bench) = Bench::new("go plugins") else { return };
    let netns = bench.pod.path();
    let result: Value = serde_json::from_str(&bench.ok(&["add", "test", &netns])).unwrap();
    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!(result["ips"][0]["address"], "10.77.0.2/24");
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:77:01", "the second plugin had the capability");
    let ping = bench.node.run("ping", &["-c", "1", "-W", "10", "10.77.0.2"]).output().unwrap();
    assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));

    bench.ok(&["check", "test", &netns]);
    let flush = bench.pod.run("ip", &["address", "flush", "dev", "eth0"]).status().unwrap();
    assert!(flush.success());
    let tampered = bench.cni(&["check", "test", &netns]);
    let said = String::from_utf8_lossy(&tampered.stderr).into_owned();
    assert!(!tampered.status.success() && said.contains("plugin bridge failed (CHECK)"), "{said}");

    assert_eq!(bench.leases(), 1);
    bench.ok(&["del", "test", &netns]);
    bench.ok(&["del", "test", &netns]);
    assert_eq!(bench.leases(), 0);
}

#[test]
fn an_add_that_fails_in_the_second_plugin_leaves_no_lease() {
    let Some(bench) = Bench::new("undone") else { return };
    let list = fs::read_to_string(bench.dir.path().join("test.conflist")).unwrap();
    let list = list.replace(r#""type":"tuning""#, r#""sysctl":{"net.none.such":"1"},"type":"tuning""#);
    fs::write(bench.dir.path().join("test.conflist"), list).unwrap();
    let failed = bench.cni(&["add", "test", &bench.pod.path()]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && said.contains("plugin tuning failed (ADD)"), "{said}");
    assert_eq!(bench.leases(), 0, "{said}");
}

#[test]
fn gc_deletes_what_is_kept_and_not_to_be_kept() {
    let Some(bench) = Bench::new("gc") else { return };
    bench.ok(&["add", "test", &bench.pod.path(), "--container-id", "c1"]);
    bench.ok(&["gc", "test", "--keep", "c1/eth0"]);
    assert_eq!(bench.leases(), 1);
    bench.ok(&["gc", "test"]);
    assert_eq!(bench.leases(), 0);
}

#[test]
fn explain_shows_what_each_plugin_would_be_sent_and_runs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let list = r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a","x":1},{"type":"b","capabilities":{"mac":true}}]}"#;
    fs::write(dir.path().join("n.conflist"), list).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus"));
    command.args(["cni", "explain", "n", "/run/netns/x", "--capability-args", r#"{"mac":"m"}"#]);
    let output = command.arg("--conf-dir").arg(dir.path()).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let calls = shown["calls"].as_array().unwrap();
    assert_eq!(calls[0]["stdin"], json!({ "cniVersion": "1.1.0", "name": "n", "type": "a", "x": 1 }));
    assert_eq!(calls[1]["stdin"]["runtimeConfig"], json!({ "mac": "m" }));
    assert_eq!((&calls[1]["env"]["CNI_COMMAND"], &calls[1]["program"]), (&json!("ADD"), &Value::Null));
}

#[test]
fn a_link_named_cnitool_takes_its_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("cnitool");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_isthmus"), &link).unwrap();
    let output =
        Command::new(&link).args(["add", "nowhere", "/run/netns/x"]).env("NETCONFPATH", dir.path()).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("network \"nowhere\""), "{said}");
}

/// Checks that failed, of a plugin in this directory with this configuration.
fn failed_checks(plugins: &Path, config: &Value) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("subject.conf");
    fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus"));
    command.args(["cni", "conformance", "-o", "json"]).arg(&file).env("CNI_PATH", plugins);
    let output = command.output().unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert!(rows.len() > 20, "{rows:?}");
    let failed = rows.iter().filter(|row| row["verdict"]["failed"].is_string());
    let failed: Vec<String> = failed.map(|row| row["check"].as_str().unwrap().to_owned()).collect();
    assert_eq!(output.status.success(), failed.is_empty());
    failed
}

#[test]
fn the_conformance_check_finds_one_fault_in_the_bridge_plugin_of_the_go_project() {
    let Some(bench) = Bench::new("conformance of bridge") else { return };
    let leases = bench.dir.path().join("leases");
    let ipam = json!({ "type": "host-local", "dataDir": leases, "subnet": "10.78.0.0/24" });
    let config =
        json!({ "cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "t0", "ipam": ipam });
    assert_eq!(failed_checks(Path::new(PLUGINS), &config), ["an error object says its cniVersion"]);
}

#[test]
fn the_conformance_check_finds_what_is_wrong_with_a_plugin_that_says_yes_to_everything() {
    if Bench::new("conformance of nothing").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("yes");
    let script = r#"#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]}' ;;
esac
"#;
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let failed = failed_checks(dir.path(), &json!({ "cniVersion": "1.1.0", "name": "n", "type": "yes" }));
    let expected = [
        "an unknown CNI_COMMAND is an error object",
        "an error object says its cniVersion",
        "ADD without CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME is error 4",
        "a version that nobody speaks is error 1",
        "a configuration that is no JSON is error 6",
        "a container ID with a slash is refused",
        "ADD makes CNI_IFNAME in CNI_NETNS and says so",
        "ADD answers in the version that it is asked in, each of its own",
        "ADD for an interface that is there is an error",
        "ADD that failed leaves the other container as it was",
        "CHECK finds that the interface is gone",
        "CHECK finds that the address is gone",
        "addresses of containers added side by side differ",
        "GC frees what is not valid, keeps what is, and prints nothing",
    ];
    assert_eq!(failed, expected);
}
