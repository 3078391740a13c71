// SPDX-License-Identifier: Apache-2.0
//! Tests of the client.

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);

fn client(now: Instant) -> Client {
    let identity = Identity {
        mac: MAC,
        client_id: b"\0c/net/eth0".to_vec(),
        provide: Options::from([(12, b"web".to_vec())]),
        request: vec![code::SUBNET_MASK, code::ROUTER],
        broadcast: false,
    };
    let patience = Patience { first: Duration::from_secs(2), most: Duration::from_secs(8) };
    Client::new(identity, patience, 0x8080_8080, now)
}

fn answer(kind: Kind, more: &[(u8, &[u8])]) -> Message {
    let given: [(u8, &[u8]); 3] = [
        (code::SERVER, &[10, 0, 0, 1]),
        (code::SUBNET_MASK, &[255, 255, 255, 0]),
        (code::LEASE_SECONDS, &[0, 0, 3, 32]),
    ];
    let mut options: Options = given.iter().map(|(code, value)| (*code, value.to_vec())).collect();
    options.extend(more.iter().map(|(code, value)| (*code, value.to_vec())));
    Message {
        kind,
        reply: true,
        xid: 0x8080_8080,
        broadcast: false,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: ADDRESS,
        mac: MAC,
        options,
    }
}

fn kind(sent: &Option<Outgoing>) -> Option<Kind> {
    sent.as_ref().map(|sent| sent.message.kind)
}

fn bound(start: Instant) -> Client {
    let mut client = client(start);
    client.poll(start);
    client.handle(&answer(Kind::Offer, &[]), start);
    client.poll(start);
    assert_eq!(client.handle(&answer(Kind::Ack, &[]), start), Some(Event::Bound));
    client
}

#[test]
fn a_lease_is_discovered_offered_requested_and_acknowledged() {
    let start = Instant::now();
    let mut client = client(start);
    let (sent, _) = client.poll(start);
    let sent = sent.unwrap().message;
    assert_eq!(
        (sent.kind, &sent.options[&12], &sent.options[&code::WANTED]),
        (Kind::Discover, &b"web".to_vec(), &vec![1, 3])
    );
    assert_eq!(client.poll(start), (None, None), "nothing is due");
    assert_eq!(client.handle(&answer(Kind::Offer, &[]), start), None);
    let (sent, _) = client.poll(start);
    let sent = sent.unwrap().message;
    assert_eq!(
        (sent.kind, sent.options[&code::REQUESTED_ADDRESS].as_slice()),
        (Kind::Request, &[10, 0, 0, 50][..])
    );
    assert_eq!(client.handle(&answer(Kind::Ack, &[]), start), Some(Event::Bound));
    assert_eq!(client.lease().unwrap().0.address.to_string(), "10.0.0.50/24");
    assert_eq!(client.next(), Some(start + Duration::from_secs(400)));
}

#[test]
fn what_is_not_answered_is_said_again_twice_as_late_each_time() {
    let start = Instant::now();
    let mut client = client(start);
    let mut last = start;
    for wanted in [0, 2, 4, 8, 8].map(Duration::from_secs) {
        let now = client.next().unwrap();
        assert_eq!(kind(&client.poll(now).0), Some(Kind::Discover));
        let pause = now - last;
        assert!(pause >= wanted - wanted / 8 && pause <= wanted + wanted / 8, "{pause:?}, not {wanted:?}");
        last = now;
    }
}

#[test]
fn a_lease_is_renewed_by_its_server_then_by_anybody_and_ends_when_nobody_answers() {
    let start = Instant::now();
    let mut client = bound(start);
    let at = |seconds| start + Duration::from_secs(seconds);
    let sent = client.poll(at(400)).0.unwrap();
    assert_eq!((sent.to, sent.message.ciaddr), (Some(SERVER), ADDRESS));
    assert!(!sent.message.options.contains_key(&code::SERVER), "RFC 2131, section 4.3.2");
    assert_eq!(client.next(), Some(at(550)), "half of what is left until rebinding");
    let other = answer(Kind::Ack, &[(code::SERVER, &[10, 0, 0, 2])]);
    assert_eq!(client.handle(&other, at(500)), None, "of another server, too early");
    assert_eq!(client.poll(at(700)).0.unwrap().to, None, "everybody may prolong it now");
    let mut rebound = client.clone();
    assert_eq!(rebound.handle(&other, at(701)), Some(Event::Bound));
    let (sent, event) = client.poll(at(800));
    assert!(sent.is_none() && matches!(event, Some(Event::Lost(_))));
    assert_eq!((client.next(), client.release()), (None, None));
    assert!(client.reason().unwrap().contains("10.0.0.50 ended"));
}

#[test]
fn a_renewed_lease_counts_from_the_request() {
    let start = Instant::now();
    let mut client = bound(start);
    let now = start + Duration::from_secs(400);
    client.poll(now);
    assert!(client.handle(&answer(Kind::Ack, &[]), now + Duration::from_secs(3)).is_some());
    assert_eq!(client.next(), Some(now + Duration::from_secs(400)));
    let held =
        Client::holding(client.identity.clone(), client.patience, 7, client.lease().unwrap().0.clone(), now);
    assert_eq!((held.next(), held.lease()), (client.next(), client.lease()));
}

#[test]
fn what_is_for_others_or_was_not_asked_for_changes_nothing() {
    let start = Instant::now();
    let mut client = bound(start);
    assert_eq!(client.handle(&answer(Kind::Nak, &[]), start), None, "nothing was asked");
    client.poll(start + Duration::from_secs(400));
    let strangers = [
        Message { xid: 8, ..answer(Kind::Nak, &[]) },
        Message { mac: Mac([2, 0, 0, 0, 0, 8]), ..answer(Kind::Nak, &[]) },
        Message { reply: false, ..answer(Kind::Nak, &[]) },
        answer(Kind::Nak, &[(code::SERVER, &[10, 0, 0, 2])]),
        Message { yiaddr: Ipv4Addr::new(10, 0, 0, 51), ..answer(Kind::Ack, &[]) },
    ];
    for stranger in strangers {
        assert_eq!(client.handle(&stranger, start), None);
        assert!(client.release().is_some());
    }
    assert!(client.reason().unwrap().contains("it is for 10.0.0.51"));
}

#[test]
fn a_refused_request_begins_again_and_a_lease_that_is_taken_back_is_lost() {
    let start = Instant::now();
    let mut refused = client(start);
    refused.poll(start);
    refused.handle(&answer(Kind::Offer, &[]), start);
    refused.poll(start);
    assert_eq!(refused.handle(&answer(Kind::Nak, &[(code::TEXT, b"in\nuse")]), start), None);
    assert!(refused.reason().unwrap().contains("inuse"));
    let next = refused.next().unwrap();
    assert_eq!(kind(&refused.poll(next).0), Some(Kind::Discover));
    let mut taken = bound(start);
    taken.poll(start + Duration::from_secs(400));
    assert!(matches!(taken.handle(&answer(Kind::Nak, &[]), start), Some(Event::Lost(_))));
    assert!(taken.release().is_none());
}

#[test]
fn an_offer_that_is_of_no_use_is_passed_over_and_its_fault_is_told() {
    let start = Instant::now();
    let mut client = client(start);
    client.poll(start);
    client.handle(&answer(Kind::Offer, &[(code::SUBNET_MASK, &[])]), start);
    assert!(client.reason().unwrap().contains("10.0.0.1 is of no use: it has no subnet mask"));
    client.handle(&answer(Kind::Offer, &[]), start);
    assert_eq!(kind(&client.poll(start).0), Some(Kind::Request), "another one is taken");
}

#[test]
fn an_offer_that_is_never_confirmed_is_given_up() {
    let start = Instant::now();
    let mut client = client(start);
    client.poll(start);
    client.handle(&answer(Kind::Offer, &[]), start);
    let mut kinds = Vec::new();
    for _ in 0..6 {
        let next = client.next().unwrap();
        kinds.extend(kind(&client.poll(next).0));
    }
    assert_eq!(kinds, [vec![Kind::Request; 4], vec![Kind::Discover]].concat());
}

#[test]
fn a_lease_is_given_back_by_the_client_identifier_that_it_was_given_to() {
    let start = Instant::now();
    let of_release = |client: &Client| client.release().unwrap().message.options[&code::CLIENT_ID].clone();
    assert_eq!(of_release(&bound(start)), b"\0c/net/eth0");
    let mut named = bound(start);
    named.identity.provide.insert(code::CLIENT_ID, b"web".to_vec());
    let asked = named.poll(start + Duration::from_secs(400)).0.unwrap();
    assert_eq!(
        (of_release(&named), &asked.message.options[&code::CLIENT_ID]),
        (b"web".to_vec(), &b"web".to_vec())
    );
}

#[test]
fn what_failed_on_the_node_is_due_again_and_so_is_the_end_of_a_lease_until_it_is_done() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut client = bound(start);
    client.postpone(at(800));
    assert_eq!(client.next(), Some(at(800) + RETRY_PAUSE), "the end is not taken for done");
    for now in [at(810), at(820)] {
        assert!(matches!(client.poll(now), (None, Some(Event::Lost(_)))));
        assert_eq!((client.next(), client.poll(now)), (None, (None, None)));
        client.postpone(now);
    }
    let mut unsent = bound(start);
    unsent.poll(at(400));
    unsent.postpone(at(400));
    assert_eq!(unsent.next(), Some(at(550)), "what is due later anyway stays");
}

#[test]
fn a_short_lease_is_not_listened_for_beyond_its_next_message() {
    let start = Instant::now();
    let mut client = bound(start);
    let at = |seconds| start + Duration::from_secs(seconds);
    client.poll(at(690));
    assert_eq!(client.listens_until(at(690), Duration::from_secs(5)), at(695));
    assert_eq!(client.listens_until(at(690), Duration::from_secs(60)), at(700));
}
