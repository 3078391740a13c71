// SPDX-License-Identifier: Apache-2.0
//! The configuration protocol of WireGuard: whatever a connection to its socket brings.

use isthmus_wg_uapi::{Interface, PeerFacts, PrivateKey, PublicKey, Reader, Refusal, Request, apply};

use crate::Seed;

const ALICE: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
const BOB: &str = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
/// A private key as a curve takes it (RFC 7748, 5.2).
const SECRET: &str = "a046e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449a44";

pub(crate) fn run(bytes: &[u8]) {
    let whole = requests(bytes, bytes.len());
    assert_eq!(requests(bytes, 7), whole, "it matters where a piece ends");
    let mut interface = Interface::default();
    for request in whole {
        match request {
            Ok(Request::Get) => fed_back(&interface),
            Ok(Request::Set(request)) => {
                let before = interface.clone();
                if apply(&mut interface, &request, mirror).is_err() {
                    assert_eq!(interface, before, "a refused request changed something");
                }
            }
            Err(refusal) => says_no_key(&refusal),
        }
    }
    fed_back(&interface);
    owned(&interface);
}

fn requests(bytes: &[u8], piece_bytes: usize) -> Vec<Result<Request, Refusal>> {
    let mut reader = Reader::default();
    let mut read = Vec::new();
    for piece in bytes.chunks(piece_bytes.max(1)) {
        reader.push(piece);
        read.extend(std::iter::from_fn(|| reader.next_request()));
    }
    read
}

/// A curve on which a key is its own public half.
fn mirror(key: &PrivateKey) -> PublicKey {
    PublicKey::from_bytes(*key.as_bytes())
}

/// What an interface tells sets another one the same.
fn fed_back(interface: &Interface) {
    let told = interface.answer_to_get(|_| PeerFacts::default());
    let only_told = ["last_handshake_time_", "rx_bytes=", "tx_bytes=", "errno="];
    let mut text = String::from("set=1\n");
    for line in told.lines().filter(|line| !line.is_empty()) {
        if !only_told.iter().any(|start| line.starts_with(start)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.push('\n');
    let Ok(Request::Set(request)) = isthmus_wg_uapi::parse(text.as_bytes()) else {
        panic!("what is told is no request");
    };
    let mut again = Interface::default();
    apply(&mut again, &request, mirror).expect("no more peers than before");
    assert!(again == *interface, "told and set it is another interface");
}

/// Each network has one peer, and the longest one owns its address.
fn owned(interface: &Interface) {
    let networks: Vec<_> = interface
        .peers()
        .iter()
        .flat_map(|(key, peer)| peer.allowed_ips.iter().map(|network| (*network, *key)))
        .collect();
    for (network, _) in &networks {
        let address = network.addr();
        let mut holders: Vec<_> = networks.iter().filter(|(other, _)| other.contains(&address)).collect();
        holders.sort_unstable_by_key(|(other, _)| other.prefix_len());
        assert_eq!(interface.owner(address), holders.last().map(|(_, key)| *key));
        assert_eq!(
            holders.iter().filter(|(other, _)| other == network).count(),
            1,
            "{network} has two peers"
        );
    }
}

fn says_no_key(refusal: &Refusal) {
    let text = format!("{refusal} {refusal:?} {}", refusal.answer());
    let digits = text.split(|letter: char| !letter.is_ascii_hexdigit()).map(str::len).max();
    assert!(digits < Some(16), "{text}");
}

pub(crate) fn seeds() -> Vec<Seed> {
    let setconf = format!(
        "set=1\nprivate_key={SECRET}\nlisten_port=51820\nfwmark=51820\nreplace_peers=true\n\
         public_key={ALICE}\npreshared_key={SECRET}\nendpoint=[fe80::1%lo]:51820\n\
         persistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.1.2.3/16\n\
         allowed_ip=fd00::/8\npublic_key={BOB}\nendpoint=192.0.2.7:4000\nreplace_allowed_ips=true\n\
         allowed_ip=0.0.0.0/0\n\n"
    );
    let peer = |lines: &str| format!("set=1\npublic_key={ALICE}\n{lines}\n\n");
    let one_takes_from_another =
        peer(&format!("allowed_ip=::/0\nallowed_ip=10.0.0.0/8\npublic_key={BOB}\nallowed_ip=10.255.0.0/8"));
    let comes_and_goes =
        peer(&format!("public_key={ALICE}\nremove=true\npublic_key={ALICE}\nupdate_only=true"));
    let own = format!("set=1\npublic_key={SECRET}\n\nset=1\nprivate_key={SECRET}\npublic_key={SECRET}\n\n");
    let several = format!("get=1\n\n{setconf}{setconf}get=1\n\nset=1\nlisten_port\n\nget=1\n\n");
    let texts = [
        ("setconf", setconf),
        ("one-takes-from-another", one_takes_from_another),
        ("given-up", peer("allowed_ip=10.0.0.0/8\nallowed_ip=-10.0.0.0/8\nprotocol_version=1")),
        ("networks-replaced-late", peer("allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=::/0")),
        ("comes-and-goes", comes_and_goes),
        ("own-key", own),
        ("several", several),
        ("bad-values", "set=1\nfwmark=0x1\n\nset=1\nlisten_port=65536\n\nset=1\nreplace_peers=1\n\n".into()),
        ("secret-as-a-key", format!("set=1\n{SECRET}=1\n\nset=1\nprivate_key={SECRET}0\n\n")),
        ("long-line", format!("set=1\nprivate_key={}\n\n", SECRET.repeat(5))),
        ("no-end", "set=1\nlisten_port=1\n".into()),
    ];
    texts.map(|(name, text)| (name, text.into_bytes())).to_vec()
}
