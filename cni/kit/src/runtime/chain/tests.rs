// SPDX-License-Identifier: Apache-2.0
use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::runtime::exec::Programs;
use crate::version::Version;

/// Notes every call; a plugin named in `failing` fails, ADD appends the plugin's name to the interfaces.
#[derive(Default)]
struct Recorder {
    calls: RefCell<Vec<Call>>,
    failing: Vec<(&'static str, &'static str)>,
}

impl Exec for Recorder {
    fn run(&self, call: &Call) -> Result<Vec<u8>, Error> {
        self.calls.borrow_mut().push(call.clone());
        let command = call.env["CNI_COMMAND"].as_str();
        if self.failing.iter().any(|(plugin, failing)| *plugin == call.plugin && *failing == command) {
            return Err(Error::new(100, "it broke"));
        }
        let request: Value = serde_json::from_slice(&call.stdin).unwrap();
        let mut result = match &request["prevResult"] {
            Value::Null => json!({"cniVersion": request["cniVersion"], "interfaces": []}),
            before => before.clone(),
        };
        result["interfaces"].as_array_mut().unwrap().push(json!({"name": call.plugin}));
        Ok(result.to_string().into_bytes())
    }
}

impl Recorder {
    fn failing(plugin: &'static str, command: &'static str) -> Self {
        Self { failing: vec![(plugin, command)], ..Self::default() }
    }

    /// Command and plugin of each call.
    fn said(&self) -> Vec<String> {
        let calls = self.calls.borrow();
        calls.iter().map(|call| format!("{} {}", call.env["CNI_COMMAND"], call.plugin)).collect()
    }

    fn requests(&self) -> Vec<Value> {
        self.calls.borrow().iter().map(|call| serde_json::from_slice(&call.stdin).unwrap()).collect()
    }
}

fn list(version: &str, more: &str) -> NetworkList {
    let text = format!(
        r#"{{"cniVersion":"{version}","name":"net",{more}"plugins":[{{"type":"one"}},{{"type":"two"}}]}}"#
    );
    NetworkList::parse(text.as_bytes(), Version::NEWEST).unwrap()
}

fn eth0(id: &str) -> Container {
    Container { id: id.into(), netns: "/run/netns/x".into(), ifname: "eth0".into(), ..Container::default() }
}

/// Runs with a cache of its own.
fn with<T>(exec: &dyn Exec, run: impl FnOnce(&Runtime<'_>) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    run(&Runtime { exec, cache: &cache, path: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()] })
}

fn names(result: &Value) -> Vec<&str> {
    result["interfaces"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

/// Notes with each call what a second process could lock at that time.
struct Prober<'a> {
    cache: &'a Cache,
    seen: RefCell<Vec<(String, [bool; 4])>>,
}

impl Exec for Prober<'_> {
    fn run(&self, call: &Call) -> Result<Vec<u8>, Error> {
        use nix::fcntl::{Flock, FlockArg};
        let locks = self.cache.locks();
        let free = |path: std::path::PathBuf, how| {
            let file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
            Flock::lock(file, how).is_ok()
        };
        let free_now = [
            free(locks.of_container("c1").unwrap(), FlockArg::LockExclusiveNonblock),
            free(locks.of_container("other").unwrap(), FlockArg::LockExclusiveNonblock),
            free(locks.of_network("net").unwrap(), FlockArg::LockSharedNonblock),
            free(locks.of_network("net").unwrap(), FlockArg::LockExclusiveNonblock),
        ];
        self.seen.borrow_mut().push((call.env["CNI_COMMAND"].clone(), free_now));
        Ok(br#"{"cniVersion":"1.1.0"}"#.to_vec())
    }
}

#[test]
fn r1_a_container_has_one_call_at_a_time_and_gc_runs_alone_on_its_network() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let exec = Prober { cache: &cache, seen: RefCell::default() };
    let runtime = Runtime { exec: &exec, cache: &cache, path: Vec::new() };
    let list = NetworkList::of_single(br#"{"cniVersion":"1.1.0","name":"net","type":"x"}"#, Version::NEWEST);
    let list = list.unwrap();
    runtime.add(&list, &eth0("c1")).unwrap();
    runtime.check(&list, &eth0("c1")).unwrap();
    runtime.del(&list, &eth0("c1")).unwrap();
    runtime.add_or_undo(&list, &eth0("c1")).unwrap();
    runtime.gc(&list, &[]).unwrap();
    // Of c1, of another container, of the network for a call, and for GC.
    let expected = [
        ("ADD", [false, true, true, false]),
        ("CHECK", [false, true, true, false]),
        ("DEL", [false, true, true, false]),
        ("ADD", [false, true, true, false]),
        ("DEL", [false, true, false, false]),
        ("GC", [true, true, false, false]),
    ];
    assert_eq!(*exec.seen.borrow(), expected.map(|(command, free)| (command.to_owned(), free)));
}

#[test]
fn r1_calls_for_one_container_that_come_at_once_follow_each_other_and_leave_no_lock_behind() {
    use std::sync::atomic::{AtomicBool, Ordering};
    #[derive(Default)]
    struct Alone(AtomicBool);
    impl Exec for Alone {
        fn run(&self, _: &Call) -> Result<Vec<u8>, Error> {
            assert!(!self.0.swap(true, Ordering::SeqCst), "two at once");
            std::thread::yield_now();
            self.0.store(false, Ordering::SeqCst);
            Ok(br#"{"cniVersion":"1.1.0"}"#.to_vec())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (exec, cache) = (Alone::default(), Cache::new(dir.path()));
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (exec, cache) = (&exec, &cache);
            scope.spawn(move || {
                let runtime = Runtime { exec, cache, path: Vec::new() };
                let list = list("1.1.0", "");
                for _ in 0..20 {
                    match number {
                        0 => runtime.gc(&list, &[]).map_err(|errors| errors[0].clone()).unwrap(),
                        _ => runtime.del(&list, &eth0("c1")).unwrap(),
                    }
                }
            });
        }
    });
    assert_eq!(fs::read_dir(dir.path().join("locks/containers")).unwrap().count(), 0);
}

#[test]
fn r2_add_hands_each_result_on_and_the_first_plugin_gets_none() {
    let exec = Recorder::default();
    let result = with(&exec, |runtime| runtime.add(&list("1.0.0", ""), &eth0("c1"))).unwrap();
    assert_eq!(names(&result), ["one", "two"]);
    let requests = exec.requests();
    assert_eq!(requests[0].get("prevResult"), None);
    assert_eq!(names(&requests[1]["prevResult"]), ["one"]);
    let env = &exec.calls.borrow()[0].env;
    let expected = [
        ("CNI_ARGS", ""),
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
    ];
    assert_eq!(env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect::<Vec<_>>(), expected);
}

#[test]
fn r2_add_stops_at_the_first_failure_says_whose_it_is_and_del_follows() {
    let exec = Recorder::failing("one", "ADD");
    let error = with(&exec, |runtime| runtime.add_or_undo(&list("1.0.0", ""), &eth0("c1"))).unwrap_err();
    assert_eq!((error.code, error.msg.as_str()), (100, "plugin one failed (ADD): it broke"));
    assert_eq!(exec.said(), ["ADD one", "DEL two", "DEL one"]);
}

#[test]
fn r3_del_goes_in_reverse_with_the_final_result_for_all_and_may_come_again() {
    let exec = Recorder::default();
    with(&exec, |runtime| {
        let list = list("0.4.0", "");
        runtime.add(&list, &eth0("c1")).unwrap();
        runtime.del(&list, &eth0("c1")).unwrap();
        runtime.del(&list, &Container { netns: String::new(), ..eth0("c1") }).unwrap();
    });
    assert_eq!(exec.said(), ["ADD one", "ADD two", "DEL two", "DEL one", "DEL two", "DEL one"]);
    let requests = exec.requests();
    assert_eq!(names(&requests[2]["prevResult"]), ["one", "two"]);
    assert_eq!(names(&requests[3]["prevResult"]), ["one", "two"]);
    assert_eq!(requests[4].get("prevResult"), None, "the second time nothing is kept any more");
}

#[test]
fn r3_del_stops_at_a_failure_keeps_the_result_and_before_0_4_0_has_none() {
    let exec = Recorder::failing("two", "DEL");
    with(&exec, |runtime| {
        let list = list("0.3.1", "");
        runtime.add(&list, &eth0("c1")).unwrap();
        assert_eq!(runtime.del(&list, &eth0("c1")).unwrap_err().code, 100);
        assert!(runtime.cache.get("net", "c1", "eth0").unwrap().is_some());
    });
    assert_eq!(exec.said(), ["ADD one", "ADD two", "DEL two"]);
    assert_eq!(exec.requests()[2].get("prevResult"), None);
}

#[test]
fn r4_check_goes_in_order_with_the_final_result() {
    let exec = Recorder::default();
    with(&exec, |runtime| {
        let list = list("0.4.0", "");
        runtime.add(&list, &eth0("c1")).unwrap();
        runtime.check(&list, &eth0("c1")).unwrap();
    });
    assert_eq!(exec.said()[2..], ["CHECK one", "CHECK two"]);
    assert!(exec.requests()[2..].iter().all(|request| names(&request["prevResult"]) == ["one", "two"]));
}

#[test]
fn r4_check_is_refused_before_0_4_0_and_without_add_and_skipped_where_it_is_disabled() {
    let exec = Recorder::default();
    with(&exec, |runtime| {
        let refused = |list: &NetworkList| runtime.check(list, &eth0("c1")).map_err(|error| error.code);
        assert_eq!(refused(&list("0.3.1", "")), Err(code::INCOMPATIBLE_VERSION));
        assert_eq!(refused(&list("1.1.0", "")), Err(code::UNKNOWN_CONTAINER));
        assert_eq!(refused(&list("1.1.0", r#""disableCheck":true,"#)), Ok(()));
    });
    assert!(exec.said().is_empty());
}

#[test]
fn r5_gc_deletes_what_is_kept_and_not_valid_then_asks_every_plugin_and_returns_all_errors() {
    let exec = Recorder { failing: vec![("one", "GC"), ("two", "GC")], ..Recorder::default() };
    let valid = [Attachment { container_id: "c1".into(), ifname: "eth0".into() }];
    let errors = with(&exec, |runtime| {
        let list = list("1.1.0", "");
        for id in ["c1", "c2"] {
            runtime.add(&list, &eth0(id)).unwrap();
        }
        exec.calls.borrow_mut().clear();
        runtime.gc(&list, &valid).unwrap_err()
    });
    assert_eq!(exec.said(), ["DEL two", "DEL one", "GC one", "GC two"]);
    assert_eq!(errors.len(), 2);
    let calls = exec.calls.borrow();
    assert_eq!(calls[0].env["CNI_CONTAINERID"], "c2");
    assert_eq!(calls[0].env["CNI_NETNS"], "/run/netns/x", "as it was added");
    assert_eq!(calls[2].env.get("CNI_CONTAINERID"), None);
    let request = &exec.requests()[2];
    let kept = json!([{"containerID": "c1", "ifname": "eth0"}]);
    assert_eq!((&request["cni.dev/valid-attachments"], &request["cni.dev/attachments"]), (&kept, &kept));
}

#[test]
fn r5_gc_before_1_1_0_only_deletes_and_where_it_is_disabled_nothing_runs() {
    let exec = Recorder::default();
    with(&exec, |runtime| {
        runtime.add(&list("1.0.0", ""), &eth0("c1")).unwrap();
        exec.calls.borrow_mut().clear();
        runtime.gc(&list("1.0.0", r#""disableGC":"true","#), &[]).unwrap();
        assert!(exec.said().is_empty());
        runtime.gc(&list("1.0.0", ""), &[]).unwrap();
    });
    assert_eq!(exec.said(), ["DEL two", "DEL one"]);
}

#[test]
fn r6_status_asks_in_order_the_first_error_wins_and_older_versions_are_not_asked() {
    let exec = Recorder::failing("one", "STATUS");
    let error = with(&exec, |runtime| {
        runtime.status(&list("1.0.0", "")).unwrap();
        runtime.status(&list("1.1.0", ""))
    });
    assert!(error.unwrap_err().msg.contains("plugin one"));
    assert_eq!(exec.said(), ["STATUS one"]);
}

#[test]
fn r7_a_result_of_another_version_is_handed_on_in_the_lists() {
    struct Old;
    impl Exec for Old {
        fn run(&self, _: &Call) -> Result<Vec<u8>, Error> {
            Ok(br#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}],"own":1}"#.to_vec())
        }
    }
    let result = with(&Old, |runtime| runtime.add(&list("1.0.0", ""), &eth0("c1"))).unwrap();
    assert_eq!((&result["cniVersion"], &result["own"]), (&json!("1.0.0"), &json!(1)));
    assert_eq!(result["ips"], json!([{"address": "10.0.0.2/24"}]));
}

#[test]
fn r11_names_that_are_not_allowed_are_refused_before_anything_runs() {
    let exec = Recorder::default();
    with(&exec, |runtime| {
        let list = list("1.1.0", "");
        for bad in [eth0("../x"), Container { ifname: "a/b".into(), ..eth0("c1") }, eth0("")] {
            let calls = [
                runtime.add(&list, &bad).err(),
                runtime.del(&list, &bad).err(),
                runtime.check(&list, &bad).err(),
            ];
            assert!(
                calls.iter().all(|error| error.as_ref().is_some_and(|error| error.code == 4)),
                "{calls:?}"
            );
        }
    });
    assert!(exec.said().is_empty());
}

#[test]
fn r2_real_programs_form_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        let file = dir.path().join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("one", r#"cat >/dev/null; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}'"#);
    script(
        "two",
        r#"grep -q '"prevResult":.*10.0.0.2/24' || exit 1; echo '{"cniVersion":"1.0.0","dns":{"domain":"d"}}'"#,
    );
    let programs = Programs { path: vec![dir.path().into()], deadline: Duration::from_secs(60) };
    let result = with(&programs, |runtime| runtime.add(&list("1.0.0", ""), &eth0("c1"))).unwrap();
    assert_eq!(result, json!({"cniVersion": "1.0.0", "dns": {"domain": "d"}}));
}
