// SPDX-License-Identifier: Apache-2.0
//! Packets that the node sends into a tunnel's device are cut, packets that come out of a tunnel are joined.

use crate::Seed;
use crate::input::{Input, Script};
use crate::private::packet_io::offload::{HEADER_BYTES, Outgoing, Run};

const FRAME: u8 = 0;
const STREAM: u8 = 1;
const TCP_V4: u8 = 1;
const NEEDS_CHECKSUM: u8 = 1;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// The longest packet that is written.
const PACKET_BYTES: usize = 65535;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.below(2) as u8 == FRAME {
        cut_any(input.rest());
    } else {
        let mut packets = Vec::new();
        while !input.is_empty() && packets.len() < 256 {
            packets.extend(packet(&mut input));
        }
        let frames = joined(&packets);
        assert!(frames.len() <= packets.len());
        let again: Vec<Vec<u8>> = frames.into_iter().flat_map(cut).collect();
        assert_eq!(again, packets, "what comes out is not what went in");
    }
}

/// Whatever a device gives is refused, or cut into packets that fit.
fn cut_any(frame: &[u8]) {
    let mut frame = frame.to_vec();
    let length = frame.len();
    let Some(outgoing) = Outgoing::parse(&mut frame) else { return };
    let mut to = vec![0; PACKET_BYTES];
    assert!((1..=length).contains(&outgoing.count()));
    for index in 0..outgoing.count() {
        let written = outgoing.write(index, &mut to).expect("there is room");
        assert!(HEADER_BYTES + written <= length, "a packet longer than what it was cut from");
        assert_eq!(outgoing.write(index, &mut to[..written - 1]), None, "written beyond the room");
    }
    assert!(outgoing.count() == 1 || outgoing.write(outgoing.count() + 1, &mut to).is_none());
}

fn cut(mut frame: Vec<u8>) -> Vec<Vec<u8>> {
    let outgoing = Outgoing::parse(&mut frame).expect("a frame of ours");
    let write = |index| {
        let mut to = vec![0; PACKET_BYTES];
        let length = outgoing.write(index, &mut to).expect("there is room");
        to.truncate(length);
        to
    };
    (0..outgoing.count()).map(write).collect()
}

/// All that the device is given for these packets, one after the other.
fn joined(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (mut run, mut frames) = (Run::default(), Vec::new());
    run.join_datagrams(true);
    for packet in packets {
        if !run.add(packet) {
            frames.push(frame(&mut run));
            assert!(run.add(packet), "an empty run takes any packet");
        }
    }
    if !run.is_empty() {
        frames.push(frame(&mut run));
    }
    frames
}

fn frame(run: &mut Run) -> Vec<u8> {
    let (header, packet) = run.seal();
    let frame = [&header[..], packet].concat();
    assert!(packet.len() <= PACKET_BYTES);
    run.clear();
    frame
}

/// A packet of TCP or UDP that may follow the one before, or any bytes that can be an IP packet.
fn packet(input: &mut Input<'_>) -> Option<Vec<u8>> {
    if input.below(4) == 3 {
        let bytes = input.piece().to_vec();
        let least = if bytes.first()? >> 4 == 4 { 20 } else { 40 };
        return (bytes.len() >= least).then_some(bytes);
    }
    let shape = input.u8();
    let (v6, options, broken) = (shape & 1 != 0, usize::from(shape >> 1 & 3) * 4, shape & 0x80 != 0);
    let flags = *input.pick(&[ACK, ACK, ACK, ACK | PSH, ACK | 1, 0x02, ACK | 0x40, ACK | 0x80]);
    let segment = *input.pick(&[100, 1000, 50, 0, 1]);
    let sequence = (u32::MAX - 2000).wrapping_add(u32::from(input.u8()) * 100);
    let identification = u16::from(input.u8());
    let payload = vec![shape; segment];
    let mut packet = if shape & 0x40 != 0 {
        udp(v6, identification, &payload)
    } else {
        tcp(v6, options, (sequence, identification), flags, &payload)
    };
    if broken {
        let at = usize::from(input.u16()) % packet.len();
        packet[at] ^= input.u8();
        // Not what a tunnel gives: the engine has looked at the version.
        packet[0] = packet[0] & 0x0f | if v6 { 0x60 } else { 0x40 };
    }
    Some(packet)
}

/// With the right checksum.
fn tcp(
    v6: bool,
    options: usize,
    (sequence, identification): (u32, u16),
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = [&[0x13, 0x88, 0, 80][..], &sequence.to_be_bytes(), &[0, 0, 1, 0]].concat();
    segment.extend([(5 + options as u8 / 4) << 4, flags, 1, 0xf4, 0, 0, 0, 0]);
    segment.extend(vec![1; options]);
    segment.extend(payload);
    ip(v6, 6, identification, segment, 16)
}

/// With the right checksum.
fn udp(v6: bool, identification: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (8 + payload.len() as u16).to_be_bytes();
    let datagram = [&[0x13, 0x88, 0, 80, high, low, 0, 0][..], payload].concat();
    ip(v6, 17, identification, datagram, 6)
}

/// The packet around it; checksums are counted word by word as RFC 1071 has it.
fn ip(v6: bool, protocol: u8, identification: u16, mut segment: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let length = segment.len() as u16;
    let (mut header, pseudo) = if v6 {
        let [high, low] = length.to_be_bytes();
        let header = [&[0x60, 0, 0, 7, high, low, protocol, 63][..], &[0x11; 32]].concat();
        let pseudo = [&[0x11; 32][..], &[0, 0, high, low, 0, 0, 0, protocol]].concat();
        (header, pseudo)
    } else {
        let [high, low] = (length + 20).to_be_bytes();
        let [id_high, id_low] = identification.to_be_bytes();
        let addresses = [10, 1, 0, 1, 10, 2, 0, 1];
        let header =
            [&[0x45, 0x10, high, low, id_high, id_low, 0, 0, 63, protocol, 0, 0][..], &addresses].concat();
        let pseudo = [&addresses[..], &[0, protocol], &length.to_be_bytes()].concat();
        (header, pseudo)
    };
    if !v6 {
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum);
    }
    let sum = checksum(&[&pseudo, &segment]);
    // A datagram without a checksum would be another thing (RFC 768).
    let sum = if protocol == 17 && sum == [0, 0] { [0xff; 2] } else { sum };
    segment[checksum_at..checksum_at + 2].copy_from_slice(&sum);
    [header, segment].concat()
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

pub(crate) fn seeds() -> Vec<Seed> {
    let header = |flags: u8, kind: u8, segment: u16, start: u16| {
        let words = [40, segment, start, 16].map(u16::to_ne_bytes).concat();
        [&[flags, kind][..], &words].concat()
    };
    let whole = tcp(false, 0, (1, 2), ACK | PSH, &[7; 500]);
    let framed = |header: Vec<u8>| [&[FRAME][..], &header, &whole].concat();
    let next = |number: u8, shape: u8| [0, shape, 0, 0, number, number];
    let stream = |shape: u8| {
        (0..20)
            .fold(Script::default().bytes(&[STREAM]), |script, number| script.bytes(&next(number, shape)))
            .end()
    };
    let other =
        Script::default().bytes(&[STREAM]).bytes(&next(0, 0)).bytes(&[3]).piece(&whole).bytes(&next(1, 0));
    vec![
        ("one", framed(header(0, 0, 0, 0))),
        ("no-checksum-yet", framed(header(NEEDS_CHECKSUM, 0, 0, 20))),
        ("run", framed(header(NEEDS_CHECKSUM, TCP_V4, 100, 20))),
        ("run-of-bytes", framed(header(NEEDS_CHECKSUM, TCP_V4, 1, 20))),
        ("stream-v4", stream(0)),
        ("stream-v6", stream(3)),
        ("stream-broken", stream(0x80)),
        ("between", other.end()),
    ]
}
