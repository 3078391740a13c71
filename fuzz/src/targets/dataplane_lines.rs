// SPDX-License-Identifier: Apache-2.0
//! The lines between the agent and the data plane process, in both directions.

use std::fmt::Debug;
use std::time::Instant;

use isthmus_model::dataplane::{
    DataplaneConfig, DataplaneState, KeySlot, LaneKeys, Probe, ProbeState, Report, Request, Tunnel,
    TunnelState, WireGuardMode,
};
use isthmus_wg::{Engine, PrivateKey};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Seed;
use crate::private::dataplane::wire::{MAX_FRAME_BYTES, read_frame, write_frame};

pub(crate) fn run(bytes: &[u8]) {
    let mut stream = bytes;
    loop {
        let before = stream.len();
        match read_frame(&mut stream) {
            Ok(Some(line)) => {
                assert_eq!(line.len() + 1, before - stream.len());
                assert!(line.len() <= MAX_FRAME_BYTES && !line.contains(&b'\n'));
                stays::<Report>(&line);
                if let Some(Request::Configure(config)) = stays(&line) {
                    runs(&config);
                }
            }
            Ok(None) => return assert_eq!(before, 0, "the end comes at the end"),
            Err(_) => return,
        }
    }
}

/// What is read is the same after it was written and read.
fn stays<T: DeserializeOwned + Serialize + PartialEq + Debug>(line: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(line).ok()?;
    let mut stream = Vec::new();
    write_frame(&mut stream, &serde_json::to_string(&value).expect("it is JSON")).expect("it is short");
    let again = read_frame(&mut stream.as_slice()).expect("one line").expect("a line");
    assert_eq!(serde_json::from_slice::<T>(&again).expect("what was written"), value);
    Some(value)
}

/// Each tunnel runs, or is refused by name.
fn runs(config: &DataplaneConfig) {
    let now = Instant::now();
    let mut engine = Engine::new(5, now);
    engine.set_keys([(KeySlot::First, PrivateKey::from_bytes([1; 32]))].into());
    // Each lane has an engine of its own; it is enough to look at one.
    let first = config.tunnels.iter().filter(|(_, tunnel)| tunnel.lane == 0);
    let tunnels = first.map(|(name, tunnel)| (name.clone(), tunnel.clone())).collect();
    for _ in 0..2 {
        let refusals = engine.configure(&tunnels, now);
        assert_eq!(refusals.len() + engine.facts().len(), tunnels.len());
        for facts in engine.facts().values() {
            assert_eq!(facts.endpoint, config.tunnels[&facts.name].endpoint);
        }
    }
}

fn config() -> DataplaneConfig {
    let device = || "iw-0123456789ab".parse().expect("a name");
    let tunnel = |seed: u8| Tunnel {
        peer: "west".parse().expect("a name"),
        peer_key: PrivateKey::from_bytes([seed; 32]).public().to_string(),
        endpoint: Some("192.0.2.1:51820".parse().expect("an endpoint")),
        allowed: ["10.2.0.0/16", "fd00:2::/64"].map(|net| net.parse().expect("a network")).into(),
        keepalive_s: 25,
        key_slot: KeySlot::First,
        lane: 0,
    };
    let probe = Probe {
        target: "[fd00:2::]:51821".parse().expect("an endpoint"),
        source: Some([10, 1, 0, 0].into()),
        device: Some(device()),
        interval_ms: 250,
        down_after: 3,
        mtu_max: Some(1420),
    };
    DataplaneConfig {
        gateway: true,
        listen_port: 51820,
        key_generation: 2,
        tunnels: [(device(), tunnel(2)), ("iw-000000000001".parse().expect("a name"), tunnel(2))].into(),
        probes: [("tunnel/iw-0123456789ab".to_owned(), probe)].into(),
        respond_on: [[172, 18, 0, 2].into()].into(),
    }
}

fn state() -> DataplaneState {
    let tunnel = TunnelState {
        last_handshake_s: Some(1_800_000_000),
        received_bytes: u64::MAX,
        ..TunnelState::default()
    };
    let probe = ProbeState {
        up: true,
        rtt_us: Some(900),
        reaches: ["west".to_owned()].into(),
        ..ProbeState::default()
    };
    let lane = |key: &str| LaneKeys { public_key: key.to_owned(), ..LaneKeys::default() };
    DataplaneState {
        public_key: Some("ours".to_owned()),
        lanes: vec![lane("ours"), LaneKeys { next_public_key: Some("next".to_owned()), ..lane("second") }],
        mode: WireGuardMode::Kernel,
        tunnels: [("iw-0123456789ab".parse().expect("a name"), tunnel)].into(),
        probes: [("tunnel/iw-0123456789ab".to_owned(), probe)].into(),
        ..DataplaneState::default()
    }
}

pub(crate) fn seeds() -> Vec<Seed> {
    let line = |text: String| format!("{text}\n").into_bytes();
    let json = |request: &Request| serde_json::to_string(request).expect("it is JSON");
    let report = |report: &Report| serde_json::to_string(report).expect("it is JSON");
    let requests = [json(&Request::Configure(config())), json(&Request::RotateKey)].join("\n");
    vec![
        ("requests", line(requests.clone())),
        ("cut", requests.into_bytes()),
        ("state", line(report(&Report::State(state())))),
        ("failed", line(report(&Report::Failed("tunnel iw-0: \"no\"\n".to_owned())))),
        ("empty-lines", b"\n\n{}\n".to_vec()),
    ]
}
