// SPDX-License-Identifier: Apache-2.0
//! Calls of a plugin that does nothing but remember.

use std::cell::RefCell;

use serde_json::json;

use super::*;

#[derive(Default)]
struct Recorder {
    calls: RefCell<Vec<Request>>,
    versions: Option<Vec<Version>>,
}

impl Recorder {
    fn note(&self, request: &Request) -> Result<(), Error> {
        self.calls.borrow_mut().push(request.clone());
        Ok(())
    }
}

impl Plugin for Recorder {
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        self.note(request)?;
        Ok(request.config.prev_result()?.unwrap_or_default())
    }
    fn del(&self, request: &Request) -> Result<(), Error> {
        self.note(request)
    }
    fn check(&self, request: &Request) -> Result<(), Error> {
        self.note(request)
    }
    fn status(&self, _: &Request) -> Result<(), Error> {
        Err(Error::new(code::UNAVAILABLE, "the pool is empty"))
    }
    fn gc(&self, request: &Request) -> Result<(), Error> {
        self.note(request)
    }
    fn about(&self) -> String {
        "a recorder".to_owned()
    }
    fn versions(&self) -> Vec<Version> {
        self.versions.clone().unwrap_or(Version::ALL.to_vec())
    }
}

const FULL: [(&str, &str); 5] = [
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/none"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_PATH", "/a:/b"),
    ("CNI_ARGS", "A=b"),
];

fn call(plugin: &Recorder, command: &str, changes: &[(&str, &str)], config: &Value) -> (u8, Value) {
    let asked = [("CNI_COMMAND", command)];
    let env = FULL.iter().chain(changes).chain(&asked);
    let env = env.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut stdout = Vec::new();
    let exit = run(plugin, &env, &mut config.to_string().as_bytes(), &mut stdout, &mut Vec::new());
    (exit, serde_json::from_slice(&stdout).unwrap_or_default())
}

fn conf(version: &str) -> Value {
    json!({"cniVersion": version, "name": "net", "type": "x"})
}

#[test]
fn p1_add_gets_its_parameters_and_prints_the_result_with_exit_code_0() {
    let plugin = Recorder::default();
    assert_eq!(call(&plugin, "ADD", &[], &conf("1.0.0")), (0, json!({"cniVersion": "1.0.0"})));
    let calls = plugin.calls.borrow();
    assert_eq!((calls[0].container_id.as_str(), calls[0].ifname.as_str()), ("c1", "eth0"));
    assert_eq!(calls[0].netns, Some("/run/netns/none".into()));
    assert_eq!(calls[0].path, ["/a", "/b"].map(std::path::PathBuf::from));
    assert_eq!(calls[0].args.get("A"), Some("b"));
}

#[test]
fn p2_an_error_is_an_object_on_stdout_in_the_version_of_the_call() {
    let (exit, answer) = call(&Recorder::default(), "STATUS", &[], &conf("1.1.0"));
    assert_eq!((exit, answer), (1, json!({"cniVersion": "1.1.0", "code": 50, "msg": "the pool is empty"})));
}

#[test]
fn p3_all_missing_variables_are_named_in_one_error_of_code_4() {
    let gone = [("CNI_CONTAINERID", ""), ("CNI_NETNS", "")];
    let (exit, answer) = call(&Recorder::default(), "ADD", &gone, &conf("1.0.0"));
    assert_eq!((exit, &answer["code"]), (1, &json!(4)));
    assert_eq!(answer["msg"], "required env variables [CNI_CONTAINERID,CNI_NETNS] missing");
    assert_eq!(call(&Recorder::default(), "NOD", &[], &conf("1.0.0")).1["code"], 4);
}

#[test]
fn p3_a_configuration_that_is_no_json_is_refused_with_code_6() {
    assert_eq!(call(&Recorder::default(), "ADD", &[], &json!("text")).1["code"], 6);
}

#[test]
fn p4_names_that_are_not_allowed_reach_no_plugin() {
    let plugin = Recorder::default();
    assert_eq!(call(&plugin, "ADD", &[("CNI_CONTAINERID", "a/b")], &conf("1.0.0")).1["code"], 4);
    assert_eq!(call(&plugin, "ADD", &[("CNI_IFNAME", "a/b")], &conf("1.0.0")).1["code"], 4);
    assert_eq!(call(&plugin, "ADD", &[], &json!({"cniVersion": "1.0.0", "name": "a/b"})).1["code"], 7);
    assert!(plugin.calls.borrow().is_empty());
}

#[test]
fn p4_check_gc_and_status_are_refused_with_code_1_before_their_versions() {
    let mut config = conf("1.0.0");
    config["cni.dev/valid-attachments"] = json!([]);
    for (command, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        config["cniVersion"] = json!(version);
        assert_eq!(call(&Recorder::default(), command, &[], &config).1["code"], 1, "{command}");
    }
    config["cniVersion"] = json!("1.1.0");
    assert_eq!(call(&Recorder::default(), "GC", &[], &config), (0, Value::Null));
}

#[test]
fn p4_a_version_that_is_not_spoken_is_refused_and_those_that_are_get_named() {
    let plugin = Recorder { versions: Some(vec![Version::V1_0_0]), ..Recorder::default() };
    for version in ["0.4.0", "5.0.0"] {
        let (_, answer) = call(&plugin, "ADD", &[], &conf(version));
        assert_eq!((&answer["code"], &answer["details"]), (&json!(1), &json!("this plugin speaks 1.0.0")));
    }
}

#[test]
fn p4_the_plugins_own_namespace_is_refused_with_code_8_unless_overridden() {
    let own = ("CNI_NETNS", "/proc/self/ns/net");
    for command in ["ADD", "DEL"] {
        assert_eq!(call(&Recorder::default(), command, &[own], &conf("1.0.0")).1["code"], 8);
    }
    let overridden = [own, ("CNI_NETNS_OVERRIDE", "1")];
    assert_eq!(call(&Recorder::default(), "ADD", &overridden, &conf("1.0.0")).0, 0);
}

#[test]
fn p15_args_of_the_configuration_go_before_those_of_the_variable() {
    let plugin = Recorder::default();
    let mut config = conf("1.0.0");
    config["args"] = json!({"cni": {"mac": "a", "ips": ["10.0.0.2"], "none": null}});
    let args = [("CNI_ARGS", "IP=10.0.0.3;MAC=b;none=c;K8S_POD_NAME=d")];
    assert_eq!(call(&plugin, "ADD", &args, &config).0, 0);
    let request = &plugin.calls.borrow()[0];
    assert_eq!((request.arg("mac"), request.arg("ips")), (Some(json!("a")), Some(json!(["10.0.0.2"]))));
    assert_eq!((request.arg("ip"), request.arg("none")), (Some(json!("10.0.0.3")), Some(json!("c"))));
    assert_eq!((request.arg("K8S_POD_NAME"), request.arg("b")), (Some(json!("d")), None));
}

#[test]
fn p7_a_previous_result_goes_out_as_it_came_in() {
    let prev = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/8", "own": 1}], "own": [2]});
    let mut config = conf("1.0.0");
    config["prevResult"] = prev.clone();
    assert_eq!(call(&Recorder::default(), "ADD", &[], &config), (0, prev));
}

#[test]
fn p8_del_needs_neither_a_namespace_nor_a_previous_result() {
    assert_eq!(call(&Recorder::default(), "DEL", &[("CNI_NETNS", "")], &conf("1.0.0")), (0, Value::Null));
}

#[test]
fn p9_check_without_a_previous_result_is_refused() {
    let plugin = Recorder::default();
    assert_eq!(call(&plugin, "CHECK", &[], &conf("1.0.0")).1["code"], 7);
    let mut config = conf("1.0.0");
    config["prevResult"] = json!({"cniVersion": "1.0.0"});
    assert_eq!(call(&plugin, "CHECK", &[], &config).0, 0);
}

#[test]
fn p11_version_needs_no_other_variable_and_lists_what_is_spoken() {
    let gone = [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_PATH", "")];
    let (exit, answer) = call(&Recorder::default(), "VERSION", &gone, &json!({"cniVersion": "0.4.0"}));
    let all = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    assert_eq!((exit, answer), (0, json!({"cniVersion": "0.4.0", "supportedVersions": all})));
}

#[test]
fn p11_without_a_command_the_plugin_tells_about_itself_and_succeeds() {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit = run(&Recorder::default(), &BTreeMap::new(), &mut &b""[..], &mut stdout, &mut stderr);
    assert_eq!((exit, stdout), (0, Vec::new()));
    let words = String::from_utf8(stderr).unwrap();
    assert!(words.contains("a recorder") && words.contains("1.1.0"));
}

#[test]
fn p12_gc_hands_on_what_is_to_be_kept_and_refuses_to_guess_it() {
    let plugin = Recorder::default();
    assert_eq!(call(&plugin, "GC", &[], &conf("1.1.0")).1["code"], 7);
    let mut config = conf("1.1.0");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    assert_eq!(call(&plugin, "GC", &[], &config), (0, Value::Null));
    assert_eq!(plugin.calls.borrow()[0].valid_attachments[0].container_id, "a");
}
