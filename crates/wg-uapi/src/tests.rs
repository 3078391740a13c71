// SPDX-License-Identifier: Apache-2.0
//! The bytes that `wg(8)` sends (wireguard-tools 1.0.20210914, recorded), what they change, and what is answered.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use crate::{
    Changes, Endpoint, Errno, Interface, MAX_LINE_BYTES, MAX_LINES, MAX_PEERS, Operation, PeerChange,
    PeerFacts, PeerFields, PresharedKey, PrivateKey, PublicKey, Reader, Reason, Refusal, Request, SetRequest,
    answer_to_set, apply, parse,
};

/// The first scalar of RFC 7748, 5.2: a private key, and a pre-shared key too.
const SECRET: &str = "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4";
/// `SECRET` as a curve takes it.
const CLAMPED: &str = "a046e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449a44";
/// The public keys of RFC 7748, 6.1.
const ALICE: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
const BOB: &str = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// `wg setconf` of a file with both peers.
fn setconf() -> String {
    format!(
        "set=1\nprivate_key={SECRET}\nlisten_port=51820\nfwmark=51820\nreplace_peers=true\n\
         public_key={ALICE}\npreshared_key={SECRET}\nendpoint=[fe80::1%lo]:51820\n\
         persistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.1.2.3/16\n\
         allowed_ip=fd00::/8\npublic_key={BOB}\nendpoint=192.0.2.7:4000\nreplace_allowed_ips=true\n\
         allowed_ip=0.0.0.0/0\n\n"
    )
}

fn set_request(text: &str) -> SetRequest {
    match parse(text.as_bytes()) {
        Ok(Request::Set(request)) => request,
        other => panic!("{other:?} of {text:?}"),
    }
}

/// A curve on which a key is its own public half.
fn mirror(key: &PrivateKey) -> PublicKey {
    PublicKey::from_bytes(*key.as_bytes())
}

fn set(interface: &mut Interface, text: &str) -> Changes {
    apply(interface, &set_request(text), mirror).unwrap()
}

/// An interface after `wg setconf`.
fn configured() -> Interface {
    let mut interface = Interface::default();
    set(&mut interface, &setconf());
    interface
}

fn key(text: &str) -> PublicKey {
    PublicKey::from_hex(text).unwrap()
}

fn owner(interface: &Interface, address: &str) -> Option<PublicKey> {
    interface.owner(address.parse().unwrap())
}

fn reason(text: &str) -> Reason {
    parse(text.as_bytes()).unwrap_err().reason
}

#[test]
fn what_wg_setconf_sends_is_what_the_interface_is_set_to() {
    let mut interface = Interface::default();
    let changes = set(&mut interface, &setconf());
    assert!(changes.private_key && changes.listen_port && changes.fwmark);
    assert_eq!(
        changes.peers,
        [(key(ALICE), PeerChange::Added), (key(BOB), PeerChange::Added)].into_iter().collect()
    );
    assert_eq!((interface.listen_port(), interface.fwmark()), (51820, 51820));
    let alice = &interface.peers()[&key(ALICE)];
    assert_eq!(alice.preshared_key, PresharedKey::from_hex(SECRET).unwrap());
    assert_eq!(alice.keepalive_s, 25);
    let endpoint = alice.endpoint.as_ref().unwrap();
    assert_eq!((endpoint.address().to_string(), endpoint.zone()), ("[fe80::1]:51820".into(), Some("lo")));
    let networks: Vec<_> = alice.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.1.0.0/16", "fd00::/8"], "without the bits beyond the prefix");
}

#[test]
fn a_second_setconf_makes_every_peer_anew() {
    let mut interface = configured();
    let changes = set(&mut interface, &setconf());
    assert!(!changes.private_key && !changes.listen_port && !changes.fwmark);
    assert!(changes.peers.values().all(|change| *change == PeerChange::Replaced), "{changes:?}");
    assert_eq!(interface, configured());
}

#[test]
fn wg_set_takes_away_keys_port_mark_keepalive_and_networks() {
    let mut interface = configured();
    set(&mut interface, &format!("set=1\nprivate_key={ZERO}\nlisten_port=0\nfwmark=0\n\n"));
    assert_eq!((interface.private_key(), interface.public_key()), (None, None));
    assert_eq!((interface.listen_port(), interface.fwmark()), (0, 0));
    let text = format!(
        "set=1\npublic_key={ALICE}\npreshared_key={ZERO}\npersistent_keepalive_interval=0\n\
         replace_allowed_ips=true\n\n"
    );
    let changes = set(&mut interface, &text);
    let fields =
        PeerFields { preshared_key: true, keepalive: true, allowed_ips: true, ..PeerFields::default() };
    assert_eq!(changes.peers[&key(ALICE)], PeerChange::Updated(fields));
    assert!(interface.peers()[&key(ALICE)].allowed_ips.is_empty());
    assert_eq!(owner(&interface, "10.1.2.3"), Some(key(BOB)), "the shorter prefix is left");
}

#[test]
fn wg_set_removes_one_peer_and_changes_another() {
    let mut interface = configured();
    let text = format!(
        "set=1\npublic_key={ALICE}\nremove=true\npublic_key={BOB}\nendpoint=[2001:db8::1]:1\n\
         replace_allowed_ips=true\nallowed_ip=10.0.0.1/32\n\n"
    );
    let changes = set(&mut interface, &text);
    let fields = PeerFields { endpoint: true, allowed_ips: true, ..PeerFields::default() };
    assert_eq!(
        changes.peers,
        [(key(ALICE), PeerChange::Removed), (key(BOB), PeerChange::Updated(fields))].into_iter().collect()
    );
    assert_eq!(owner(&interface, "10.1.2.3"), None);
    assert_eq!(owner(&interface, "10.0.0.1"), Some(key(BOB)));
}

#[test]
fn a_network_that_is_given_to_a_peer_is_taken_from_the_other() {
    let mut interface = configured();
    let changes = set(&mut interface, &format!("set=1\npublic_key={BOB}\nallowed_ip=10.1.255.255/16\n\n"));
    let fields = PeerFields { allowed_ips: true, ..PeerFields::default() };
    assert_eq!(
        changes.peers,
        [key(ALICE), key(BOB)].map(|peer| (peer, PeerChange::Updated(fields))).into_iter().collect()
    );
    assert_eq!(interface.peers()[&key(ALICE)].allowed_ips.len(), 1);
    assert_eq!(owner(&interface, "10.1.2.3"), Some(key(BOB)));
}

#[test]
fn the_longest_prefix_owns_an_address() {
    let interface = configured();
    assert_eq!(owner(&interface, "10.1.2.3"), Some(key(ALICE)));
    assert_eq!(owner(&interface, "10.2.2.3"), Some(key(BOB)));
    assert_eq!(owner(&interface, "fd12::1"), Some(key(ALICE)));
    assert_eq!(owner(&interface, "2001:db8::1"), None);
}

#[test]
fn a_network_with_a_minus_is_taken_from_its_peer_and_from_no_other() {
    let mut interface = configured();
    let text = format!("set=1\npublic_key={BOB}\nupdate_only=true\nallowed_ip=-10.1.0.0/16\n\n");
    assert_eq!(set(&mut interface, &text), Changes::default());
    assert_eq!(interface, configured());
    let changes = set(&mut interface, &text.replace(BOB, ALICE));
    assert!(changes.peers.contains_key(&key(ALICE)));
    assert_eq!(owner(&interface, "10.1.2.3"), Some(key(BOB)));
}

#[test]
fn replacing_networks_drops_those_of_earlier_lines_too() {
    let mut interface = Interface::default();
    let text = format!(
        "set=1\npublic_key={ALICE}\nallowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=::/0\n\n"
    );
    set(&mut interface, &text);
    assert_eq!(owner(&interface, "10.0.0.1"), None);
    assert_eq!(owner(&interface, "::1"), Some(key(ALICE)));
}

#[test]
fn update_only_makes_no_peer() {
    let mut interface = Interface::default();
    let text = format!("set=1\npublic_key={ALICE}\nallowed_ip=10.0.0.0/8\nupdate_only=true\n\n");
    assert_eq!(set(&mut interface, &text), Changes::default());
    assert_eq!(interface, Interface::default());
}

#[test]
fn a_peer_that_comes_and_goes_in_one_request_has_not_changed() {
    let mut interface = Interface::default();
    let text = format!("set=1\npublic_key={ALICE}\npublic_key={ALICE}\nremove=true\n\n");
    assert_eq!(set(&mut interface, &text), Changes::default());
    let text = format!("{}\npublic_key={ALICE}\n\n", text.trim_end());
    assert_eq!(set(&mut interface, &text).peers[&key(ALICE)], PeerChange::Added);
}

#[test]
fn keepalives_start_once() {
    let mut interface = Interface::default();
    let text = |s| format!("set=1\npublic_key={ALICE}\npersistent_keepalive_interval={s}\n\n");
    set(&mut interface, &text(0));
    let fields = PeerFields { keepalive: true, keepalive_started: true, ..PeerFields::default() };
    assert_eq!(set(&mut interface, &text(25)).peers[&key(ALICE)], PeerChange::Updated(fields));
    let fields = PeerFields { keepalive: true, ..PeerFields::default() };
    assert_eq!(set(&mut interface, &text(26)).peers[&key(ALICE)], PeerChange::Updated(fields));
    assert_eq!(set(&mut interface, &text(26)), Changes::default());
}

#[test]
fn nobody_is_a_peer_of_itself() {
    let mut interface = Interface::default();
    set(&mut interface, &format!("set=1\npublic_key={CLAMPED}\nallowed_ip=::/0\n\n"));
    let changes = set(&mut interface, &format!("set=1\nprivate_key={SECRET}\n\n"));
    assert_eq!(changes.peers[&key(CLAMPED)], PeerChange::Removed);
    assert_eq!(owner(&interface, "::1"), None);
    let changes = set(&mut interface, &format!("set=1\npublic_key={CLAMPED}\nallowed_ip=::/0\n\n"));
    assert_eq!(changes, Changes::default());
    assert!(interface.peers().is_empty());
}

#[test]
fn any_port_is_asked_for_by_zero_and_told_by_its_number() {
    let mut interface = configured();
    assert!(set(&mut interface, "set=1\nlisten_port=0\n\n").listen_port);
    interface.bound(40000);
    assert!(!set(&mut interface, "set=1\nlisten_port=40000\n\n").listen_port);
    assert!(interface.answer_to_get(|_| PeerFacts::default()).contains("\nlisten_port=40000\n"));
}

#[test]
fn an_interface_tells_what_it_is_set_to_and_what_it_has_seen() {
    assert_eq!(Interface::default().answer_to_get(|_| PeerFacts::default()).as_str(), "errno=0\n\n");
    let roamed = PeerFacts {
        endpoint: Some("198.51.100.9:1234".parse().unwrap()),
        last_handshake: Duration::new(1_700_000_000, 5),
        rx_bytes: 7,
        tx_bytes: u64::MAX,
    };
    let told = configured()
        .answer_to_get(|peer| if *peer == key(ALICE) { roamed.clone() } else { PeerFacts::default() });
    let expected = format!(
        "private_key={CLAMPED}\nlisten_port=51820\nfwmark=51820\n\
         public_key={ALICE}\npreshared_key={SECRET}\nprotocol_version=1\nendpoint=198.51.100.9:1234\n\
         last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\n\
         tx_bytes=18446744073709551615\nrx_bytes=7\npersistent_keepalive_interval=25\n\
         allowed_ip=10.1.0.0/16\nallowed_ip=fd00::/8\n\
         public_key={BOB}\npreshared_key={ZERO}\nprotocol_version=1\nendpoint=192.0.2.7:4000\n\
         last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n\
         persistent_keepalive_interval=0\nallowed_ip=0.0.0.0/0\nerrno=0\n\n"
    );
    assert_eq!(told.as_str(), expected);
}

#[test]
fn the_longest_answer_fits_the_room_that_is_made_for_it() {
    let scoped = "[2001:db80:1111:2222:3333:4444:5555:6666%interface-name1]:65535";
    let text = format!(
        "set=1\nprivate_key={SECRET}\nlisten_port=65535\nfwmark=4294967295\npublic_key={ALICE}\n\
         preshared_key={SECRET}\npersistent_keepalive_interval=65535\n\
         allowed_ip=2001:db80:1111:2222:3333:4444:5555:6666/128\n\n"
    );
    let mut interface = Interface::default();
    set(&mut interface, &text);
    let facts = PeerFacts {
        endpoint: Some(scoped.parse().unwrap()),
        last_handshake: Duration::MAX,
        rx_bytes: u64::MAX,
        tx_bytes: u64::MAX,
    };
    let told = interface.answer_to_get(|_| facts.clone());
    assert!(told.contains(scoped));
    assert!(told.len() <= 256 + 640 + 64, "{}", told.len());
}

#[test]
fn errors_are_answered_by_the_number_that_wg_reads() {
    assert_eq!(answer_to_set(Ok(())), "errno=0\n\n");
    assert_eq!(answer_to_set(Err(Errno::AddressInUse)), "errno=-98\n\n");
    let refusal = |text: &str| parse(text.as_bytes()).unwrap_err();
    assert_eq!(refusal("set=1\nlisten_port=x\n\n").answer(), "errno=-22\n\n");
    assert_eq!(refusal("set=1\nlisten_port\n\n").answer(), "errno=-71\n\n");
    assert_eq!(refusal("get=1\nlisten_port\n\n").answer(), "errno=22\n\n");
    assert_eq!(refusal("bet=1\n\n").answer(), "errno=22\n\n");
}

#[test]
fn a_malformed_line_is_told_by_its_number() {
    for (line, key) in [
        ("private_key=77", "private_key"),
        ("listen_port=65536", "listen_port"),
        ("listen_port=+1", "listen_port"),
        ("listen_port=", "listen_port"),
        ("fwmark=0x1", "fwmark"),
        ("fwmark=4294967296", "fwmark"),
        ("replace_peers=1", "replace_peers"),
        ("public_key=", "public_key"),
        (&format!("public_key={ZERO}"), "public_key"),
        (&format!("public_key={ALICE}00"), "public_key"),
    ] {
        assert_eq!(
            reason(&format!("set=1\nfwmark=1\n{line}\n\n")),
            Reason::BadValue { line: 3, key },
            "{line}"
        );
    }
    for (line, key) in [
        ("remove=false", "remove"),
        ("update_only=TRUE", "update_only"),
        ("preshared_key=7", "preshared_key"),
        ("endpoint=192.0.2.7", "endpoint"),
        ("endpoint=west.example:1", "endpoint"),
        ("endpoint=2001:db8::1:1", "endpoint"),
        ("endpoint=[192.0.2.7]:1", "endpoint"),
        ("endpoint=[fe80::1%]:1", "endpoint"),
        ("endpoint=[fe80::1%eth0/1]:1", "endpoint"),
        ("endpoint=[fe80::1%sixteen-letters.]:1", "endpoint"),
        ("persistent_keepalive_interval=off", "persistent_keepalive_interval"),
        ("persistent_keepalive_interval=-1", "persistent_keepalive_interval"),
        ("replace_allowed_ips=", "replace_allowed_ips"),
        ("allowed_ip=10.0.0.0", "allowed_ip"),
        ("allowed_ip=10.0.0.0/33", "allowed_ip"),
        ("allowed_ip=10.0.0.0/08", "allowed_ip"),
        ("allowed_ip=--10.0.0.0/8", "allowed_ip"),
        ("allowed_ip=fe80::1%lo/64", "allowed_ip"),
        ("protocol_version=2", "protocol_version"),
    ] {
        let text = format!("set=1\npublic_key={ALICE}\n{line}\n\n");
        assert_eq!(reason(&text), Reason::BadValue { line: 3, key }, "{line}");
    }
}

#[test]
fn a_key_is_taken_only_where_it_belongs() {
    let line = Reason::UnknownKey { line: 2 };
    assert_eq!(reason(&format!("set=1\npreshared_key={SECRET}\n\n")), line);
    assert_eq!(reason("set=1\n=\n\n"), line);
    let line = Reason::UnknownKey { line: 3 };
    assert_eq!(reason(&format!("set=1\npublic_key={ALICE}\nlisten_port=1\n\n")), line);
    assert_eq!(reason(&format!("set=1\npublic_key={ALICE}\nrx_bytes=1\n\n")), line);
}

#[test]
fn what_is_no_request_is_refused() {
    for text in ["\n", "\n\n", "get=2\n\n", "set=1 \n\n", " get=1\n\n", "get=1\r\n\r\n"] {
        assert_eq!(reason(text), Reason::UnknownOperation, "{text:?}");
    }
    for text in ["", "set=1", "set=1\n", "get=1\n", "set=1\nfwmark=1", "set=1\nfwmark=1\n"] {
        assert_eq!(reason(text), Reason::Unfinished, "{text:?}");
    }
    assert_eq!(reason("get=1\n\n\n"), Reason::LinesInGet);
    assert_eq!(reason("set=1\nfwmark=1\n\nfwmark=1\n\n"), Reason::NoEquals { line: 3 });
    assert_eq!(set_request("set=1\n\n"), SetRequest::default());
}

#[test]
fn no_secret_is_printed() {
    let request = set_request(&setconf());
    let mut interface = Interface::default();
    apply(&mut interface, &request, |_| key(BOB)).unwrap();
    let wrong = format!("set=1\nprivate_key={SECRET}x\n\n");
    let misplaced = format!("set=1\n{SECRET}=private_key\n\n");
    let texts = [
        format!("{request:?}"),
        format!("{interface:?}"),
        parse(wrong.as_bytes()).unwrap_err().to_string(),
        format!("{:?}", parse(misplaced.as_bytes()).unwrap_err()),
    ];
    for text in texts {
        assert!(!text.contains(&SECRET[2..10]) && !text.contains("70, 227, 107"), "{text}");
    }
}

#[test]
fn a_request_with_too_many_peers_changes_nothing() {
    let many = |count: usize, from: usize| -> String {
        let sections = (from..from + count).map(|number| format!("public_key={number:064x}\n"));
        format!("set=1\nfwmark=9\n{}\n", sections.collect::<String>())
    };
    assert_eq!(reason(&many(MAX_PEERS + 1, 1)), Reason::TooManyPeers);
    let mut interface = configured();
    let refused = apply(&mut interface, &set_request(&many(MAX_PEERS - 1, 1)), mirror).unwrap_err();
    assert_eq!(refused, Refusal { operation: Some(Operation::Set), reason: Reason::TooManyPeers });
    assert_eq!(interface, configured());
    set(&mut interface, &many(MAX_PEERS - 2, 1));
    assert_eq!(interface.peers().len(), MAX_PEERS);
    let exchange = format!("set=1\npublic_key={ALICE}\nremove=true\npublic_key={MAX_PEERS:064x}\n\n");
    set(&mut interface, &exchange);
    assert_eq!(interface.peers().len(), MAX_PEERS);
}

fn read_all(reader: &mut Reader) -> Vec<Result<Request, Refusal>> {
    std::iter::from_fn(|| reader.next_request()).collect()
}

#[test]
fn a_stream_is_cut_into_requests_wherever_its_pieces_end() {
    let stream = format!("get=1\n\n{}set=1\nx\n\nbet\n\nget=1\n\nget=1\n", setconf());
    let mut reader = Reader::default();
    reader.push(stream.as_bytes());
    let whole = read_all(&mut reader);
    assert_eq!(whole.len(), 5);
    assert_eq!((&whole[0], &whole[1]), (&Ok(Request::Get), &Ok(Request::Set(set_request(&setconf())))));
    assert_eq!(whole[2].as_ref().unwrap_err().reason, Reason::NoEquals { line: 2 });
    assert_eq!(whole[3].as_ref().unwrap_err().reason, Reason::UnknownOperation);
    for size in [1, 2, 7, 64] {
        let mut reader = Reader::default();
        let mut pieces = Vec::new();
        for piece in stream.as_bytes().chunks(size) {
            reader.push(piece);
            pieces.extend(read_all(&mut reader));
        }
        assert_eq!(pieces, whole, "pieces of {size}");
    }
}

#[test]
fn a_line_without_end_ends_the_conversation() {
    let mut reader = Reader::default();
    reader.push(b"set=1\nprivate_key=");
    assert_eq!(reader.next_request(), None);
    reader.push(&[b'7'; MAX_LINE_BYTES]);
    let refusal = reader.next_request().unwrap().unwrap_err();
    assert_eq!(refusal.reason, Reason::LongLine { line: 2 });
    assert_eq!(refusal.answer(), "errno=-22\n\n");
    assert!(reader.is_over());
    reader.push(b"\n\nget=1\n\n");
    assert_eq!(reader.next_request(), None);
}

#[test]
fn a_request_without_end_ends_the_conversation() {
    let mut reader = Reader::default();
    reader.push(b"set=1\n");
    let lines = b"fwmark=1\n".repeat(4096);
    let refusal = (0..=MAX_LINES / 4096).find_map(|_| {
        reader.push(&lines);
        reader.next_request()
    });
    assert_eq!(refusal.unwrap().unwrap_err().reason, Reason::TooManyLines);
    assert!(reader.is_over());
    let whole = [&b"set=1\n"[..], &b"fwmark=1\n".repeat(MAX_LINES), b"\n"].concat();
    assert_eq!(parse(&whole).unwrap_err().reason, Reason::TooManyLines);

    let mut reader = Reader::default();
    reader.push(b"set=1\n");
    let lines = [&[b'x'; 255][..], b"\n"].concat().repeat(4096);
    let refusal = (0..33).find_map(|_| {
        reader.push(&lines);
        reader.next_request()
    });
    assert_eq!(refusal.unwrap().unwrap_err().reason, Reason::TooLong);
}

#[test]
fn an_endpoint_prints_as_it_is_read() {
    for text in ["192.0.2.7:4000", "[2001:db8::1]:1", "[fe80::1%eth0]:51820", "[fe80::1%7]:51820"] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
    }
    let scoped: std::net::SocketAddr = "[fe80::1%7]:51820".parse().unwrap();
    assert_eq!(Endpoint::from(scoped).to_string(), "[fe80::1%7]:51820");
}

/// Lines about peers of which some are the same, with networks of which some are the same.
fn section() -> impl Strategy<Value = String> {
    let key = (0_u8..6).prop_map(|number| format!("public_key={:064x}\n", 0x70 + u32::from(number)));
    let network = prop_oneof![
        (0_u8..4, 0_u8..=32).prop_map(|(byte, length)| format!("10.{byte}.0.0/{length}")),
        (0_u8..4, 0_u8..=128).prop_map(|(byte, length)| format!("fd0{byte}::/{length}")),
    ];
    let line = prop_oneof![
        6 => (any::<bool>(), network)
            .prop_map(|(add, network)| format!("allowed_ip={}{network}\n", if add { "" } else { "-" })),
        1 => Just("replace_allowed_ips=true\n".to_owned()),
        1 => Just("update_only=true\n".to_owned()),
        1 => Just("remove=true\n".to_owned()),
        1 => any::<u16>().prop_map(|seconds| format!("persistent_keepalive_interval={seconds}\n")),
        1 => any::<[u8; 32]>().prop_map(|bytes| format!("preshared_key={}\n", hex::encode(bytes))),
        1 => any::<std::net::SocketAddr>()
            .prop_map(|address| format!("endpoint={}\n", Endpoint::from(address))),
    ];
    (key, prop::collection::vec(line, 0..6)).prop_map(|(key, lines)| key + &lines.concat())
}

fn request() -> impl Strategy<Value = String> {
    let device = prop_oneof![
        Just(String::new()),
        any::<[u8; 32]>().prop_map(|bytes| format!("private_key={}\n", hex::encode(bytes))),
        // Its public half is the key of a peer.
        Just(format!("private_key={:064x}\n", 0x70)),
        any::<u16>().prop_map(|port| format!("listen_port={port}\n")),
        any::<u32>().prop_map(|mark| format!("fwmark={mark}\n")),
        Just("replace_peers=true\n".to_owned()),
    ];
    (prop::collection::vec(device, 0..3), prop::collection::vec(section(), 0..6))
        .prop_map(|(device, sections)| format!("set=1\n{}{}\n", device.concat(), sections.concat()))
}

/// An address in or beside the networks of [`section`].
fn address() -> impl Strategy<Value = IpAddr> {
    any::<u32>().prop_map(|bits| IpAddr::from((bits & 0x0003_ffff | 0x0a00_0000).to_be_bytes()))
}

/// Bytes, pieces of requests, and requests.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let pieces = "(set=1\n|get=1\n|\n|public_key=|allowed_ip=-?|endpoint=\\[?|[0-9a-f:./%=]{0,70}\n){1,8}";
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80),
        pieces.prop_map(String::into_bytes),
        request().prop_map(String::into_bytes),
    ]
}

/// What an interface tells, as a request that sets another one the same.
fn told_as_request(interface: &Interface) -> String {
    let told = interface.answer_to_get(|_| PeerFacts::default());
    let only_told = ["last_handshake_time_", "rx_bytes=", "tx_bytes=", "errno="];
    let lines = told.lines().filter(|line| !only_told.iter().any(|start| line.starts_with(start)));
    lines.fold("set=1\n".to_owned(), |text, line| text + line + if line.is_empty() { "" } else { "\n" })
        + "\n"
}

proptest! {
    #[test]
    fn what_get_tells_fed_back_as_set_gives_the_same_interface(
        requests in prop::collection::vec(request(), 1..6),
    ) {
        let mut interface = Interface::default();
        for text in &requests {
            let before = interface.clone();
            let changes = set(&mut interface, text);
            for key in before.peers().keys().chain(interface.peers().keys()) {
                let (was, is) = (before.peers().get(key), interface.peers().get(key));
                match changes.peers.get(key) {
                    None => prop_assert_eq!(was, is),
                    Some(PeerChange::Added) => prop_assert!(was.is_none() && is.is_some()),
                    Some(PeerChange::Removed) => prop_assert!(was.is_some() && is.is_none()),
                    Some(PeerChange::Replaced | PeerChange::Updated(_)) =>
                        prop_assert!(was.is_some() && is.is_some()),
                }
            }
        }
        let mut again = Interface::default();
        set(&mut again, &told_as_request(&interface));
        prop_assert_eq!(&again, &interface);
        set(&mut again, &told_as_request(&interface).replace("set=1\n", "set=1\nreplace_peers=true\n"));
        prop_assert_eq!(&again, &interface);
    }

    #[test]
    fn every_network_has_one_peer_and_the_longest_prefix_wins(
        requests in prop::collection::vec(request(), 1..6),
        addresses in prop::collection::vec(address(), 4),
    ) {
        let mut interface = Interface::default();
        for text in &requests {
            set(&mut interface, text);
        }
        let networks = || {
            let peers = interface.peers().iter();
            peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |network| (*network, *key)))
        };
        let mut distinct: Vec<_> = networks().map(|(network, _)| network).collect();
        distinct.sort_unstable();
        distinct.dedup();
        prop_assert_eq!(distinct.len(), networks().count());
        let some = networks().map(|(network, _)| network.addr()).collect::<Vec<_>>();
        for address in addresses.into_iter().chain(some) {
            let longest = networks()
                .filter(|(network, _)| network.contains(&address))
                .max_by_key(|(network, _)| network.prefix_len());
            prop_assert_eq!(interface.owner(address), longest.map(|(_, key)| key));
        }
    }

    #[test]
    fn garbage_never_panics(pieces in prop::collection::vec(garbage(), 0..8)) {
        let mut reader = Reader::default();
        let mut interface = Interface::default();
        for piece in &pieces {
            let _ = parse(piece);
            reader.push(piece);
            for read in read_all(&mut reader) {
                if let Ok(Request::Set(request)) = read {
                    apply(&mut interface, &request, mirror).unwrap();
                }
            }
        }
    }
}
