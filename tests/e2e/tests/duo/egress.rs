// SPDX-License-Identifier: Apache-2.0
//! Egress with a fixed address.

use isthmus_e2e::{duo, leaves_by_policy};

#[test]
fn selected_pods_reach_their_destination_from_the_egress_address() {
    let Some(_duo) = duo() else { return };
    leaves_by_policy();
}
