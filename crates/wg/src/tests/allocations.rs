// SPDX-License-Identifier: Apache-2.0
//! A packet costs no allocation.

use super::*;

#[test]
fn nothing_is_allocated_for_a_packet_or_a_datagram() {
    let (mut east, to_west, mut west, to_east, mut wire) = pair();
    east.send(to_west, &east_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    west.send(to_east, &west_packet(), &mut wire);
    settle(&mut east, &mut west, &mut wire);
    let (packet, answer) = (east_packet(), west_packet());
    let (mut sealed, mut opened) = ([0; BUFFER], [0; BUFFER]);
    let mut carry = |from: (&mut Side, DeviceId), to: &mut Side, packet: &[u8]| {
        let now = Instant::now();
        let action = from.0.engine.handle_packet(from.1, packet, &mut sealed, now);
        let Action::Send { datagram, .. } = action else { panic!("{action:?}") };
        let action = to.engine.handle_datagram(from.0.address, datagram, &mut opened, now);
        let Action::Deliver { packet: delivered, .. } = action else { panic!("{action:?}") };
        assert_eq!(delivered, packet);
        from.0.engine.handle_timeout(now);
    };
    let counted = allocation_counter::measure(|| {
        for _ in 0..1000 {
            carry((&mut east, to_west), &mut west, &packet);
            carry((&mut west, to_east), &mut east, &answer);
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
