// SPDX-License-Identifier: Apache-2.0
//! What the kernel does with what we tell it, in network namespaces of the test's own. One binary: linking is slow.

mod addresses {
    mod cases;
    mod conformance;
    mod ipam;
    mod kill_points;
    mod node;
    mod random;
    mod runtime;
    mod soak;
    mod tracer;
}

mod proofs {
    pub(crate) mod converge;
    pub(crate) mod events;
    pub(crate) mod node;
    pub(crate) mod owner;
    pub(crate) mod pods;
    pub(crate) mod translation;
}
