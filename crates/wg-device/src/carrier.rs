// SPDX-License-Identifier: Apache-2.0
//! Carries packets between TUN devices and the WireGuard port. Nothing is allocated for a packet.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use isthmus_packet_io::{
    Arrived, Feature, Features, READ_BYTES, ReceiveBatch, Run, SLOT_BYTES, SendBatch, Tun, UdpPort,
};
use isthmus_wg::{Action, DeviceId, Drop, Engine, OVERHEAD_BYTES};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::bell::{Ear, sleep_until};

/// Packets taken from one device (two reads of 64 KiB of TCP), or batches from the port, before the others have their turn.
const TURN_PACKETS: usize = 94;
const TURN_BATCHES: usize = 4;
/// What is heard of at once; the rest is heard of in the next turn.
const EVENTS: usize = 64;
/// What an event belongs to: the ear, the port, or the device of this number and up.
const EAR: u64 = 0;
const PORT: u64 = 1;
const FIRST_DEVICE: u64 = 2;
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
    received: ReceiveBatch,
    outgoing: SendBatch,
    /// Packets that are about to be written, and to which device.
    held: Run,
    held_for: Option<DeviceId>,
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
            received: ReceiveBatch::default(),
            outgoing: SendBatch::default(),
            held: Run::default(),
            held_for: None,
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
        if let Some(port) = self.port.take() {
            let _ = self.epoll.delete(&port);
        }
        if let Some(port) = &port {
            self.epoll.add(port, EpollEvent::new(EpollFlags::EPOLLIN, PORT))?;
        }
        self.port = port;
        Ok(())
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
        let data = FIRST_DEVICE + u64::from(id.number());
        self.epoll.add(&tun, EpollEvent::new(EpollFlags::EPOLLIN, data))?;
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
        for event in &events[..count] {
            match event.data() {
                EAR => heard.bell = true,
                PORT => self.carry_in(now),
                number => {
                    let number = number - FIRST_DEVICE;
                    let id = self.devices.keys().find(|id| u64::from(id.number()) == number).copied();
                    let Some(id) = id else { continue };
                    if event.events().contains(EpollFlags::EPOLLERR) {
                        self.release(id);
                        heard.deleted.push(id);
                    } else {
                        self.carry_out(id, now);
                    }
                }
            }
        }
        self.engine.handle_timeout(now);
        self.send_due(now);
        self.flush();
        heard
    }

    fn carry_in(&mut self, now: Instant) {
        for _ in 0..TURN_BATCHES {
            let Some(port) = &self.port else { return };
            // What arrives is counted by who sent it; a port that fails says so when something is sent.
            let more = self.received.fill(port).unwrap_or(false);
            for Arrived { from, own, datagram } in self.received.datagrams() {
                let action = self.engine.handle_datagram(from, datagram, &mut self.scratch.from_port, now);
                if let Some(own) = own.filter(|_| is_of_a_peer(&action)) {
                    self.outgoing.asked_at(from, own);
                }
                match action {
                    Action::Deliver { device, packet } => {
                        if self.held_for != Some(device) || !self.held.add(packet) {
                            deliver(&self.devices, &mut self.held, &mut self.held_for);
                            self.held_for = Some(device);
                            self.held.add(packet);
                        }
                    }
                    Action::Send { to, datagram } => reply(&mut self.outgoing, port, (own, to), datagram),
                    Action::Dropped(reason) => *self.drops.entry(reason).or_default() += 1,
                    Action::Nothing => {}
                }
            }
            deliver(&self.devices, &mut self.held, &mut self.held_for);
            if !more {
                break;
            }
        }
    }

    fn carry_out(&mut self, id: DeviceId, now: Instant) {
        let mut carried = 0;
        while carried < TURN_PACKETS {
            let Some(tun) = self.devices.get(&id) else { return };
            let outgoing = match tun.read(&mut self.scratch.from_device) {
                Ok(outgoing) => outgoing,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    *self.drops.entry(Drop::Malformed).or_default() += 1;
                    carried += 1;
                    continue;
                }
                Err(_) => return,
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
        }
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

/// Sends from where it was asked.
fn reply(outgoing: &mut SendBatch, port: &UdpPort, (own, to): (Option<IpAddr>, SocketAddr), datagram: &[u8]) {
    if outgoing.is_full() {
        outgoing.flush(port);
    }
    outgoing.slot()[..datagram.len()].copy_from_slice(datagram);
    outgoing.commit_from(own, to, datagram.len());
}
