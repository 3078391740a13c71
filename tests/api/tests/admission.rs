// SPDX-License-Identifier: Apache-2.0
//! What a real API server admits, refuses, defaults and keeps, with `config/default` installed.

mod admission {
    mod agents;
    mod defaults;
    mod immutable;
    mod operator;
    mod samples;
}
