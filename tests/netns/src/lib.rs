// SPDX-License-Identifier: Apache-2.0
//! Proofs in real network namespaces: see `tests/`.
