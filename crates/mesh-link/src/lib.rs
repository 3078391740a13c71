// SPDX-License-Identifier: Apache-2.0
//! The channel between two clusters' operators: TCP, mutual TLS, and the conversation of [`isthmus_mesh::wire`].
//!
//! ```text
//!             serve() accepts --+                       +--> PeerEvent (mpsc) --> operator
//!                               +--> one task per link -+
//!   dial() connects, again and  +                       +<-- Announcement (watch) <-- operator
//!   again with backoff ---------+
//! ```
//!
//! What is said, and what a peer may say, is `isthmus-mesh`, without sockets, clock and tasks. Who is let in is the operator's decision: the server
//! asks it with [`PeerEventKind::Arrived`] and, for a stranger with a token, [`PeerEventKind::Redeem`].

mod credentials;
mod dial;
mod peer;
mod serve;
mod stream;
pub mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::ids::{ClusterId, ClusterIdentity};
use tokio::sync::oneshot;

use crate::tls::NotProven;
use isthmus_mesh::grant::Refusal;
use isthmus_mesh::identity::IdentityError;
use isthmus_mesh::invitation::Token;
use isthmus_mesh::record::Announcement;
use isthmus_mesh::wire::{ProtocolError, RefusedReason};

pub use credentials::Credentials;
pub use dial::{DialTarget, dial};
pub use peer::Peer;
pub use serve::{ServeLimits, serve};

/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long each step from the handshake to the first Hello may take, the operator's answer included.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Something that happened on a link.
#[derive(Debug)]
pub struct PeerEvent {
    /// The peer, by the key that it proved (for a dialled link that is not up: the key that is expected).
    pub identity: ClusterIdentity,
    /// What happened.
    pub kind: PeerEventKind,
}

/// What happened on a link.
#[derive(Debug)]
pub enum PeerEventKind {
    /// The peer's announcement, whole and up to date. It stays valid until the next one, also without a link.
    Announced {
        /// Its records.
        announcement: Arc<Announcement>,
        /// Records that break their own form.
        invalid: Vec<Refusal>,
    },
    /// Somebody connected and proved this identity: is it a peer?
    Arrived {
        /// The alias that it goes by.
        cluster_id: ClusterId,
        /// Answer within [`ADMISSION_TIMEOUT`].
        reply: oneshot::Sender<Admission>,
    },
    /// The link is up.
    Connected {
        /// The alias that the peer goes by.
        cluster_id: ClusterId,
        /// Its address.
        remote: SocketAddr,
    },
    /// The link is down, or could not be made. Nothing that was announced ends by this.
    Disconnected {
        /// Why; the text is fit for a condition.
        reason: LinkError,
    },
    /// The peer lives; at most about once a second.
    Heard,
    /// A stranger shows a token. Make the peering first, then answer.
    Redeem {
        /// The token.
        token: Token,
        /// The alias that it goes by.
        cluster_id: ClusterId,
        /// Answer within [`ADMISSION_TIMEOUT`].
        reply: oneshot::Sender<Redemption>,
    },
}

/// The operator's answer to [`PeerEventKind::Arrived`].
#[derive(Debug)]
pub enum Admission {
    /// A peer of ours.
    Known(Peer),
    /// A stranger. It may redeem a token.
    Unknown,
    /// Not let in.
    Refused {
        /// Why, for the other side's condition.
        message: String,
    },
}

/// The operator's answer to [`PeerEventKind::Redeem`].
#[derive(Debug)]
pub enum Redemption {
    /// The token was good and the peering exists.
    Accepted(Peer),
    /// It was not.
    Refused {
        /// Why, for a machine.
        reason: RefusedReason,
        /// Why, for the other side's condition.
        message: String,
    },
}

/// Why a link ends or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peering is gone from this side.
    #[error("the peering was removed here")]
    Closed,
    /// The stream broke.
    #[error("the connection to the peer broke: {0}")]
    Broken(io::Error),
    /// Our own certificate cannot be made.
    #[error("cannot make a certificate for this cluster: {0}")]
    Credentials(#[from] IdentityError),
    /// No TLS handshake with a stranger or an impostor.
    #[error("{endpoint}: {fault}")]
    NotProven {
        /// Where.
        endpoint: String,
        /// Why.
        fault: NotProven,
    },
    /// The conversation failed.
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    /// The peer does not let us in.
    #[error("the peer refused: {message}")]
    Refused {
        /// Why, for a machine.
        reason: RefusedReason,
        /// The peer's words.
        message: String,
    },
    /// The peer does not read what is sent.
    #[error("the peer did not take a message for {} s", .0.as_secs())]
    Stalled(Duration),
    /// Another connection of the same peer took over.
    #[error("a newer connection of the peer took over")]
    Superseded,
    /// The handshake failed or took too long.
    #[error("{endpoint}: the TLS handshake failed: {fault}")]
    Tls {
        /// Where.
        endpoint: String,
        /// Why.
        fault: String,
    },
    /// No connection.
    #[error("{endpoint} cannot be reached: {fault}; is the endpoint right, and the port open?")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// Why.
        fault: io::Error,
    },
}
