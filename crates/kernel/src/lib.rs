// SPDX-License-Identifier: Apache-2.0
//! Drivers of the kernel's tables: one for each, and one readable order between them.
//!
//! ```text
//! Desired --diff--> Delta --converge.rs--> link addr route rule neigh fdb sysctl nft --netlink--> kernel
//!            ^ observe: only what is ours (isthmus_model::ownership)                                 |
//!            +---------------------------------------------------------------------------------------+
//! ```

mod addr;
mod converge;
mod events;
mod fdb;
mod kernel;
mod link;
mod neigh;
pub mod nft;
pub mod pod_link;
mod route;
mod rule;
mod sysctl;
mod table;

use isthmus_netlink as wire;
pub use isthmus_netlink::netns;

pub use converge::{InSync, Outcomes};
pub use events::{Change, Events};
pub use kernel::{Kernel, KernelError, LinkFacts, Underlay};
pub use nft::{Nft, NftError};
pub use pod_link::{ForeignLink, POD_ALIAS_MAX, PodLink, PodLinkError, PodLinkMade, PodLinkSeen, PodLinks};
