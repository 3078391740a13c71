// SPDX-License-Identifier: Apache-2.0
//! Cutting and joining undo each other.

use proptest::prelude::*;

use super::*;

/// So near the end of the numbers that a stream begins again at zero.
const START: u32 = u32::MAX - 2000;

/// A TCP packet as a node sends it, checksums right.
fn tcp(v6: bool, sequence: u32, identification: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let layer4 = if v6 { 40 } else { 20 };
    let headers = layer4 + 32;
    let mut packet = vec![0; headers];
    if v6 {
        packet[..8].copy_from_slice(&[0x60, 0, 0, 7, 0, 0, TCP, 63]);
        packet[8..40].copy_from_slice(&[0x11; 32]);
    } else {
        packet[..10].copy_from_slice(&[0x45, 0x10, 0, 0, 0, 0, 0, 0, 63, TCP]);
        put16(&mut packet, 4, identification);
        packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 1]);
    }
    let header = &mut packet[layer4..];
    put16(header, 0, 5000);
    put16(header, 2, 80);
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&[0, 0, 1, 0]);
    header[12] = 0x80;
    header[FLAGS_AT] = flags;
    put16(header, 14, 500);
    header[20..].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6]);
    packet.extend_from_slice(payload);
    let length = packet.len();
    seal_ip_header(&mut packet, layer4, length);
    let pseudo = checksum::pseudo_header(&packet, TCP, length - layer4);
    let sum = checksum::of(&packet[layer4..], pseudo);
    packet[layer4 + TCP_CHECKSUM_AT..][..2].copy_from_slice(&sum.to_ne_bytes());
    packet
}

/// A datagram as a node sends it, checksum right.
fn udp(v6: bool, identification: u16, payload: &[u8]) -> Vec<u8> {
    let layer4 = if v6 { 40 } else { 20 };
    let mut packet = tcp(v6, 0, identification, ACK, &[]);
    packet.truncate(layer4 + UDP_HEADER_BYTES);
    packet[if v6 { 6 } else { 9 }] = UDP;
    packet.extend_from_slice(payload);
    let length = packet.len();
    seal_ip_header(&mut packet, layer4, length);
    put16(&mut packet, layer4 + UDP_LENGTH_AT, (length - layer4) as u16);
    put16(&mut packet, layer4 + UDP_CHECKSUM_AT, 0);
    let pseudo = checksum::pseudo_header(&packet, UDP, length - layer4);
    let sum = checksum::of(&packet[layer4..], pseudo);
    packet[layer4 + UDP_CHECKSUM_AT..][..2].copy_from_slice(&sum.to_ne_bytes());
    packet
}

/// All that the device would be given for these packets, one after the other.
fn joined(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut run = Run::default();
    run.join_datagrams(true);
    let mut frames = Vec::new();
    for packet in packets {
        if !run.add(packet) {
            frames.push(frame(&mut run));
            assert!(run.add(packet));
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
    run.clear();
    frame
}

/// All packets that a device's frames are cut into.
fn cut(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for mut frame in frames {
        let outgoing = Outgoing::parse(&mut frame).expect("a frame of ours");
        for index in 0..outgoing.count() {
            let mut to = vec![0; 2000];
            let length = outgoing.write(index, &mut to).expect("room");
            packets.push(to[..length].to_vec());
        }
    }
    packets
}

fn stream(v6: bool, count: u32) -> Vec<Vec<u8>> {
    (0..count).map(|n| tcp(v6, START.wrapping_add(n * 1000), n as u16, ACK, &[n as u8; 1000])).collect()
}

#[test]
fn a_stream_becomes_one_frame_and_the_frame_the_stream_again() {
    for v6 in [false, true] {
        let mut packets = stream(v6, 20);
        packets.push(tcp(v6, START.wrapping_add(20_000), 20, ACK | PSH, b"the end"));
        let frames = joined(&packets);
        assert_eq!(frames.len(), 1);
        assert_eq!(cut(frames), packets);
    }
}

#[test]
fn datagrams_of_one_size_become_one_frame_and_the_frame_the_datagrams_again() {
    for v6 in [false, true] {
        for size in [1, 64, 1000] {
            let mut packets: Vec<_> = (0u16..20).map(|n| udp(v6, n, &vec![n as u8; size])).collect();
            packets.push(udp(v6, 20, b"!"));
            let frames = joined(&packets);
            assert_eq!(frames.len(), 1);
            assert_eq!(cut(frames), packets);
        }
    }
}

#[test]
fn a_datagram_that_is_longer_or_follows_a_shorter_one_or_has_no_checksum_is_alone() {
    let frames = |sizes: &[usize]| {
        let packets: Vec<_> = (0u16..).zip(sizes).map(|(n, size)| udp(false, n, &vec![7; *size])).collect();
        joined(&packets).len()
    };
    assert_eq!(frames(&[100, 100, 100]), 1);
    assert_eq!(frames(&[100, 101]), 2);
    assert_eq!(frames(&[100, 99, 99]), 2);
    assert_eq!(frames(&[0, 0]), 2);
    assert_eq!(frames(&[100; 65]), 2, "64 at most");
    let mut unchecked = udp(false, 1, &[7; 100]);
    put16(&mut unchecked, 26, 0);
    assert_eq!(joined(&[udp(false, 0, &[7; 100]), unchecked]).len(), 2);
    let mut run = Run::default();
    assert!(
        run.add(&udp(false, 0, &[7; 100])) && !run.add(&udp(false, 1, &[7; 100])),
        "the device takes none"
    );
}

#[test]
fn what_does_not_follow_begins_a_frame_of_its_own() {
    let next = |change: fn(&mut Vec<u8>)| {
        let mut packets = stream(false, 2);
        change(&mut packets[1]);
        joined(&packets).len()
    };
    assert_eq!(next(|_| ()), 1);
    // A byte that was damaged on the way: the sum is wrong, so the receiver has to see it alone.
    assert_eq!(next(|packet| *packet.last_mut().unwrap() ^= 1), 2);
    // Another port, another flow.
    assert_eq!(next(|packet| packet[21] ^= 1), 2);
    let other = |packet: Vec<u8>| joined(&[stream(false, 1).remove(0), packet]).len();
    let sequence = START + 1000;
    assert_eq!(other(tcp(false, sequence, 1, ACK, &[0; 1000])), 1);
    assert_eq!(other(tcp(false, sequence + 1, 1, ACK, &[0; 1000])), 2, "a gap");
    assert_eq!(other(tcp(false, sequence, 7, ACK, &[0; 1000])), 2, "another identification");
    assert_eq!(other(tcp(false, sequence, 1, ACK, &[0; 1001])), 2, "longer");
    assert_eq!(other(tcp(false, sequence, 1, ACK, &[])), 2, "nothing but an acknowledgement");
    for flag in [FIN, CWR, 0x02, 0x04, 0x20, 0x40] {
        assert_eq!(other(tcp(false, sequence, 1, ACK | flag, &[0; 1000])), 2, "flag {flag:#x}");
    }
    let pushed = [tcp(false, 0, 0, ACK | PSH, &[0; 10]), tcp(false, 10, 1, ACK, &[0; 10])];
    assert_eq!(joined(&pushed).len(), 2, "nothing follows a push");
}

#[test]
fn a_checksum_that_was_left_to_the_device_is_put_in() {
    let whole = tcp(false, 5, 0, ACK, b"payload");
    let mut packet = whole.clone();
    let pseudo = checksum::fold(checksum::pseudo_header(&packet, TCP, packet.len() - 20));
    packet[36..38].copy_from_slice(&pseudo.to_ne_bytes());
    let header =
        Header { flags: NEEDS_CHECKSUM, checksum_start: 20, checksum_offset: 16, ..Header::default() };
    let frame = [&header.to_bytes()[..], &packet].concat();
    assert_eq!(cut(vec![frame]), [whole]);
}

proptest! {
    #[test]
    fn any_frame_at_all_is_cut_or_refused_without_a_panic(
        mut frame in proptest::collection::vec(any::<u8>(), 0..200),
        kind in prop_oneof![Just(0_u8), Just(TCP_V4), Just(TCP_V6), Just(TCP_V4 | ECN), Just(UDP_ANY), any::<u8>()],
        start in prop_oneof![Just(20_u16), Just(40), any::<u16>()],
        ip in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
    ) {
        let header = Header { flags: 1, kind, segment_bytes: 9, checksum_start: start, checksum_offset: 16, header_bytes: 0 };
        for (to, byte) in frame.iter_mut().zip(header.to_bytes().into_iter().chain([ip])) {
            *to = byte;
        }
        if let Some(outgoing) = Outgoing::parse(&mut frame) {
            for index in 0..=outgoing.count() {
                let _ = outgoing.write(index, &mut [0; 300]);
            }
        }
    }

    #[test]
    fn any_packets_at_all_come_out_of_the_frames_as_they_went_in(
        packets in proptest::collection::vec(prop_oneof![
            (any::<bool>(), 0..3_u32, 0..3_u16, prop_oneof![Just(ACK), Just(ACK | PSH), any::<u8>()], 0..3_usize)
                .prop_map(|(v6, n, id, flags, size)| tcp(v6, n * 100, id, flags, &[7; 100][..size * 50])),
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 60..90)).prop_map(|(v6, mut bytes)| {
                bytes[0] = if v6 { 0x60 } else { 0x45 };
                bytes
            }),
        ], 0..12)
    ) {
        prop_assert_eq!(cut(joined(&packets)), packets);
    }
}
