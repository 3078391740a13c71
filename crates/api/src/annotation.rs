// SPDX-License-Identifier: Apache-2.0
//! Annotations by which a pod, or a namespace for its pods, asks for addresses.

/// IPPools that the addresses shall come from, names with commas between. On a pod or on a namespace; the pod's counts.
pub const IP_POOLS: &str = "isthmus.dev/ip-pools";
