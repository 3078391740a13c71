// SPDX-License-Identifier: Apache-2.0
//! The node's intent on disk: what an agent acts on that starts while the API server does not answer.
//!
//! It holds decisions only (nodes, blocks, peers, policies), no secrets and no pods' addresses. Without proof that it is
//! current it may add to the kernel and give addresses out, and never take anything away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use isthmus_compiler::NodeIntent;
use isthmus_model::ids::NodeName;
use serde::{Deserialize, Serialize};

use crate::conflist::write_atomically;

const VERSION: u32 = 1;
/// More than 5,000 nodes with their blocks need.
const MAX_BYTES: u64 = 32 << 20;

#[derive(Serialize, Deserialize)]
struct Stored<I> {
    version: u32,
    intent: I,
}

/// Why nothing is remembered.
#[derive(Debug, thiserror::Error)]
enum Forgotten {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not as this version writes it: {0}")]
    Content(#[from] serde_json::Error),
    #[error("it has version {0}")]
    Version(u32),
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("it belongs to the node {0:?}")]
    OtherNode(Option<NodeName>),
}

/// The file, and what it holds.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    stored: Option<NodeIntent>,
}

impl Memory {
    /// Reads what `node` acted on last. A file that is missing, damaged or another node's counts as none.
    pub fn open(path: PathBuf, node: &NodeName) -> Self {
        let stored = match read(&path, node) {
            Ok(intent) => Some(intent),
            Err(Forgotten::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what the node knew before is left aside");
                None
            }
        };
        Self { path, stored }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the node acted on last.
    pub fn intent(&self) -> Option<&NodeIntent> {
        self.stored.as_ref()
    }

    /// Writes the intent, if it is another one, atomically.
    ///
    /// # Errors
    /// The disk is full or read-only: then the file stays as it was.
    pub fn remember(&mut self, intent: &NodeIntent) -> io::Result<()> {
        if self.stored.as_ref() == Some(intent) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&Stored { version: VERSION, intent })?;
        write_atomically(&self.path, &bytes, 0o600)?;
        self.stored = Some(intent.clone());
        Ok(())
    }
}

fn read(path: &Path, node: &NodeName) -> Result<NodeIntent, Forgotten> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(Forgotten::TooLarge);
    }
    let stored: Stored<NodeIntent> = serde_json::from_slice(&fs::read(path)?)?;
    if stored.version != VERSION {
        return Err(Forgotten::Version(stored.version));
    }
    if stored.intent.node.as_ref() != Some(node) {
        return Err(Forgotten::OtherNode(stored.intent.node));
    }
    Ok(stored.intent)
}

#[cfg(test)]
mod tests {
    use isthmus_compiler::{
        AskingPod, Block, Egress, Encapsulation, Node, Peer, PodId, Pool, RemoteGateway, RemoteLane,
    };

    use super::*;

    fn name() -> NodeName {
        "n1".parse().unwrap()
    }

    fn intent() -> NodeIntent {
        let gateway = RemoteGateway {
            public_key: "key".into(),
            endpoints: vec!["172.18.0.9:51820".parse().unwrap(), "[fd18::9]:51820".parse().unwrap()],
            mesh_addresses: vec!["10.2.0.0".parse().unwrap()],
            ports: [("ours".into(), 51822)].into(),
            lanes: vec![RemoteLane { public_key: "key".into(), port: 51820 }],
        };
        let peer = Peer {
            remote_cidrs: ["10.2.0.0/16".parse().unwrap()].into(),
            closed_cidrs: ["10.3.0.0/16".parse().unwrap()].into(),
            gateways: [("g".to_owned(), gateway)].into(),
            local_gateways: [name()].into(),
        };
        let egress = Egress {
            pods: [("shop".to_owned(), "web".to_owned())].into(),
            destinations: ["203.0.113.0/24".parse().unwrap()].into(),
            gateway: Some(name()),
            addresses: vec!["172.18.0.200".parse().unwrap()],
        };
        let node = Node {
            addresses: vec!["172.18.0.1".parse().unwrap()],
            vxlan_mac: Some([2, 0, 0, 0, 0, 1]),
            tunnel_mtus: [("west".parse().unwrap(), 1380)].into(),
        };
        let pool = Pool {
            cidr: "10.1.0.0/16".parse().unwrap(),
            encapsulation: Encapsulation::CrossSubnet,
            nat_outgoing: true,
            serves_this_node: true,
            disabled: false,
            namespaces: None,
            reserved: Vec::new(),
            on_request: Vec::new(),
            external: false,
        };
        let pod = Some(PodId { namespace: "shop".into(), name: "web".into(), uid: "u".into() });
        let block = Block { pool: "four".parse().unwrap(), node: name(), pod };
        let asking = AskingPod { uid: "u".into(), asks: Err("no pool".into()) };
        NodeIntent {
            node: Some(name()),
            nodes: [(name(), node)].into(),
            pools: [("four".parse().unwrap(), pool)].into(),
            blocks: [("10.1.0.0/26".parse().unwrap(), block)].into(),
            peers: [("west".parse().unwrap(), peer)].into(),
            egress: [("fixed".to_owned(), egress)].into(),
            key_generation: 3,
            namespaces: [("shop".to_owned(), Ok(["four".parse().unwrap()].into()))].into(),
            pods: [("shop".to_owned(), [("web".to_owned(), asking)].into())].into(),
        }
    }

    #[test]
    fn what_was_remembered_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("intent");
        let mut memory = Memory::open(path.clone(), &name());
        assert_eq!(memory.intent(), None);
        memory.remember(&intent()).unwrap();
        assert_eq!(Memory::open(path, &name()).intent(), Some(&intent()));
    }

    #[test]
    fn another_nodes_memory_and_a_damaged_one_are_left_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("intent");
        Memory::open(path.clone(), &name()).remember(&intent()).unwrap();
        assert_eq!(Memory::open(path.clone(), &"n2".parse().unwrap()).intent(), None);
        let whole = fs::read(&path).unwrap();
        for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(Memory::open(path.clone(), &name()).intent(), None, "{cut} bytes");
        }
        let later = String::from_utf8(whole).unwrap().replace("\"version\":1", "\"version\":2");
        fs::write(&path, later).unwrap();
        assert_eq!(Memory::open(path, &name()).intent(), None);
    }

    #[test]
    fn a_disk_that_takes_nothing_leaves_the_last_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("intent");
        let mut memory = Memory::open(path.clone(), &name());
        memory.remember(&intent()).unwrap();
        // A directory in the way of the new file.
        fs::create_dir(directory.path().join(".intent.next")).unwrap();
        let other = NodeIntent { key_generation: 4, ..intent() };
        assert!(memory.remember(&other).is_err());
        assert_eq!(Memory::open(path, &name()).intent(), Some(&intent()));
    }
}
