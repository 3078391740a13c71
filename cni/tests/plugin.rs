// SPDX-License-Identifier: Apache-2.0
//! The plugin program as a container runtime sees it: environment and standard input in, JSON and an exit code out.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_cni::wire::{Answer, Request, read_payload};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use serde_json::Value;

const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"isthmus","type":"isthmus-cni"}"#;

fn call(socket: &Path, env: &[(&str, &str)], stdin: &str) -> (Output, Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_isthmus-cni"))
        .env_clear()
        .env("ISTHMUS_CNI_SOCKET", socket)
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the plugin starts");
    child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("the plugin reads");
    let output = child.wait_with_output().expect("the plugin ends");
    let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, printed)
}

const ADD: [(&str, &str); 4] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/x"),
    ("CNI_IFNAME", "eth0"),
];

/// An agent that serves one call with the given answers and gives back what it was asked.
fn agent(answers: Vec<Answer>) -> (tempfile::TempDir, PathBuf, thread::JoinHandle<Request>) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("cni.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a call");
        let request = Request::parse(&read_payload(&mut stream).expect("a frame")).expect("a request");
        for answer in answers {
            stream.write_all(&answer.to_frame()).expect("the plugin listens");
        }
        request
    });
    (directory, socket, serving)
}

#[test]
fn version_is_answered_without_an_agent() {
    let (output, printed) = call(Path::new("/nonexistent"), &[("CNI_COMMAND", "VERSION")], CONFIG);
    assert!(output.status.success());
    assert_eq!(printed["cniVersion"], "1.0.0");
    assert_eq!(
        printed["supportedVersions"],
        serde_json::json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
}

#[test]
fn missing_variables_are_all_named_with_code_4() {
    let (output, printed) =
        call(Path::new("/nonexistent"), &[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "eth0")], CONFIG);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(printed["code"], 4);
    assert_eq!(printed["msg"], "required env variables [CNI_CONTAINERID,CNI_NETNS] missing");
    assert_eq!(printed["cniVersion"], "1.0.0");
    let (_, printed) = call(Path::new("/nonexistent"), &[], CONFIG);
    assert_eq!(printed["msg"], "required env variables [CNI_COMMAND] missing");
}

#[test]
fn an_agent_that_is_not_there_gives_code_11_within_five_seconds() {
    let began = Instant::now();
    let (output, printed) = call(Path::new("/nonexistent/cni.sock"), &ADD, CONFIG);
    assert_eq!((output.status.code(), &printed["code"]), (Some(1), &Value::from(11)), "{printed}");
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
}

#[test]
fn an_agent_that_accepts_and_says_nothing_gives_code_11_within_five_seconds() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("cni.sock");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let began = Instant::now();
    let (_, printed) = call(&socket, &ADD, CONFIG);
    assert_eq!(printed["code"], 11, "{printed}");
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
}

#[test]
fn an_agent_whose_queue_is_full_gives_code_11_within_five_seconds() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("cni.sock");
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).expect("a socket");
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).expect("a short path")).expect("an address");
    listen(&listener, Backlog::new(0).expect("0 is allowed")).expect("a listener");
    // The queue takes one more than it is asked to.
    let _waits = UnixStream::connect(&path).expect("a place in the queue");
    let began = Instant::now();
    let (_, printed) = call(&path, &ADD, CONFIG);
    assert_eq!(printed["code"], 11, "{printed}");
    assert!(printed["details"].to_string().contains("timed out"), "{printed}");
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
}

#[test]
fn status_without_an_agent_is_code_50() {
    let (output, printed) = call(Path::new("/nonexistent"), &[("CNI_COMMAND", "STATUS")], CONFIG);
    assert_eq!((output.status.code(), &printed["code"]), (Some(1), &Value::from(50)), "{printed}");
}

#[test]
fn the_call_reaches_the_agent_whole_and_the_answer_is_printed_as_it_is() {
    let done = Answer::Done { exit_code: 0, stdout: b"{\"cniVersion\":\"1.0.0\"}".to_vec() };
    let (_directory, socket, serving) = agent(vec![Answer::Wait { seconds: 20 }, done]);
    let (output, _) = call(&socket, &ADD, CONFIG);
    assert!(output.status.success());
    assert_eq!(output.stdout, b"{\"cniVersion\":\"1.0.0\"}");
    let request = serving.join().expect("the agent");
    assert_eq!(request.stdin, CONFIG.as_bytes());
    assert_eq!(request.var("CNI_NETNS"), Some("/run/netns/x"));
}

#[test]
fn an_agent_that_dies_in_the_middle_of_a_call_gives_code_11() {
    let (_directory, socket, _serving) = agent(vec![Answer::Wait { seconds: 20 }]);
    let (_, printed) = call(&socket, &ADD, CONFIG);
    assert_eq!(printed["code"], 11, "{printed}");
}
