// SPDX-License-Identifier: Apache-2.0
//! Frames between the CNI plugin and the agent, in both directions.

use isthmus_cni::wire::{Answer, Delegated, MAX_FRAME_BYTES, Request, read_payload};

use crate::Seed;

pub(crate) fn run(bytes: &[u8]) {
    request(bytes);
    answer(bytes);
    let mut stream = bytes;
    while let Ok(payload) = read_payload(&mut stream) {
        assert!(payload.len() <= MAX_FRAME_BYTES);
        request(&payload);
        answer(&payload);
    }
}

/// There is one way to write a request.
fn request(payload: &[u8]) {
    let Ok(request) = Request::parse(payload) else { return };
    let text: usize = request.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(text + request.stdin.len() <= payload.len(), "it holds more than was sent");
    assert_eq!(read_payload(&mut request.to_frame().as_slice()).expect("a whole frame"), payload);
}

fn answer(payload: &[u8]) {
    if let Ok(delegated) = Delegated::parse(payload) {
        assert_eq!(read_payload(&mut delegated.to_frame().as_slice()).expect("a whole frame"), payload);
    }
    let Ok(answer) = Answer::parse(payload) else { return };
    assert_eq!(read_payload(&mut answer.to_frame().as_slice()).expect("a whole frame"), payload);
}

pub(super) fn add() -> Request {
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "0123456789abcdef"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"),
        ("CNI_PATH", ""),
    ];
    Request {
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        stdin: br#"{"cniVersion":"1.1.0","name":"isthmus","prevResult":{"ips":[]}}"#.to_vec(),
    }
}

pub(crate) fn seeds() -> Vec<Seed> {
    let frame = add().to_frame();
    let delegate = Answer::Delegate { plugin: "host-local".into(), command: "ADD".into() };
    let answers =
        [Answer::Wait { seconds: 20 }, delegate, Answer::Done { exit_code: 1, stdout: b"{}".to_vec() }];
    let delegated = Delegated { exit_code: 1, stdout: b"{}".to_vec() };
    let mut many = add().to_frame();
    many[8..10].copy_from_slice(&[0xff, 0xff]);
    vec![
        ("add", frame.clone()),
        ("payload-alone", frame[4..].to_vec()),
        ("cut", frame[..frame.len() - 3].to_vec()),
        ("empty", Request::default().to_frame()),
        ("delegated", delegated.to_frame()),
        ("answers", answers.iter().flat_map(Answer::to_frame).collect()),
        ("count-of-65535", many),
        ("length-of-4-gib", vec![0xff; 8]),
    ]
}
