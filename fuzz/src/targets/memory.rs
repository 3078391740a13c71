// SPDX-License-Identifier: Apache-2.0
//! What a node acted on last, as it lies on its disk.

use isthmus_compiler::{
    Block, Egress, Encapsulation, Node, NodeIntent, Peer, Pool, RemoteGateway, RemoteLane,
};
use isthmus_node_agent::memory::Memory;

use super::{compiled, folder};
use crate::Seed;

const NODE: &str = "n1";

/// The file.
pub(crate) fn run(bytes: &[u8]) {
    let folder = folder();
    let path = folder.path().join("intent.json");
    std::fs::write(&path, bytes).expect("a place for files");
    let node = NODE.parse().expect("a name");
    let mut memory = Memory::open(path.clone(), &node);
    let Some(mut intent) = memory.intent().cloned() else { return };
    assert_eq!(intent.node.as_ref(), Some(&node), "another node's intent");
    compiled::holds(&intent);

    intent.key_generation ^= 1;
    memory.remember(&intent).expect("the disk takes it");
    let again = Memory::open(path.clone(), &node);
    assert_eq!(again.intent(), Some(&intent));
    assert_eq!(Memory::open(path, &"n2".parse().expect("a name")).intent(), None);
}

fn intent() -> NodeIntent {
    let net = |text: &str| text.parse().expect("a network");
    let address = |text: &str| text.parse().expect("an address");
    let mut intent = NodeIntent { node: Some(NODE.parse().expect("a name")), ..NodeIntent::default() };
    for (name, number) in [(NODE, 1), ("n2", 2)] {
        let node = Node {
            addresses: vec![address(&format!("172.18.{number}.1")), address(&format!("fd18::{number}"))],
            vxlan_mac: Some([2, 0, 0, 0, 0, number]),
            tunnel_mtus: [("west".parse().expect("a name"), 1380)].into(),
        };
        intent.nodes.insert(name.parse().expect("a name"), node);
        let block =
            Block { pool: "pods".parse().expect("a name"), node: name.parse().expect("a name"), pod: None };
        intent.blocks.insert(net(&format!("10.1.{number}.0/26")), block);
    }
    let pool = Pool {
        cidr: net("10.1.0.0/16"),
        encapsulation: Encapsulation::CrossSubnet,
        nat_outgoing: true,
        serves_this_node: true,
        disabled: false,
        namespaces: None,
        reserved: Vec::new(),
        on_request: Vec::new(),
        external: false,
    };
    intent.pools.insert("pods".parse().expect("a name"), pool);
    let gateway = RemoteGateway {
        public_key: "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".to_owned(),
        endpoints: vec!["192.0.2.1:51820".parse().expect("an endpoint")],
        mesh_addresses: vec![address("10.2.0.0")],
        ports: [("ours".to_owned(), 51822)].into(),
        lanes: vec![RemoteLane { public_key: "lane".to_owned(), port: 51820 }],
    };
    let peer = Peer {
        remote_cidrs: [net("10.2.0.0/16"), net("fd00:2::/64")].into(),
        closed_cidrs: [net("10.4.0.0/16")].into(),
        gateways: [("g1".to_owned(), gateway.clone()), ("g2".to_owned(), gateway)].into(),
        local_gateways: [NODE.parse().expect("a name")].into(),
    };
    intent.peers.insert("west".parse().expect("a name"), peer);
    let egress = Egress {
        pods: [("shop".to_owned(), "web".to_owned())].into(),
        destinations: [net("203.0.113.0/24")].into(),
        gateway: Some("n2".parse().expect("a name")),
        addresses: vec![address("172.18.0.200")],
    };
    intent.egress.insert("fixed".to_owned(), egress);
    intent
}

pub(crate) fn seeds() -> Vec<Seed> {
    let stored = |version: u32, intent: &NodeIntent| {
        let stored = serde_json::json!({ "version": version, "intent": intent });
        serde_json::to_vec(&stored).expect("an intent is JSON")
    };
    let mut behind = intent();
    behind.peers.values_mut().for_each(|peer| peer.local_gateways = ["n2".parse().expect("a name")].into());
    let whole = stored(1, &intent());
    vec![
        ("gateway", whole.clone()),
        ("behind-a-gateway", stored(1, &behind)),
        (
            "nothing",
            stored(1, &NodeIntent { node: Some(NODE.parse().expect("a name")), ..NodeIntent::default() }),
        ),
        ("another-version", stored(2, &intent())),
        ("another-node", stored(1, &NodeIntent::default())),
        ("cut", whole[..whole.len() / 2].to_vec()),
    ]
}
