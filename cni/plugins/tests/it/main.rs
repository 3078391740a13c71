// SPDX-License-Identifier: Apache-2.0
//! The plugins in network namespaces, with traffic.

mod addresses;
mod chained;
mod cnitool;
mod conformance;
mod dhcp;
mod kernel_links;
mod links;
mod node;
mod same_as_go;
mod sent_as_by_go;
