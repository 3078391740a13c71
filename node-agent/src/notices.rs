// SPDX-License-Identifier: Apache-2.0
//! What an administrator has to hear of once: Events about this node's Node object.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use isthmus_model::ids::NodeName;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::time::sleep;

const REPORTER: &str = "isthmus-agent";
/// While the API server does not answer.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Somebody may fight with the agent over a file, every two seconds.
const BETWEEN_BATCHES: Duration = Duration::from_secs(10);
/// Notices taken up at a time.
const AT_ONCE: usize = 64;
/// The API server takes no longer note (Event, events.k8s.io/v1).
const NOTE_MAX_BYTES: usize = 1024;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The runtime's configuration was not as the agent writes it, and is again.
    ConfigurationRestored {
        /// The configuration.
        file: PathBuf,
        /// What it held before.
        kept: PathBuf,
    },
    /// The runtime's configuration cannot be written.
    ConfigurationNotWritten {
        /// The configuration.
        file: PathBuf,
        /// What the kernel says.
        why: String,
    },
}

impl Notice {
    fn reason(&self) -> &'static str {
        match self {
            Self::ConfigurationRestored { .. } => "ConfigurationRestored",
            Self::ConfigurationNotWritten { .. } => "ConfigurationNotWritten",
        }
    }

    fn event(&self) -> Event {
        let mut note = self.to_string();
        note.truncate(note.floor_char_boundary(NOTE_MAX_BYTES));
        Event {
            type_: EventType::Warning,
            reason: self.reason().to_owned(),
            note: Some(note),
            action: "Configure".to_owned(),
            secondary: None,
        }
    }
}

/// What happened, and the way out.
impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigurationRestored { file, kept } => write!(
                f,
                "{} was not as the agent writes it and is restored; what it held is kept in {}; put additions into a file of their own",
                file.display(),
                kept.display()
            ),
            Self::ConfigurationNotWritten { file, why } => write!(
                f,
                "{} cannot be written: {why}; the container runtime uses what it has, if anything; make its directory writable",
                file.display()
            ),
        }
    }
}

/// Publishes notices until nobody sends any more. What comes while the API server is silent is told late, and the same
/// once only.
pub async fn publish(client: Client, node: NodeName, mut notices: mpsc::UnboundedReceiver<Notice>) {
    let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(node.to_string()) };
    let (recorder, about) = (Recorder::new(client, reporter), about(&node));
    let mut taken = Vec::new();
    while notices.recv_many(&mut taken, AT_ONCE).await > 0 {
        taken.dedup();
        for notice in taken.drain(..) {
            publish_one(&recorder, &about, &notice).await;
        }
        sleep(BETWEEN_BATCHES).await;
    }
}

async fn publish_one(recorder: &Recorder, about: &ObjectReference, notice: &Notice) {
    loop {
        match recorder.publish(&notice.event(), about).await {
            Ok(()) => return,
            Err(kube::Error::Api(refusal)) if (400..500).contains(&refusal.code) => {
                tracing::warn!(%refusal, reason = notice.reason(), "the API server refused an event");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, reason = notice.reason(), "an event waits for the API server");
                sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// The Node as the kubelet's own events name it (its UID is the name), so that `kubectl describe node` shows both.
fn about(node: &NodeName) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_string()),
        uid: Some(node.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_configuration_is_told_with_where_the_edit_is_and_the_way_out() {
        let notice = Notice::ConfigurationRestored { file: "/c/list".into(), kept: "/c/.edited".into() };
        let event = notice.event();
        assert_eq!((event.type_, event.reason.as_str()), (EventType::Warning, "ConfigurationRestored"));
        let note = event.note.unwrap();
        for part in ["/c/list", "/c/.edited", "put additions into a file of their own"] {
            assert!(note.contains(part), "{note}");
        }
    }

    #[test]
    fn a_note_is_no_longer_than_the_api_server_takes() {
        let notice = Notice::ConfigurationNotWritten { file: "/c/list".into(), why: "ß".repeat(2000) };
        assert!(notice.event().note.unwrap().len() <= NOTE_MAX_BYTES);
    }
}
