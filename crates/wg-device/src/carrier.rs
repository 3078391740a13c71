// SPDX-License-Identifier: Apache-2.0
//! Carries packets between TUN devices and the WireGuard port. Nothing is allocated for a packet.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Instant;

use isthmus_packet_io::{
    Arrived, Feature, Features, READ_BYTES, ReceiveBatch, Run, SLOT_BYTES, SendBatch, Tun, UdpPort,
};
use isthmus_wg::{Action, DeviceId, Drop, Engine, OVERHEAD_BYTES};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::bell::{Ear, sleep_until};
use crate::relay::Relay;

/// Packets taken from one device (two reads of 64 KiB of TCP), or batches from the port, before the others have their turn.
const TURN_PACKETS: usize = 94;
const TURN_BATCHES: usize = 4;
/// What is heard of at once; the rest is heard of in the next turn.
const EVENTS: usize = 64;
/// What an event belongs to: the ear, the port, or the device of this number and up.
const EAR: u64 = 0;
const PORT: u64 = 1;
const RELAY: u64 = 2;
const FIRST_DEVICE: u64 = 3;
/// Datagrams taken from the other engine's process before the others have their turn.
const TURN_RELAYED: usize = 256;
/// The type of a cookie reply (WireGuard paper, 5.4.7).
const COOKIE_REPLY: u8 = 3;

/// An engine with its devices and its port.
pub struct Carrier {
    /// Its keys, devices and peers are the caller's to set.
    pub engine: Engine,
    /// What went no further, since the caller looked last.
    pub drops: BTreeMap<Drop, u64>,
    epoll: Epoll,
    ear: Ear,
    port: Option<UdpPort>,
    devices: BTreeMap<DeviceId, Tun>,
    /// Reads from devices and port. Else another process does, and this one writes and sends only.
    reads: bool,
    relay: Option<Relay>,
    /// Datagrams that came by the relay, so far.
    relayed: u64,
    received: ReceiveBatch,
    outgoing: SendBatch,
    /// Packets that are about to be written, and to which device.
    held: Run,
    held_for: Option<DeviceId>,
    /// At most one packet went each way in the last turn: the next one that goes out does not wait for more.
    calm: bool,
    scratch: Scratch,
}

struct Scratch {
    from_device: Vec<u8>,
    packet: Vec<u8>,
    from_port: Vec<u8>,
}

/// What is for the caller after a turn.
#[derive(Debug, Default)]
pub struct Heard {
    /// The bell was rung.
    pub bell: bool,
    /// Devices that somebody has deleted. They are no longer served.
    pub deleted: Vec<DeviceId>,
    /// The other process has gone, and the relay with it.
    pub relay_ended: bool,
}

impl Carrier {
    /// Without devices and port. [`Self::turn`] returns when `ear` hears its bell.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(engine: Engine, ear: Ear) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&ear, EpollEvent::new(EpollFlags::EPOLLIN, EAR))?;
        // Padding (16 bytes) has to fit as well.
        let packet = vec![0; SLOT_BYTES - OVERHEAD_BYTES - 16];
        Ok(Self {
            engine,
            drops: BTreeMap::new(),
            epoll,
            ear,
            port: None,
            devices: BTreeMap::new(),
            reads: true,
            relay: None,
            relayed: 0,
            received: ReceiveBatch::default(),
            outgoing: SendBatch::default(),
            held: Run::default(),
            held_for: None,
            calm: true,
            scratch: Scratch { from_device: vec![0; READ_BYTES], packet, from_port: vec![0; 65536] },
        })
    }

    /// The port, if there is one.
    pub fn port(&self) -> Option<&UdpPort> {
        self.port.as_ref()
    }

    /// Sends and receives through this port from now on, or not at all.
    ///
    /// # Errors
    /// No memory left in the kernel; there is no port then.
    pub fn set_port(&mut self, port: Option<UdpPort>) -> io::Result<()> {
        // Another process may have the same socket open: closing it here does not end that it is waited for.
        if let Some(port) = self.port.take().filter(|_| self.reads) {
            let _ = self.epoll.delete(&port);
        }
        if let Some(port) = port.as_ref().filter(|_| self.reads) {
            self.epoll.add(port, EpollEvent::new(EpollFlags::EPOLLIN, PORT))?;
        }
        self.port = port;
        Ok(())
    }

    /// Reads from devices and port, or leaves that to another process that has them open.
    ///
    /// # Errors
    /// No memory left in the kernel.
    pub fn set_reading(&mut self, reads: bool) -> io::Result<()> {
        if std::mem::replace(&mut self.reads, reads) == reads {
            return Ok(());
        }
        let port = self.port.iter().map(|port| (port.as_fd(), PORT));
        let devices = self.devices.iter().map(|(id, tun)| (tun.as_fd(), event_of(*id)));
        for (descriptor, data) in port.chain(devices) {
            if reads {
                self.epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, data))?;
            } else {
                self.epoll.delete(descriptor)?;
            }
        }
        Ok(())
    }

    /// Shares the port with the engine of another process, or no longer.
    ///
    /// # Errors
    /// No memory left in the kernel.
    pub fn set_relay(&mut self, relay: Option<Relay>) -> io::Result<()> {
        self.relay = None;
        if let Some(relay) = &relay {
            self.epoll.add(relay, EpollEvent::new(EpollFlags::EPOLLIN, RELAY))?;
        }
        self.relay = relay;
        Ok(())
    }

    /// How many datagrams the other process has handed over so far.
    pub fn relayed(&self) -> u64 {
        self.relayed
    }

    /// The TUN device that serves as this device.
    pub fn device(&self, id: DeviceId) -> Option<&Tun> {
        self.devices.get(&id)
    }

    /// Serves the engine's device with this TUN device.
    ///
    /// # Errors
    /// No memory left in the kernel.
    pub fn serve(&mut self, id: DeviceId, tun: Tun) -> io::Result<()> {
        if self.reads {
            self.epoll.add(&tun, EpollEvent::new(EpollFlags::EPOLLIN, event_of(id)))?;
        }
        self.held.join_streams(tun.features().contains(&Feature::TunStreams));
        self.held.join_datagrams(tun.features().contains(&Feature::TunDatagrams));
        self.devices.insert(id, tun);
        Ok(())
    }

    /// Serves the device no longer.
    pub fn release(&mut self, id: DeviceId) -> Option<Tun> {
        let tun = self.devices.remove(&id)?;
        let _ = self.epoll.delete(&tun);
        Some(tun)
    }

    /// What of the kernel's features is in use, of the port and of every device.
    pub fn features(&self) -> Features {
        let of_port = self.port.iter().flat_map(|port| port.features() - self.outgoing.failed());
        let mut devices = self.devices.values().map(|tun| tun.features().clone());
        let of_devices = devices.next().map(|first| devices.fold(first, |all, more| &all & &more));
        of_port.chain(of_devices.unwrap_or_default()).collect()
    }

    /// Sends nothing segmented to these from now on.
    pub fn send_singly(&mut self, to: BTreeSet<SocketAddr>) {
        self.outgoing.send_singly(to);
    }

    /// Forgets how often the bell rang.
    pub fn hush(&self) {
        self.ear.hush();
    }

    /// Waits until something is to be done, at the latest until then, and does it.
    pub fn turn(&mut self, until: Instant) -> Heard {
        let mut events = [EpollEvent::empty(); EVENTS];
        let wait = sleep_until(until.min(self.engine.poll_timeout()), Instant::now());
        let count = self.epoll.wait(&mut events, wait).unwrap_or(0);
        let now = Instant::now();
        let mut heard = Heard::default();
        let (mut came, mut went) = (0, 0);
        for event in &events[..count] {
            match event.data() {
                EAR => heard.bell = true,
                PORT => came += self.carry_in(now),
                RELAY => heard.relay_ended |= !self.carry_relayed(now),
                number => {
                    let number = number - FIRST_DEVICE;
                    let id = self.devices.keys().find(|id| u64::from(id.number()) == number).copied();
                    let Some(id) = id else { continue };
                    if event.events().contains(EpollFlags::EPOLLERR) {
                        self.release(id);
                        heard.deleted.push(id);
                    } else {
                        went += self.carry_out(id, now);
                    }
                }
            }
        }
        self.engine.handle_timeout(now);
        self.send_due(now);
        self.flush();
        self.calm = came.max(went) <= 1;
        heard
    }

    /// Returns how many datagrams came.
    fn carry_in(&mut self, now: Instant) -> usize {
        let mut came = 0;
        for _ in 0..TURN_BATCHES {
            let Some(port) = &self.port else { break };
            // What arrives is counted by who sent it; a port that fails says so when something is sent.
            let more = self.received.fill(port).unwrap_or(false);
            for Arrived { from, own, datagram } in self.received.datagrams() {
                came += 1;
                if let Some(relay) = self.relay.as_ref().filter(|relay| relay.is_theirs(datagram)) {
                    relay.send(from, datagram);
                    continue;
                }
                let action = self.engine.handle_datagram(from, datagram, &mut self.scratch.from_port, now);
                if let Some(own) = own.filter(|_| is_of_a_peer(&action)) {
                    self.outgoing.asked_at(from, own);
                }
                let way = (&self.devices, &mut self.held, &mut self.held_for);
                act(action, way, (&mut self.outgoing, Some(port), own), &mut self.drops);
            }
            deliver(&self.devices, &mut self.held, &mut self.held_for);
            if !more {
                break;
            }
        }
        came
    }

    /// Takes what the other process has received for this one; false when that has gone.
    fn carry_relayed(&mut self, now: Instant) -> bool {
        let Some(relay) = &mut self.relay else { return true };
        let mut goes_on = true;
        for _ in 0..TURN_RELAYED {
            let (from, datagram) = match relay.receive() {
                Ok(Some(received)) => received,
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
                Err(_) => {
                    goes_on = false;
                    break;
                }
            };
            self.relayed += 1;
            let action = self.engine.handle_datagram(from, datagram, &mut self.scratch.from_port, now);
            let way = (&self.devices, &mut self.held, &mut self.held_for);
            act(action, way, (&mut self.outgoing, self.port.as_ref(), None), &mut self.drops);
        }
        deliver(&self.devices, &mut self.held, &mut self.held_for);
        if !goes_on {
            self.relay = None;
        }
        goes_on
    }

    /// Returns how many packets went.
    fn carry_out(&mut self, id: DeviceId, now: Instant) -> usize {
        let mut carried = 0;
        while carried < TURN_PACKETS {
            let Some(tun) = self.devices.get(&id) else { break };
            let outgoing = match tun.read(&mut self.scratch.from_device) {
                Ok(outgoing) => outgoing,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    *self.drops.entry(Drop::Malformed).or_default() += 1;
                    carried += 1;
                    continue;
                }
                Err(_) => break,
            };
            carried += outgoing.count();
            for index in 0..outgoing.count() {
                let Some(length) = outgoing.write(index, &mut self.scratch.packet) else {
                    *self.drops.entry(Drop::Malformed).or_default() += 1;
                    continue;
                };
                if self.outgoing.is_full() {
                    flush(&mut self.outgoing, self.port.as_ref());
                }
                let packet = &self.scratch.packet[..length];
                match self.engine.handle_packet(id, packet, self.outgoing.slot(), now) {
                    Action::Send { to, datagram } => {
                        let length = datagram.len();
                        self.outgoing.commit(to, length);
                    }
                    Action::Dropped(reason) => *self.drops.entry(reason).or_default() += 1,
                    Action::Nothing | Action::Deliver { .. } => {}
                }
            }
            if std::mem::take(&mut self.calm) {
                self.flush();
            }
        }
        carried
    }

    fn send_due(&mut self, now: Instant) {
        loop {
            if self.outgoing.is_full() {
                self.flush();
            }
            let Some((to, datagram)) = self.engine.poll_transmit(self.outgoing.slot(), now) else { return };
            let length = datagram.len();
            self.outgoing.commit(to, length);
        }
    }

    fn flush(&mut self) {
        flush(&mut self.outgoing, self.port.as_ref());
    }
}

/// Hands over what was held back. While the device is down it goes nowhere, as on any wire.
fn deliver(devices: &BTreeMap<DeviceId, Tun>, held: &mut Run, held_for: &mut Option<DeviceId>) {
    let Some(id) = held_for.take() else { return };
    match devices.get(&id) {
        Some(tun) => drop(tun.write(held)),
        None => held.clear(),
    }
}

/// Sends what is due; without a port it goes nowhere. What the kernel refuses is lost, as on any wire.
fn flush(outgoing: &mut SendBatch, port: Option<&UdpPort>) {
    match port {
        _ if outgoing.is_empty() => {}
        Some(port) => drop(outgoing.flush(port)),
        None => outgoing.clear(),
    }
}

/// Whether somebody with a key has sent what was answered so. A cookie is asked of anybody.
fn is_of_a_peer(action: &Action<'_>) -> bool {
    match action {
        Action::Send { datagram, .. } => datagram.first() != Some(&COOKIE_REPLY),
        Action::Deliver { .. } | Action::Nothing => true,
        Action::Dropped(_) => false,
    }
}

/// Does what a datagram came to, answering from where it was asked. What goes to one device is held back, to be joined with what comes next.
fn act(
    action: Action<'_>,
    (devices, held, held_for): (&BTreeMap<DeviceId, Tun>, &mut Run, &mut Option<DeviceId>),
    (outgoing, port, own): (&mut SendBatch, Option<&UdpPort>, Option<IpAddr>),
    drops: &mut BTreeMap<Drop, u64>,
) {
    match action {
        Action::Deliver { device, packet } => {
            if *held_for != Some(device) || !held.add(packet) {
                deliver(devices, held, held_for);
                *held_for = Some(device);
                held.add(packet);
            }
        }
        Action::Send { to, datagram } => {
            if outgoing.is_full() {
                flush(outgoing, port);
            }
            outgoing.slot()[..datagram.len()].copy_from_slice(datagram);
            outgoing.commit_from(own, to, datagram.len());
        }
        Action::Dropped(reason) => *drops.entry(reason).or_default() += 1,
        Action::Nothing => {}
    }
}

fn event_of(id: DeviceId) -> u64 {
    FIRST_DEVICE + u64::from(id.number())
}
