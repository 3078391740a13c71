// SPDX-License-Identifier: Apache-2.0
//! Ports on loopback.

use super::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn receive(port: &UdpPort, wanted: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut batch = ReceiveBatch::default();
    let mut all = Vec::new();
    while all.len() < wanted {
        let mut polled = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut polled, PollTimeout::from(2000u16)), Ok(1), "{} of {wanted} came", all.len());
        batch.fill(port).unwrap();
        all.extend(batch.datagrams().map(|arrived| (arrived.from, arrived.datagram.to_vec())));
    }
    all
}

#[test]
fn a_batch_of_mixed_sizes_and_receivers_arrives_whole_and_in_order_with_every_feature_and_without_each() {
    mixed_sizes_arrive(&Feature::all());
    mixed_sizes_arrive(&Features::new());
    for without in Feature::ALL {
        mixed_sizes_arrive(&Feature::ALL.into_iter().filter(|feature| *feature != without).collect());
    }
}

fn mixed_sizes_arrive(allowed: &Features) {
    let open = || UdpPort::open_with(0, allowed).unwrap();
    let (a, b) = (open(), open());
    assert!(a.features().is_subset(allowed));
    let port = b.port().unwrap();
    let receivers: [SocketAddr; 2] = [([127, 0, 0, 1], port).into(), ([0, 0, 0, 0, 0, 0, 0, 1], port).into()];
    let sizes = [1452, 1452, 1452, 300, 1452, 80, 80, 9000, 9000, 1];
    let mut batch = SendBatch::default();
    for (number, size) in sizes.iter().enumerate() {
        batch.slot()[..*size].fill(number as u8);
        batch.commit(receivers[number / 7], *size);
    }
    assert_eq!(batch.flush(&a), Sent { sent: 10, failed: 0 });
    assert!(batch.is_empty());
    let received = receive(&b, sizes.len());
    let got: Vec<(usize, u8)> = received.iter().map(|(_, bytes)| (bytes.len(), bytes[0])).collect();
    let want: Vec<(usize, u8)> =
        sizes.iter().enumerate().map(|(number, size)| (*size, number as u8)).collect();
    assert_eq!(got, want);
    assert!(received[0].0.is_ipv4() && received[9].0.is_ipv6());
}

#[test]
fn one_that_cannot_be_sent_does_not_hold_up_the_others() {
    let (a, b) = (UdpPort::open(0).unwrap(), UdpPort::open(0).unwrap());
    let reachable: SocketAddr = ([127, 0, 0, 1], b.port().unwrap()).into();
    let mut batch = SendBatch::default();
    for to in [reachable, "127.0.0.1:0".parse().unwrap(), reachable] {
        batch.slot()[..5].fill(9);
        batch.commit(to, 5);
    }
    assert_eq!(batch.flush(&a), Sent { sent: 2, failed: 1 });
    assert_eq!(receive(&b, 2).len(), 2);
}

#[test]
fn neighbours_of_one_size_leave_together() {
    let mut batch = SendBatch::default();
    let to: SocketAddr = ([127, 0, 0, 1], 9).into();
    for size in [1452, 1452, 700, 1452, 1452, 1452, 1453] {
        batch.commit(to, size);
    }
    assert_eq!(batch.groups_from(0, true).sizes(), [3, 3, 1]);
    assert_eq!(batch.groups_from(0, false).sizes(), [1; 7]);
}

#[test]
fn what_is_sent_leaves_from_where_the_receiver_has_asked() {
    let (a, b) = (UdpPort::open(0).unwrap(), UdpPort::open(0).unwrap());
    for (at, chosen) in [("127.0.0.1", "127.0.0.7"), ("::1", "::1")] {
        let to = SocketAddr::new(at.parse().unwrap(), b.port().unwrap());
        let chosen: IpAddr = chosen.parse().unwrap();
        let mut batch = SendBatch::default();
        batch.asked_at(to, chosen);
        // A segmented send, and one alone.
        for size in [100, 100, 100, 7, 9] {
            batch.commit(to, size);
        }
        assert_eq!(batch.flush(&a), Sent { sent: 5, failed: 0 });
        assert!(receive(&b, 5).iter().all(|(from, _)| from.ip() == chosen));
    }
}

#[test]
fn what_arrives_tells_at_which_of_our_addresses() {
    let (a, b) = (UdpPort::open(0).unwrap(), UdpPort::open(0).unwrap());
    for own in ["127.0.0.9", "::1"] {
        let own: IpAddr = own.parse().unwrap();
        let mut batch = SendBatch::default();
        (0..3).for_each(|_| batch.commit(SocketAddr::new(own, b.port().unwrap()), 100));
        batch.flush(&a);
        let mut polled = [PollFd::new(b.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut polled, PollTimeout::from(2000u16)), Ok(1));
        let mut received = ReceiveBatch::default();
        received.fill(&b).unwrap();
        assert!(received.datagrams().count() > 0);
        assert!(received.datagrams().all(|arrived| arrived.own == Some(own)));
    }
}

#[test]
fn a_source_that_is_gone_is_forgotten_and_nothing_is_lost() {
    let (a, b) = (UdpPort::open(0).unwrap(), UdpPort::open(0).unwrap());
    for (at, gone) in [("127.0.0.1", "192.0.2.200"), ("::1", "2001:db8::200")] {
        let to = SocketAddr::new(at.parse().unwrap(), b.port().unwrap());
        let mut batch = SendBatch::default();
        batch.asked_at(to, gone.parse().unwrap());
        for size in [100, 100, 100, 7] {
            batch.commit(to, size);
        }
        assert_eq!(batch.flush(&a), Sent { sent: 4, failed: 0 });
        assert_eq!(receive(&b, 4)[0].0.ip(), to.ip());
        assert_eq!(batch.sources.of(&to), None);
        // An answer that is to leave from there, too.
        batch.commit_from(gone.parse().ok(), to, 5);
        assert_eq!(batch.flush(&a), Sent { sent: 1, failed: 0 });
        assert_eq!(receive(&b, 1).len(), 1);
    }
}

#[test]
fn a_port_is_adopted_with_what_has_arrived_and_nothing_else_is() {
    let (a, b) = (UdpPort::open(0).unwrap(), UdpPort::open(0).unwrap());
    let port = b.port().unwrap();
    let mut batch = SendBatch::default();
    batch.slot()[..5].copy_from_slice(b"early");
    batch.commit(([127, 0, 0, 1], port).into(), 5);
    batch.flush(&a);
    let copy = |port: &UdpPort| port.as_fd().try_clone_to_owned().unwrap();
    assert!(UdpPort::adopt(copy(&a), port).is_err());
    assert!(UdpPort::adopt(std::fs::File::open("/dev/null").unwrap().into(), port).is_err());
    let adopted = UdpPort::adopt(copy(&b), port).unwrap();
    assert_eq!(adopted.features(), b.features());
    drop(b);
    assert_eq!(receive(&adopted, 1)[0].1, b"early");
}
