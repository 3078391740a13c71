// SPDX-License-Identifier: Apache-2.0

// The definitions that ours are compared with (tests/upstream.rs).
module isthmus.dev/isthmus/tests/api/upstream

go 1.26.0

require sigs.k8s.io/mcs-api v0.5.2
