// SPDX-License-Identifier: Apache-2.0
//! Rules about more than one field, one function for each sentence.

use super::{rule, rule_at};
use schemars::Schema;

/// A pool lies among the addresses that pods can have.
pub(crate) fn pool_range(schema: &mut Schema) {
    rule(
        schema,
        "!isCIDR(self) || cidr(self).ip().isGlobalUnicast()",
        "pods need unicast addresses; loopback, link-local, multicast and unspecified ones do not route",
    );
    rule(
        schema,
        "!isCIDR(self) || cidr(self).prefixLength() >= 8",
        "is larger than a /8; give the part of it that pods shall use",
    );
}

/// A pool's blocks are of a useful size and not larger than the pool.
pub(crate) fn block_fits_pool(schema: &mut Schema) {
    let at = ".blockSize";
    let size = "(has(self.blockSize) ? self.blockSize : (cidr(self.cidr).ip().family() == 4 ? 26 : 122))";
    rule_at(
        schema,
        at,
        "!isCIDR(self.cidr) || cidr(self.cidr).ip().family() != 4 || !has(self.blockSize) || self.blockSize <= 30",
        "must be between 20 and 30 in an IPv4 pool",
    );
    rule_at(
        schema,
        at,
        "!isCIDR(self.cidr) || cidr(self.cidr).ip().family() != 6 || !has(self.blockSize) || self.blockSize >= 112",
        "must be between 112 and 126 in an IPv6 pool",
    );
    rule_at(
        schema,
        at,
        &format!("!isCIDR(self.cidr) || {size} >= cidr(self.cidr).prefixLength()"),
        "the pool is smaller than one block (26 bits for IPv4, 122 for IPv6, unless given); enlarge cidr or raise blockSize",
    );
    rule_at(
        schema,
        at,
        "has(self.blockSize) == has(oldSelf.blockSize)",
        "cannot be added or removed later; create a second pool instead and disable this one",
    );
}

/// What is reserved lies in the pool.
pub(crate) fn reserved_in_pool(schema: &mut Schema) {
    rule_at(
        schema,
        ".reserved",
        "!isCIDR(self.cidr) || !has(self.reserved) || self.reserved.all(range, !isCIDR(range) || cidr(self.cidr).containsCIDR(range))",
        "each range has to lie in the pool's cidr",
    );
}

/// What pods may ask for lies in the pool.
pub(crate) fn on_request_in_pool(schema: &mut Schema) {
    rule_at(
        schema,
        ".onRequest",
        "!isCIDR(self.cidr) || !has(self.onRequest) || self.onRequest.all(range, !isCIDR(range) || cidr(self.cidr).containsCIDR(range))",
        "each range has to lie in the pool's cidr",
    );
    rule_at(
        schema,
        ".onRequest",
        "!has(self.onRequest) || size(self.onRequest) == 0 || !has(self.allocation) || self.allocation == 'Isthmus'",
        "is for pools with the allocation Isthmus",
    );
}

/// What is one pod's is one address.
pub(crate) fn one_address_for_one_pod(schema: &mut Schema) {
    rule_at(
        schema,
        ".cidr",
        "!has(self.pod) || !isCIDR(self.cidr) || cidr(self.cidr).prefixLength() == (cidr(self.cidr).ip().family() == 4 ? 32 : 128)",
        "a block for one pod has one address",
    );
}

/// Whom we dial must prove an identity that we know beforehand, and a pin once set stays.
pub(crate) fn pinned(schema: &mut Schema) {
    let at = ".identity";
    rule_at(
        schema,
        at,
        "!has(self.endpoints) || size(self.endpoints) == 0 || has(self.identity)",
        "endpoints need an identity: apply the manifest of an invitation, it states both",
    );
    rule_at(
        schema,
        at,
        "!has(oldSelf.identity) || has(self.identity)",
        "cannot be removed; delete the peering and invite the cluster again",
    );
}

/// At most one address of a family.
pub(crate) fn one_of_each_family(schema: &mut Schema) {
    rule(
        schema,
        "!self.all(a, isIP(a)) || self.all(a, self.exists_one(b, ip(a).family() == ip(b).family()))",
        "must hold at most one IPv4 and one IPv6 address",
    );
}

/// Each destination can be reached from an address of its family.
pub(crate) fn every_destination_has_a_source(schema: &mut Schema) {
    rule_at(
        schema,
        ".destinationCIDRs",
        "!self.egressIPs.all(a, isIP(a)) || self.destinationCIDRs.all(d, !isCIDR(d) || \
         self.egressIPs.exists(a, ip(a).family() == cidr(d).ip().family()))",
        "has a destination without an egress address of its family; add one to egressIPs or remove the destination",
    );
}

/// A peering's name appears in labels and in names of devices and Secrets.
pub(crate) fn labelled(root: &mut Schema) {
    rule(
        root,
        "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63",
        "metadata.name must be at most 63 lower case letters, digits and '-', because it becomes a label",
    );
}
