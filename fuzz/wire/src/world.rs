// SPDX-License-Identifier: Apache-2.0
//! The two hosts, what is on its way between them, and what has to hold whatever the wire does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_wg::OVERHEAD_BYTES;

use crate::clock::Clock;
use crate::host::{Host, Kind, Sent};

/// Which host.
pub const EAST: usize = 0;
/// Which host.
pub const WEST: usize = 1;
/// Somebody on the way, with no key.
pub const STRANGER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 66)), 4000);
/// How often the engines are woken.
const TICK: Duration = Duration::from_millis(250);
/// Of a packet: IPv4 header and number.
const LEAST_BYTES: usize = 28;

/// A datagram on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flying {
    /// Of which host, and from where.
    pub by: usize,
    /// The sender's address when it was sent.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub datagram: Vec<u8>,
}

/// Everything there is.
pub struct World {
    /// What time it is.
    pub clock: Clock,
    /// East and west.
    pub hosts: [Host; 2],
    /// On their way, oldest first.
    pub flying: Vec<Flying>,
    /// Datagrams that have arrived, oldest first.
    pub arrived: Vec<Flying>,
    /// Packets that went in, by number: of which host, and what.
    sent: BTreeMap<u64, (usize, Vec<u8>)>,
    /// Packets that came out.
    delivered: BTreeSet<u64>,
    /// Counters of data messages, by the host that they are for and its index.
    counters: [BTreeMap<[u8; 4], BTreeSet<u64>>; 2],
    /// Whether a handshake message has reached the host.
    met: [bool; 2],
}

impl World {
    /// East knows where west is, and west where east is if `both`.
    pub fn new(kinds: [Kind; 2], both: bool) -> Self {
        let clock = Clock::start();
        let now = clock.now();
        let mut east = Host::new(kinds[EAST], 1, 2, "10.2.0.0/16", "192.0.2.1:51820", now);
        let mut west = Host::new(kinds[WEST], 2, 1, "10.1.0.0/16", "192.0.2.2:51820", now);
        east.leads_to(west.address);
        if both {
            west.leads_to(east.address);
        }
        let mut world = Self {
            clock,
            hosts: [east, west],
            flying: Vec::new(),
            arrived: Vec::new(),
            sent: BTreeMap::new(),
            delivered: BTreeSet::new(),
            counters: Default::default(),
            met: [false; 2],
        };
        world.settle_due();
        world
    }

    /// The host sends a packet of this length, or of the least that there is. Returns its number.
    pub fn send(&mut self, by: usize, length: usize) -> u64 {
        let number = self.sent.len() as u64;
        let packet = packet(by, number, length.max(LEAST_BYTES));
        let sent = self.hosts[by].send(&packet, self.clock.now());
        self.sent.insert(number, (by, packet));
        self.launch(by, sent);
        number
    }

    /// Whether the packet came out.
    pub fn is_delivered(&self, number: u64) -> bool {
        self.delivered.contains(&number)
    }

    /// How many packets went in and did not come out.
    pub fn lost(&self) -> usize {
        self.sent.len() - self.delivered.len()
    }

    /// A genuine datagram arrives where it was sent to, if somebody is there.
    pub fn arrive(&mut self, flying: &Flying) {
        if self.hosts[1 - flying.by].address == flying.to {
            self.met[1 - flying.by] |= matches!(flying.datagram[0], 1 | 2);
            self.take(1 - flying.by, flying.from, &flying.datagram);
            self.arrived.push(flying.clone());
        }
    }

    /// What nobody with a key has just made reaches the host: it moves nothing and brings nothing. Returns how many datagrams the
    /// host sent for it.
    pub fn refuse(&mut self, at: usize, datagram: &[u8]) -> usize {
        let (flying, delivered, facts) = (self.flying.len(), self.delivered.len(), self.hosts[at].facts());
        self.take(at, STRANGER, datagram);
        let after = self.hosts[at].facts();
        assert_eq!((after.endpoint, after.handshake), (facts.endpoint, facts.handshake), "it moved the peer");
        assert_eq!(after.received_bytes, facts.received_bytes);
        assert_eq!(self.delivered.len(), delivered, "it came out");
        for answer in &self.flying[flying..] {
            assert_eq!((answer.datagram[0], answer.to), (3, STRANGER), "it cost a handshake");
        }
        self.flying.len() - flying
    }

    /// Everything arrives, and what is sent for it, in order.
    pub fn settle(&mut self) {
        while !self.flying.is_empty() {
            for flying in std::mem::take(&mut self.flying) {
                self.arrive(&flying);
            }
        }
    }

    /// Time passes, in ticks; `then` happens after each.
    pub fn pass(&mut self, time: Duration, mut then: impl FnMut(&mut Self)) {
        let end = self.clock.passed() + time;
        while self.clock.passed() < end {
            let step = TICK.min(end - self.clock.passed());
            self.jump(step);
            then(self);
        }
    }

    /// Time passes at once, as for a machine that slept.
    pub fn jump(&mut self, time: Duration) {
        self.clock.advance(time);
        for by in [EAST, WEST] {
            let sent = self.hosts[by].tick(self.clock.now());
            self.launch(by, sent);
        }
    }

    /// The host has another pre-shared key and keepalive.
    pub fn set(&mut self, host: usize, preshared: Option<u8>, keepalive: Option<Duration>) {
        self.hosts[host].set(preshared, keepalive, self.clock.now());
        self.settle_due();
    }

    fn settle_due(&mut self) {
        for by in [EAST, WEST] {
            let sent = self.hosts[by].due(self.clock.now());
            self.launch(by, sent);
        }
    }

    fn take(&mut self, at: usize, from: SocketAddr, datagram: &[u8]) {
        let sent = self.hosts[at].receive(from, datagram, self.clock.now());
        for packet in std::mem::take(&mut self.hosts[at].delivered) {
            let number = u64::from_be_bytes(packet[20..28].try_into().expect("a number"));
            let (by, genuine) = self.sent.get(&number).expect("a packet that was sent");
            assert!((*by, genuine) == (1 - at, &packet), "another packet came out");
            assert!(self.delivered.insert(number), "packet {number} came out twice");
        }
        self.launch(at, sent);
    }

    /// Looks at what a host sends, and puts it onto the wire.
    fn launch(&mut self, by: usize, sent: Vec<Sent>) {
        for Sent { to, datagram } in sent {
            assert!(is_message(&datagram), "no message of the protocol: {datagram:?}");
            let index: [u8; 4] = datagram[4..8].try_into().expect("a message");
            match datagram[0] {
                // The sender takes this index for new keys, whose counters begin anew.
                1 | 2 => drop(self.counters[by].remove(&index)),
                4 => {
                    assert!(self.met[by], "data before a handshake");
                    let counter = u64::from_le_bytes(datagram[8..16].try_into().expect("a message"));
                    let fresh = self.counters[1 - by].entry(index).or_default().insert(counter);
                    assert!(fresh, "counter {counter} a second time");
                }
                _ => {}
            }
            self.flying.push(Flying { by, from: self.hosts[by].address, to, datagram });
        }
    }
}

/// Whether these are bytes of one of the four messages (WireGuard paper, 5.4), with the length that it has.
fn is_message(datagram: &[u8]) -> bool {
    match (datagram.get(..4), datagram.len()) {
        (Some([1, 0, 0, 0]), length) => length == 148,
        (Some([2, 0, 0, 0]), length) => length == 92,
        (Some([3, 0, 0, 0]), length) => length == 64,
        (Some([4, 0, 0, 0]), length) => length >= OVERHEAD_BYTES,
        _ => false,
    }
}

fn packet(by: usize, number: u64, length: usize) -> Vec<u8> {
    let mut packet = vec![number as u8; length];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(length).expect("a short packet").to_be_bytes());
    let (own, other) = ([10, 1 + by as u8, 0, 5], [10, 2 - by as u8, 0, 7]);
    packet[12..16].copy_from_slice(&own);
    packet[16..20].copy_from_slice(&other);
    packet[20..28].copy_from_slice(&number.to_be_bytes());
    packet
}
