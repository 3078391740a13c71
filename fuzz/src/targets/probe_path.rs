// SPDX-License-Identifier: Apache-2.0
//! What a path makes of the answers that arrive: genuine ones, late ones, and those of somebody who guesses.

use std::time::{Duration, Instant};

use isthmus_model::dataplane::Probe;

use crate::Seed;
use crate::input::{Input, Script};
use crate::private::probe::datagram::{Answer, Header, Purpose};
use crate::private::probe::mtu::Try;
use crate::private::probe::path::Path;

const WAIT: u8 = 0;
const GENUINE: u8 = 1;
const FORGED: u8 = 2;
const SIZE: u8 = 3;
const REFUSED: u8 = 4;
const KINDS: usize = 5;
/// What IPv6 passes everywhere.
const FLOOR_BYTES: u16 = 1280;

struct Run {
    path: Path,
    probe: Probe,
    now: Instant,
    /// What was sent, the newest last, and whether an answer to it was taken.
    sent: Vec<(Header, bool)>,
    sizes: Vec<Try>,
    nonces: u64,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let probe = Probe {
        target: "10.2.0.0:51821".parse().expect("an endpoint"),
        source: None,
        device: None,
        interval_ms: input.u16().into(),
        down_after: input.u8(),
        // A device's MTU is 16 bits less one, at most.
        mtu_max: input.flag().then(|| input.u16()),
    };
    let now = Instant::now();
    let path = Path::new(&probe, now);
    let mut run = Run { path, probe, now, sent: Vec::new(), sizes: Vec::new(), nonces: 1 };
    while !input.is_empty() {
        run.step(&mut input);
        run.holds();
    }
}

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(KINDS) as u8 {
            WAIT => {
                self.now += Duration::from_millis(input.u16().into());
                self.send();
            }
            GENUINE => {
                let back = input.below(8);
                let Some(at) = self.sent.len().checked_sub(1 + back) else { return };
                let more = input.flag();
                let answer = Answer { header: self.sent[at].0, reaches: ["west".to_owned()].into(), more };
                self.path.answered(&answer, input.u16(), self.now);
                self.sent[at].1 = true;
            }
            FORGED => self.forged(input),
            SIZE => {
                let back = input.below(4);
                let Some(at) = self.sizes.len().checked_sub(1 + back) else { return };
                let header = Header { purpose: Purpose::Size, sequence: 0, nonce: self.sizes[at].nonce };
                let answer = Answer { header, reaches: Default::default(), more: false };
                let size = if input.flag() { self.sizes[at].size } else { input.u16() };
                self.path.answered(&answer, size, self.now);
            }
            _ => self.path.size_refused(self.now),
        }
    }

    /// What is due now; the path is asked as often as the clock allows.
    fn send(&mut self) {
        let nonces = &mut self.nonces;
        let mut nonce = || {
            *nonces += 1;
            *nonces
        };
        if let Some((header, length)) = self.path.poll(self.now, &mut nonce) {
            assert!((128..=1232).contains(&length), "a probe of {length} bytes");
            assert!(self.path.next_at() > self.now, "it would be asked without end");
            self.sent.push((header, false));
        }
        if let Some(size) = self.path.poll_size(self.now, &mut nonce) {
            let max =
                self.probe.mtu_max.expect("nothing is searched otherwise").clamp(FLOOR_BYTES, u16::MAX - 1);
            assert!((FLOOR_BYTES..=max).contains(&size.size), "{size:?}");
            self.sizes.push(size);
        }
        if let Some(nonces) = self.path.poll_train(self.now, &mut nonce) {
            assert!(self.path.is_up() && nonces.is_sorted(), "{nonces:?}");
        }
    }

    /// Nonces of ours are small numbers here: what is guessed never is one.
    fn forged(&mut self, input: &mut Input<'_>) {
        let before = self.path.state();
        let purpose = *input.pick(&[Purpose::Alive, Purpose::Size]);
        let header = Header { purpose, sequence: input.u8().into(), nonce: u64::from(input.u32()) << 32 };
        let reaches = ["forged".to_owned()].into();
        self.path.answered(&Answer { header, reaches, more: true }, input.u16(), self.now);
        assert_eq!(self.path.state(), before, "a forged answer counts");
    }

    fn holds(&mut self) {
        let state = self.path.state();
        assert!(state.loss_percent <= 100 && !state.reaches.contains("forged"));
        assert!(!state.up || self.sent.iter().any(|(_, answered)| *answered), "up without an answer");
        assert!(state.up || state.reaches.is_empty(), "down, and reaches {:?}", state.reaches);
        if let Some(found) = state.path_mtu {
            assert!(self.sizes.iter().any(|size| size.size == found), "{found} was never tried");
        }
        if self.path.take_news() {
            assert!(!self.path.take_news(), "the same news twice");
        }
    }
}

pub(crate) fn seeds() -> Vec<Seed> {
    let path = || Script::default().u16(250).bytes(&[3, 1]).u16(1420);
    let probe = |script: Script| script.bytes(&[WAIT]).u16(250).bytes(&[GENUINE, 0, 0]).u16(0);
    let size = |script: Script| script.bytes(&[WAIT]).u16(50).bytes(&[SIZE, 0, 1]);
    let silence = |script: Script| (0..5).fold(script, |script, _| script.bytes(&[WAIT]).u16(250));
    vec![
        ("up", probe(path()).end()),
        ("down-and-up", probe(probe(silence(probe(path())))).end()),
        ("size-found", size(probe(path())).end()),
        (
            "size-refused",
            size(size(probe(path()).bytes(&[WAIT]).u16(50).bytes(&[REFUSED, WAIT]).u16(50))).end(),
        ),
        ("forged", probe(path()).bytes(&[FORGED, 0, 0, 0, 0, 0, 9, 0, 0]).end()),
        ("late", silence(path()).bytes(&[GENUINE, 3, 1]).u16(0).bytes(&[GENUINE, 3, 1]).u16(0).end()),
    ]
}
