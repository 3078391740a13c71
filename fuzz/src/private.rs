// SPDX-License-Identifier: Apache-2.0
//! Modules that are private where they live and take bytes from outside: compiled in here as they stand there.

/// The first look at a CNI call.
#[path = "../../node-agent/src/cni"]
#[allow(dead_code, reason = "more is there than is run here")]
pub(crate) mod cni {
    pub(crate) mod call;
}

/// DHCP: messages, the client that they come to, and leases as they are kept.
#[path = "../../cni/plugins/src/ipam/dhcp"]
#[allow(dead_code, reason = "more is there than is run here")]
pub(crate) mod dhcp {
    pub(crate) mod calls;
    pub(crate) mod client;
    pub(crate) mod lease;
    pub(crate) mod record;
    pub(crate) mod wire;
}

/// What plugins read back: reserved addresses, and `resolv.conf`.
#[path = "../../cni/plugins/src/ipam"]
pub(crate) mod ipam {
    pub(crate) mod holder;
    pub(crate) mod resolv;
}

/// What the plugin `tuning` puts back.
#[path = "../../cni/plugins/src/chained"]
pub(crate) mod chained {
    pub(crate) mod before;
}

/// Marks on interfaces that a pod has from the host.
#[path = "../../cni/plugins/src/links"]
pub(crate) mod links {
    pub(crate) mod mark;
}

/// The lines between agent and data plane.
#[path = "../../crates/dataplane/src"]
#[allow(dead_code, reason = "more is there than is run here")]
pub(crate) mod dataplane {
    pub(crate) mod wire;
}

/// Probes: their datagrams, and what a path makes of the answers.
#[path = "../../crates/dataplane/src/probe"]
#[allow(dead_code, reason = "more is there than is run here")]
pub(crate) mod probe {
    pub(crate) mod datagram;
    pub(crate) mod mtu;
    pub(crate) mod path;
    pub(crate) mod train;
}

/// Cutting and joining of packets.
#[path = "../../crates/packet-io/src"]
#[allow(dead_code, unreachable_pub, reason = "it is public there")]
pub(crate) mod packet_io {
    pub(crate) mod offload;
}
