// SPDX-License-Identifier: Apache-2.0
//! A peer that sends whatever it likes, whenever it likes, over one connection after another. Time is virtual.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_mesh::record::{Announcement, Record, RecordKey, announcement};
use isthmus_mesh::wire::{
    Event, Hello, Memory, Message, Position, ProtocolError, Session, Timings, Versions,
};

use super::mesh_frames::encodes_to_itself;
use super::mesh_records::{cluster, export, gateway, slice};
use crate::Seed;
use crate::input::{Input, Script};

const JSON: u8 = 0;
const HELLO: u8 = 1;
const SNAPSHOT: u8 = 2;
const DELTA: u8 = 3;
const PING: u8 = 4;
const WAIT: u8 = 5;
const PUBLISH: u8 = 6;
const HANG_UP: u8 = 7;
const KINDS: usize = 8;
/// More messages than this are not taken from a session at once.
const TURN: usize = 64;

/// What the peer has announced, said once more and plainly.
#[derive(Default)]
struct Model {
    held: BTreeMap<RecordKey, Record>,
    arriving: Option<BTreeMap<RecordKey, Record>>,
    position: Option<Position>,
    epoch: u64,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (mut memory, mut model, mut now) = (Memory::new(7), Model::default(), Duration::ZERO);
    while !input.is_empty() {
        let fault = converse(&mut input, &mut memory, &mut model, &mut now);
        if matches!(fault, Some(ProtocolError::TooMuch)) {
            return;
        }
        assert_eq!(memory.inbox.position(), model.position);
        assert_eq!(*memory.inbox.announcement(), model.valid(), "after {fault:?}");
        assert_eq!(memory.inbox.invalid().len(), model.held.len() - model.valid().len());
    }
}

/// One connection, until it ends by a fault or is hung up.
fn converse(
    input: &mut Input<'_>,
    memory: &mut Memory,
    model: &mut Model,
    now: &mut Duration,
) -> Option<ProtocolError> {
    encodes_to_itself(&memory.hello("east".parse().expect("a label")));
    let mut session = Session::new(memory, Timings::default(), *now);
    model.arriving = None;
    while !input.is_empty() {
        let outcome = match input.below(KINDS) as u8 {
            HANG_UP => return None,
            WAIT => {
                *now += Duration::from_millis(input.u16().into());
                let outcome = session.handle_timeout(*now);
                assert!(outcome.is_err() || session.poll_timeout() > *now, "it would be woken without end");
                outcome
            }
            PUBLISH => {
                let own = announcement((0..input.u8()).map(|number| export("shop", &format!("s{number}"))));
                assert_eq!(session.publish(&own), [], "ours are in their form");
                Ok(())
            }
            kind => match message(kind, input) {
                Some(message) => hear(&mut session, model, message, *now),
                None => Ok(()),
            },
        };
        take(&mut session, model, *now);
        if let Err(fault) = outcome {
            fault.bye().iter().for_each(encodes_to_itself);
            session.handle_end(*now);
            if !matches!(fault, ProtocolError::TooMuch) {
                take(&mut session, model, *now);
            }
            return Some(fault);
        }
    }
    None
}

fn message(kind: u8, input: &mut Input<'_>) -> Option<Message> {
    match kind {
        JSON => serde_json::from_slice(input.piece()).ok(),
        HELLO => {
            let versions = Versions { min: u32::from(input.u8() % 3), max: u32::from(input.u8() % 3) };
            let (epoch, held) = (u64::from(input.u8() % 4), input.flag());
            let have = held.then(|| Position { epoch: 7, revision: input.u8().into() });
            Some(Message::Hello(Hello {
                versions,
                cluster_id: "west".parse().expect("a label"),
                epoch,
                have,
            }))
        }
        SNAPSHOT => {
            let (revision, done) = (input.u8().into(), input.flag());
            Some(Message::Snapshot { revision, put: records(input), remove: keys(input), done })
        }
        DELTA => {
            let (from, revision) = (input.u8().into(), input.u8().into());
            Some(Message::Delta { from, revision, put: records(input), remove: keys(input) })
        }
        _ => Some(Message::Ping { sequence: input.u8().into() }),
    }
}

fn records(input: &mut Input<'_>) -> Vec<Record> {
    (0..input.below(8)).map(|_| record(input)).collect()
}

fn keys(input: &mut Input<'_>) -> Vec<RecordKey> {
    records(input).iter().map(Record::key).collect()
}

/// A record out of a few, so that they meet again; some are not in their form.
fn record(input: &mut Input<'_>) -> Record {
    let name = *input.pick(&["a", "b", "c", "Not_A_Name"]);
    match input.below(4) {
        0 => cluster(&[*input.pick(&["10.2.0.0/16", "10.2.0.1/16", "fd00:2::/64"])]),
        1 => gateway(name, input.u8(), "10.2.0.0"),
        2 => export(input.pick::<&str>(&["shop", "Shop"]), name),
        _ => slice(name, input.u8()),
    }
}

fn hear(
    session: &mut Session<'_>,
    model: &mut Model,
    message: Message,
    now: Duration,
) -> Result<(), ProtocolError> {
    let outcome = session.handle_message(message.clone(), now);
    match &outcome {
        Ok(()) => model.apply(message),
        Err(ProtocolError::Gap) => model.position = None,
        Err(_) => {}
    }
    outcome
}

/// What the session has to say, to the peer and to us.
fn take(session: &mut Session<'_>, model: &Model, now: Duration) {
    for _ in 0..TURN {
        let Some(message) = session.poll_transmit(now) else { break };
        encodes_to_itself(&message);
    }
    while let Some(event) = session.poll_event() {
        if let Event::Announced { announcement, invalid } = event {
            let valid = model.valid();
            assert_eq!(invalid.len(), model.held.len() - valid.len());
            assert_eq!(*announcement, valid, "told something that was not announced");
        }
    }
}

impl Model {
    fn valid(&self) -> Announcement {
        announcement(self.held.values().filter(|record| record.check().is_ok()).cloned())
    }

    /// Takes a message that was not refused.
    fn apply(&mut self, message: Message) {
        match message {
            Message::Hello(hello) => self.epoch = hello.epoch,
            Message::Snapshot { revision, put, remove, done } => {
                change(self.arriving.get_or_insert_default(), put, &remove);
                if done {
                    self.held = self.arriving.take().unwrap_or_default();
                    self.position = Some(Position { epoch: self.epoch, revision });
                }
            }
            Message::Delta { from, revision, put, remove } => {
                assert_eq!(self.position, Some(Position { epoch: self.epoch, revision: from }));
                change(&mut self.held, put, &remove);
                self.position = Some(Position { epoch: self.epoch, revision });
            }
            _ => {}
        }
    }
}

fn change(held: &mut BTreeMap<RecordKey, Record>, put: Vec<Record>, remove: &[RecordKey]) {
    held.retain(|key, _| !remove.contains(key));
    held.extend(put.into_iter().map(|record| (record.key(), record)));
}

pub(crate) fn seeds() -> Vec<Seed> {
    let hello = || Script::default().bytes(&[HELLO, 1, 1, 2, 0]);
    let snapshot = |done: u8| [SNAPSHOT, 5, done, 2, 0, 2, 0, 0, 1, 7, 0];
    let delta = [DELTA, 5, 6, 1, 1, 2, 0, 0];
    let ping = Message::Ping { sequence: 3 };
    let ping = serde_json::to_vec(&ping).expect("a message is JSON");
    let silence = |script: Script| script.bytes(&[WAIT]).u16(1000).bytes(&[PING, 1, WAIT]).u16(5000);
    vec![
        ("snapshot-and-delta", silence(hello().bytes(&snapshot(1)).bytes(&delta)).end()),
        (
            "broken-snapshot",
            hello()
                .bytes(&snapshot(0))
                .bytes(&[HANG_UP])
                .bytes(&[HELLO, 1, 1, 2, 0])
                .bytes(&snapshot(1))
                .end(),
        ),
        ("gap", hello().bytes(&snapshot(1)).bytes(&[DELTA, 99, 100, 0, 0]).end()),
        (
            "resumed",
            Script::default().bytes(&[PUBLISH, 40, HELLO, 0, 2, 1, 1, 9, PUBLISH, 30, WAIT]).u16(100).end(),
        ),
        ("json", hello().bytes(&[JSON]).piece(&ping).end()),
        ("no-common-version", Script::default().bytes(&[HELLO, 2, 2, 0, 0]).end()),
        ("early-ping", Script::default().bytes(&[PING, 1, HELLO, 1, 1, 0, 0]).end()),
        ("flood", hello().bytes(&[PING, 0].repeat(1100)).end()),
    ]
}
