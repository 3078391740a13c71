// SPDX-License-Identifier: Apache-2.0
use isthmus_model::ids::ClusterId;
use serde::{Deserialize, Serialize};

use crate::invitation::Token;
use crate::record::{Record, RecordKey};

/// One frame of the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Message {
    /// The sender closes the connection after this.
    Bye {
        /// Why, for a machine.
        reason: ByeReason,
        /// Why, for a person.
        message: String,
    },
    /// What changed in the sender's announcement.
    Delta {
        /// The revision that this builds upon.
        from: u64,
        /// The revision that it leads to.
        revision: u64,
        /// New and changed records.
        put: Vec<Record>,
        /// Records that are gone.
        remove: Vec<RecordKey>,
    },
    /// The first message of both sides.
    Hello(Hello),
    /// The sender lives.
    Ping {
        /// Counts up from 1.
        sequence: u64,
    },
    /// The sender holds an invitation's token.
    Redeem {
        /// It.
        token: Token,
        /// The sender's alias.
        cluster_id: ClusterId,
    },
    /// The token was good; the conversation goes on with the receiver of the token's Hello.
    Redeemed,
    /// The other side is not let in.
    Refused {
        /// Why, for a machine.
        reason: RefusedReason,
        /// Why, for a person.
        message: String,
    },
    /// A part of the whole announcement. It is in force once the last part is there.
    Snapshot {
        /// The revision that this leads to.
        revision: u64,
        /// Records.
        put: Vec<Record>,
        /// Records of earlier parts that went away since.
        remove: Vec<RecordKey>,
        /// Whether this is the last part.
        done: bool,
    },
}

impl Message {
    /// Its name in errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bye { .. } => "Bye",
            Self::Delta { .. } => "Delta",
            Self::Hello(_) => "Hello",
            Self::Ping { .. } => "Ping",
            Self::Redeem { .. } => "Redeem",
            Self::Redeemed => "Redeemed",
            Self::Refused { .. } => "Refused",
            Self::Snapshot { .. } => "Snapshot",
        }
    }
}

/// Who speaks, and what it remembers of the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Versions of this protocol that the sender speaks.
    pub versions: Versions,
    /// The sender's alias.
    pub cluster_id: ClusterId,
    /// Which life of the sender's announcement this is: revisions count within it.
    pub epoch: u64,
    /// What the sender still holds of the receiver's announcement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub have: Option<Position>,
}

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest.
    pub min: u32,
    /// Newest.
    pub max: u32,
}

impl Versions {
    /// What this program speaks.
    pub const OURS: Self = Self { min: 1, max: 1 };

    /// The newest version that both speak.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.max.min(other.max);
        (newest >= self.min && newest >= other.min).then_some(newest)
    }
}

/// A moment in the life of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which life.
    pub epoch: u64,
    /// How many changes into it.
    pub revision: u64,
}

/// Why a side closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ByeReason {
    /// The peering is gone.
    Closed,
    /// The other side broke the protocol.
    Protocol,
    /// Another connection of the same peer took over.
    Superseded,
    /// The two speak no common version.
    Version,
    /// A reason of a later version.
    #[serde(other)]
    Other,
}

/// Why a side does not let the other in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RefusedReason {
    /// The two are connected already, the other way round.
    AlreadyConnected,
    /// The side cannot say at the moment.
    Busy,
    /// The other side is this cluster itself.
    SelfPeering,
    /// The token's time is over.
    TokenExpired,
    /// No invitation has this token.
    TokenUnknown,
    /// The token was redeemed before.
    TokenUsed,
    /// No peering has this identity; a token would help.
    UnknownIdentity,
    /// A reason of a later version, or one that only its message tells.
    #[serde(other)]
    Other,
}
