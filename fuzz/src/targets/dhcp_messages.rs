// SPDX-License-Identifier: Apache-2.0
//! What a server, or anybody on the link, says to a DHCP client.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::Seed;
use crate::input::{Input, Script};
use crate::private::dhcp::client::{Client, Event, Identity, Patience};
use crate::private::dhcp::wire::{Kind, Mac, Message, Options, code, frame, payload};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);
const XID: u32 = 0x0102_0304;

/// Seconds that pass and a payload, again and again. A payload with the right beginning is made one for the client.
pub(crate) fn run(bytes: &[u8]) {
    let _ = payload(bytes);
    let mut input = Input::new(bytes);
    let start = Instant::now();
    let mut client = client(start);
    let mut now = start;
    while !input.is_empty() {
        now += Duration::from_secs(u64::from(input.u16()));
        speaks(&mut client, now);
        let Some(mut message) = Message::parse(input.piece()) else { continue };
        assert_eq!(Message::parse(&message.encode()).as_ref(), Some(&message), "written otherwise than read");
        (message.xid, message.mac) = (XID, MAC);
        let before = client.lease().map(|(lease, _)| lease.address.addr());
        let event = client.handle(&message, now);
        let held = client.lease().map(|(lease, _)| lease.address.addr());
        match (before, held) {
            (Some(before), Some(held)) => assert_eq!(before, held, "the pod's address changed"),
            (None, Some(held)) => assert_eq!((held, event), (message.yiaddr, Some(Event::Bound))),
            (Some(_), None) => assert!(matches!(event, Some(Event::Lost(_)))),
            (None, None) => assert_eq!(event, None),
        }
        lease_is_sound(&client);
    }
}

fn client(now: Instant) -> Client {
    let identity = Identity {
        mac: MAC,
        client_id: b"\0c/net/eth0".to_vec(),
        provide: Options::from([(12, b"web".to_vec())]),
        request: vec![1, 3],
        broadcast: false,
    };
    Client::new(identity, Patience { first: Duration::from_secs(2), most: Duration::from_secs(62) }, XID, now)
}

/// What it sends can be read, and it does not go on at once.
fn speaks(client: &mut Client, now: Instant) {
    let (outgoing, _) = client.poll(now);
    assert!(client.next().is_none_or(|next| next > now), "it would not rest");
    for outgoing in outgoing.into_iter().chain(client.release()) {
        let payload = outgoing.message.encode();
        assert_eq!(Message::parse(&payload), Some(outgoing.message));
        assert!(frame((MAC, Ipv4Addr::UNSPECIFIED), Ipv4Addr::BROADCAST, &payload).len() < 1514);
    }
}

fn lease_is_sound(client: &Client) {
    let Some((lease, since)) = client.lease() else { return };
    assert!(!lease.address.addr().is_unspecified() && !lease.address.addr().is_multicast());
    if let Some(times) = lease.times {
        assert!(Duration::ZERO < times.renew && times.renew <= times.rebind && times.rebind <= times.end);
        assert!(client.next().is_some_and(|next| next > since));
    }
}

fn answer(kind: Kind, more: &[(u8, &[u8])]) -> Vec<u8> {
    let given: [(u8, &[u8]); 4] = [
        (code::SERVER, &[10, 0, 0, 1]),
        (code::SUBNET_MASK, &[255, 255, 255, 0]),
        (code::ROUTER, &[10, 0, 0, 1]),
        (code::LEASE_SECONDS, &[0, 0, 3, 32]),
    ];
    let mut options: Options = given.iter().map(|(code, value)| (*code, value.to_vec())).collect();
    options.extend(more.iter().map(|(code, value)| (*code, value.to_vec())));
    let (reply, broadcast, ciaddr) = (true, false, Ipv4Addr::UNSPECIFIED);
    let yiaddr = Ipv4Addr::new(10, 0, 0, 50);
    Message { kind, reply, xid: XID, broadcast, ciaddr, yiaddr, mac: MAC, options }.encode()
}

fn script(steps: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut script = Script::default();
    for (seconds, payload) in steps {
        script = script.u16(*seconds).piece(payload);
    }
    script.end()
}

pub(crate) fn seeds() -> Vec<Seed> {
    let offer = (0, answer(Kind::Offer, &[]));
    let ack = |after, more: &[(u8, &[u8])]| (after, answer(Kind::Ack, more));
    let routes: [(u8, &[u8]); 2] = [
        (code::CLASSLESS_ROUTES, &[16, 10, 9, 10, 0, 0, 1, 0, 10, 0, 0, 1]),
        (code::STATIC_ROUTES, &[192, 0, 2, 0, 10, 0, 0, 1]),
    ];
    let times: [(u8, &[u8]); 2] =
        [(code::RENEW_SECONDS, &[0, 0, 0, 0]), (code::REBIND_SECONDS, &[255, 255, 255, 255])];
    let mut overloaded = answer(Kind::Offer, &[(code::OVERLOAD, &[3])]);
    overloaded[108..112].copy_from_slice(&[121, 2, 8, 10]);
    let mut foreign = frame((MAC, Ipv4Addr::UNSPECIFIED), Ipv4Addr::BROADCAST, &offer.1);
    foreign[34..38].copy_from_slice(&[0, 67, 0, 68]);
    vec![
        ("lease-and-renewal", script(&[offer.clone(), ack(0, &[]), ack(400, &[])])),
        ("routes", script(&[offer.clone(), ack(0, &routes)])),
        ("times-that-make-no-sense", script(&[offer.clone(), ack(0, &times), ack(400, &times)])),
        (
            "refused",
            script(&[offer.clone(), (0, answer(Kind::Nak, &[(code::TEXT, b"no")])), (3, offer.1.clone())]),
        ),
        ("taken-back", script(&[offer.clone(), ack(0, &[]), (400, answer(Kind::Nak, &[]))])),
        ("ended", script(&[offer.clone(), ack(0, &[]), ack(800, &[])])),
        ("names-full-of-options", script(&[(0, overloaded)])),
        ("frame", foreign),
    ]
}
