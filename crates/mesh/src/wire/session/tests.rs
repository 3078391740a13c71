// SPDX-License-Identifier: Apache-2.0
use proptest::prelude::*;

use super::*;
use crate::record::{
    AddressFamily, Cluster, Endpoint, Endpoints, Export, ExportKind, Record, SessionAffinity, announcement,
    limits,
};
use crate::wire::encode;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn cluster(id: &str) -> ClusterId {
    id.parse().unwrap()
}

fn export(name: &str, note: usize) -> Record {
    Record::Export(Export {
        namespace: "shop".into(),
        name: name.into(),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        kind: ExportKind::ClusterSetIP,
        ports: Vec::new(),
        session_affinity: SessionAffinity::None,
        internal_traffic_policy: None,
        traffic_distribution: None,
        ip_families: Vec::new(),
        labels: [("note".to_owned(), note.to_string())].into(),
        annotations: Default::default(),
    })
}

fn exports(count: usize, note: usize) -> Announcement {
    announcement((0..count).map(|n| export(&format!("s{n:05}"), note)))
}

fn slice(name: &str, count: usize) -> Record {
    let endpoint = |n: usize| Endpoint {
        address: [10, 2, (n >> 8) as u8, n as u8].into(),
        ready: true,
        serving: true,
        terminating: false,
        hostname: Some(format!("web-{n}")),
        zone: Some("zone-a".to_owned()),
    };
    Record::Endpoints(Endpoints {
        namespace: "shop".into(),
        service: "web".into(),
        slice: name.into(),
        address_family: AddressFamily::IPv4,
        ports: Vec::new(),
        endpoints: (0..count).map(endpoint).collect(),
    })
}

/// Two sides with what they remember, and a wire that counts.
struct Pair {
    east: Memory,
    west: Memory,
}

#[derive(Default)]
struct Seen {
    snapshots: usize,
    deltas: usize,
    records: usize,
}

impl Pair {
    fn new() -> Self {
        Self { east: Memory::new(1), west: Memory::new(2) }
    }

    /// Connects the two and lets them speak until nobody has anything to say; west says `announcement`.
    fn talk(&mut self, announcement: &Announcement) -> Seen {
        self.talk_and_break_after(announcement, usize::MAX)
    }

    /// Breaks the connection after so many messages of west.
    fn talk_and_break_after(&mut self, announcement: &Announcement, messages: usize) -> Seen {
        let (hello_east, hello_west) = (self.east.hello(cluster("east")), self.west.hello(cluster("west")));
        let mut east = Session::new(&mut self.east, Timings::default(), ms(0));
        let mut west = Session::new(&mut self.west, Timings::default(), ms(0));
        west.publish(announcement);
        east.handle_message(hello_west, ms(0)).unwrap();
        west.handle_message(hello_east, ms(0)).unwrap();
        let (mut seen, mut now, mut sent) = (Seen::default(), ms(0), 0);
        loop {
            let mut quiet = true;
            while let Some(message) = east.poll_transmit(now) {
                west.handle_message(message, now).unwrap();
                quiet = false;
            }
            while let Some(message) = west.poll_transmit(now) {
                assert!(encode(&message).len() < crate::wire::FRAME_BYTES_MAX);
                seen.count(&message);
                east.handle_message(message, now).unwrap();
                quiet = false;
                sent += 1;
                if sent >= messages {
                    return seen;
                }
            }
            match west.poll_held_back(now) {
                Some(at) => now = at,
                None if quiet => return seen,
                None => {}
            }
        }
    }

    fn east_holds(&self) -> Announcement {
        (*self.east.inbox.announcement()).clone()
    }
}

impl Seen {
    fn count(&mut self, message: &Message) {
        match message {
            Message::Snapshot { put, .. } => {
                self.snapshots += 1;
                self.records += put.len();
            }
            Message::Delta { put, remove, .. } => {
                self.deltas += 1;
                self.records += put.len() + remove.len();
            }
            _ => {}
        }
    }
}

#[test]
fn the_first_connection_brings_the_whole_announcement() {
    let mut pair = Pair::new();
    let seen = pair.talk(&exports(30, 0));
    assert_eq!((seen.snapshots, seen.deltas), (1, 0));
    assert_eq!(pair.east_holds(), exports(30, 0));
}

#[test]
fn after_a_break_only_what_changed_is_told() {
    let mut pair = Pair::new();
    pair.talk(&exports(30, 0));
    let mut changed = exports(29, 0);
    changed.extend(announcement([export("new", 1)]));
    let seen = pair.talk(&changed);
    assert_eq!((seen.snapshots, seen.deltas, seen.records), (0, 1, 2));
    assert_eq!(pair.east_holds(), changed);
}

#[test]
fn after_a_break_without_changes_the_application_still_learns_that_it_is_up_to_date() {
    let mut pair = Pair::new();
    pair.talk(&exports(3, 0));
    let seen = pair.talk(&exports(3, 0));
    assert_eq!((seen.snapshots, seen.deltas, seen.records), (0, 1, 0));
}

#[test]
fn a_sender_that_was_restarted_tells_the_whole_again() {
    let mut pair = Pair::new();
    pair.talk(&exports(3, 0));
    pair.west = Memory::new(3);
    let seen = pair.talk(&exports(2, 0));
    assert_eq!(seen.snapshots, 1);
    assert_eq!(pair.east_holds(), exports(2, 0));
}

#[test]
fn a_snapshot_that_breaks_off_changes_nothing() {
    let mut pair = Pair::new();
    pair.talk(&exports(3, 0));
    pair.west = Memory::new(3);
    pair.talk_and_break_after(&exports(2_000, 1), 1);
    assert_eq!(pair.east_holds(), exports(3, 0));
    pair.talk(&exports(2_000, 1));
    assert_eq!(pair.east_holds(), exports(2_000, 1));
}

#[test]
fn the_largest_announcement_fits_frames_of_one_mebibyte() {
    let largest = announcement((0..20).map(|n| slice(&format!("web-{n:02}"), limits::ENDPOINTS_PER_NAME)));
    let mut pair = Pair::new();
    let seen = pair.talk(&largest);
    assert!(seen.snapshots > 1);
    assert_eq!(pair.east_holds(), largest);
}

#[test]
fn a_record_that_changes_while_the_snapshot_is_told_is_never_missing() {
    let mut pair = Pair::new();
    let (hello_east, hello_west) = (pair.east.hello(cluster("east")), pair.west.hello(cluster("west")));
    let mut east = Session::new(&mut pair.east, Timings::default(), ms(0));
    let mut west = Session::new(&mut pair.west, Timings::default(), ms(0));
    west.publish(&exports(1_500, 0));
    east.handle_message(hello_west, ms(0)).unwrap();
    west.handle_message(hello_east, ms(0)).unwrap();
    let first = west.poll_transmit(ms(0)).unwrap();
    assert!(matches!(first, Message::Snapshot { done: false, .. }));
    east.handle_message(first, ms(0)).unwrap();
    // One that was told goes away, one that was not told changes.
    let mut changed = exports(1_500, 0);
    changed.retain(|key, _| *key != export("s00000", 0).key());
    changed.extend(announcement([export("s01499", 7)]));
    west.publish(&changed);
    while let Some(message) = west.poll_transmit(ms(0)) {
        east.handle_message(message, ms(0)).unwrap();
    }
    assert_eq!(pair.east_holds(), changed);
}

#[test]
fn a_flood_of_changes_is_sent_at_the_rate_and_in_its_latest_form() {
    let mut pair = Pair::new();
    pair.talk(&Announcement::new());
    let hello = pair.east.hello(cluster("east"));
    let mut west = Session::new(&mut pair.west, Timings::default(), ms(0));
    west.handle_message(hello, ms(0)).unwrap();
    let mut records = 0;
    for note in 0..10 {
        west.publish(&exports(400, note));
        while let Some(Message::Delta { put, .. }) = west.poll_transmit(ms(0)) {
            records += put.len();
        }
    }
    assert_eq!(records, 500, "the burst and no more");
    assert_eq!(west.poll_held_back(ms(0)), Some(ms(20)));
}

#[test]
fn a_peer_that_sends_faster_than_it_may_is_cut_off() {
    let mut pair = Pair::new();
    let hello = pair.east.hello(cluster("east"));
    let mut west = Session::new(&mut pair.west, Timings::default(), ms(0));
    west.handle_message(hello, ms(0)).unwrap();
    let flood = (0..2_000).find_map(|n| west.handle_message(Message::Ping { sequence: n }, ms(0)).err());
    assert!(matches!(flood, Some(ProtocolError::TooFast)));
}

#[test]
fn the_application_hears_of_a_change_at_once_and_of_a_series_in_one() {
    let mut memory = Memory::new(1);
    let hello = Memory::new(2).hello(cluster("west"));
    let mut east = Session::new(&mut memory, Timings::default(), ms(0));
    east.handle_message(hello, ms(0)).unwrap();
    let whole = Message::Snapshot { revision: 0, put: Vec::new(), remove: Vec::new(), done: true };
    east.handle_message(whole, ms(0)).unwrap();
    for n in 0..50 {
        let put = vec![export(&format!("s{n}"), 0)];
        let change = Message::Delta { from: n, revision: n + 1, put, remove: Vec::new() };
        east.handle_message(change, ms(n)).unwrap();
    }
    let told = |session: &mut Session<'_>| -> Vec<usize> {
        let events = std::iter::from_fn(|| session.poll_event());
        let announced = events.filter_map(|event| match event {
            Event::Announced { announcement, .. } => Some(announcement.len()),
            _ => None,
        });
        announced.collect()
    };
    assert_eq!(told(&mut east), [0]);
    assert_eq!(east.poll_timeout(), ms(100));
    east.handle_timeout(ms(100)).unwrap();
    assert_eq!(told(&mut east), [50]);

    let last = Message::Delta { from: 50, revision: 51, put: vec![export("last", 0)], remove: Vec::new() };
    east.handle_message(last, ms(101)).unwrap();
    assert_eq!(told(&mut east), [] as [usize; 0]);
    east.handle_end(ms(102));
    assert_eq!(told(&mut east), [51], "the end of the connection keeps nothing back");
}

#[test]
fn a_peer_that_announces_without_end_is_cut_off() {
    let mut memory = Memory::new(1);
    let hello = Memory::new(2).hello(cluster("west"));
    let mut east = Session::new(&mut memory, Timings::default(), ms(0));
    east.handle_message(hello, ms(0)).unwrap();
    let part = |n: usize| {
        let put = (0..1_000).map(|m| export(&format!("s{n}-{m}"), 0)).collect();
        Message::Snapshot { revision: 1, put, remove: Vec::new(), done: false }
    };
    let error = (0..20).find_map(|n| east.handle_message(part(n), ms(0)).err());
    assert!(matches!(error, Some(ProtocolError::TooMuch)));
}

#[test]
fn an_invalid_record_is_named_and_the_others_stand() {
    let mut memory = Memory::new(1);
    let hello = Memory::new(2).hello(cluster("west"));
    let mut east = Session::new(&mut memory, Timings::default(), ms(0));
    east.handle_message(hello, ms(0)).unwrap();
    let put = vec![export("web", 0), export("Not_A_Name", 0)];
    east.handle_message(Message::Snapshot { revision: 2, put, remove: Vec::new(), done: true }, ms(0))
        .unwrap();
    let events: Vec<Event> = std::iter::from_fn(|| east.poll_event()).collect();
    let Some(Event::Announced { announcement, invalid }) = events.last() else { panic!("{events:?}") };
    assert_eq!(announcement.len(), 1);
    assert_eq!(invalid[0].what, "export shop/Not_A_Name");
}

#[test]
fn a_record_of_ours_that_breaks_its_form_is_withheld() {
    let mut pair = Pair::new();
    let bad = Record::Cluster(Cluster {
        cluster_id: cluster("west"),
        pod_cidrs: vec!["10.2.0.1/16".parse().unwrap()],
    });
    let mut session = Session::new(&mut pair.west, Timings::default(), ms(0));
    let withheld = session.publish(&announcement([bad, export("web", 0)]));
    assert_eq!(withheld.len(), 1);
    pair.talk(&announcement([export("web", 0)]));
    assert_eq!(pair.east_holds().len(), 1);
}

#[test]
fn changes_with_a_gap_end_the_session_and_the_next_brings_the_whole() {
    let mut pair = Pair::new();
    pair.talk(&exports(3, 0));
    let hello = pair.west.hello(cluster("west"));
    let mut east = Session::new(&mut pair.east, Timings::default(), ms(0));
    east.handle_message(hello, ms(0)).unwrap();
    let gap = Message::Delta { from: 99, revision: 100, put: Vec::new(), remove: Vec::new() };
    assert!(matches!(east.handle_message(gap, ms(0)), Err(ProtocolError::Gap)));
    assert_eq!(pair.talk(&exports(4, 0)).snapshots, 1);
    assert_eq!(pair.east_holds(), exports(4, 0));
}

#[test]
fn nothing_may_come_before_hello_and_no_second_one() {
    let mut memory = Memory::new(1);
    let hello = Memory::new(2).hello(cluster("west"));
    let mut east = Session::new(&mut memory, Timings::default(), ms(0));
    let early = east.handle_message(Message::Ping { sequence: 1 }, ms(0));
    assert!(matches!(early, Err(ProtocolError::Unexpected("Ping"))));
    east.handle_message(hello.clone(), ms(0)).unwrap();
    assert!(matches!(east.handle_message(hello, ms(0)), Err(ProtocolError::Unexpected("Hello"))));
}

#[test]
fn peers_without_a_common_version_part_with_a_reason() {
    let mut memory = Memory::new(1);
    let mut east = Session::new(&mut memory, Timings::default(), ms(0));
    let versions = Versions { min: 2, max: 3 };
    let hello = Hello { versions, cluster_id: cluster("west"), epoch: 1, have: None };
    let error = east.handle_message(Message::Hello(hello), ms(0)).unwrap_err();
    assert!(error.to_string().contains("upgrade the older side"), "{error}");
    assert!(matches!(error.bye(), Some(Message::Bye { reason: ByeReason::Version, .. })));
}

#[test]
fn a_silent_peer_is_gone_after_five_seconds_and_is_pinged_every_second_until_then() {
    let mut pair = Pair::new();
    let hello = pair.east.hello(cluster("east"));
    let mut west = Session::new(&mut pair.west, Timings::default(), ms(0));
    west.handle_message(hello, ms(0)).unwrap();
    while west.poll_transmit(ms(0)).is_some() {}
    for second in 1..5 {
        assert_eq!(west.poll_timeout(), ms(second * 1000));
        west.handle_timeout(ms(second * 1000)).unwrap();
        assert_eq!(west.poll_transmit(ms(second * 1000)), Some(Message::Ping { sequence: second }));
    }
    assert!(matches!(west.handle_timeout(ms(5_000)), Err(ProtocolError::Silent(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is announced, however often the connection breaks: once it holds, the peer holds the same.
    #[test]
    fn the_peer_ends_up_with_what_was_announced_last(
        steps in prop::collection::vec((prop::collection::btree_map(0usize..40, 0usize..3, 0..30), 1usize..6, any::<bool>()), 1..8),
    ) {
        let mut pair = Pair::new();
        let mut last = Announcement::new();
        for (wanted, break_after, restarted) in steps {
            if restarted {
                let epoch = pair.west.outbox.epoch() + 1;
                pair.west = Memory::new(epoch);
            }
            last = announcement(wanted.into_iter().map(|(n, note)| export(&format!("s{n}"), note)));
            pair.talk_and_break_after(&last, break_after);
        }
        pair.talk(&last);
        prop_assert_eq!(pair.east_holds(), last);
    }
}
