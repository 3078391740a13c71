// SPDX-License-Identifier: Apache-2.0
//! Annotations by which a pod, or a namespace for its pods, asks for addresses.

/// IPPools that the addresses shall come from, names with commas between. On a pod or on a namespace; the pod's counts.
pub const IP_POOLS: &str = "isthmus.dev/ip-pools";

/// Addresses that a pod shall have, one of each family at most, with a comma between. On a pod.
pub const IP_ADDRESSES: &str = "isthmus.dev/ip-addresses";

/// `true` on a pod of a StatefulSet: its addresses are kept for the pod of that name.
pub const KEEP_ADDRESSES: &str = "isthmus.dev/keep-addresses";

/// The Ethernet address that a pod's interface shall have. On a pod.
pub const MAC_ADDRESS: &str = "isthmus.dev/mac-address";
