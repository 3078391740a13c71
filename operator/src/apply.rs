// SPDX-License-Identifier: Apache-2.0
//! Brings the cluster to a plan by server-side apply, writing only what differs from what is observed.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use isthmus_planner::{FIELD_MANAGER, ObjectKey, Plan};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// Requests under way at a time.
const CONCURRENT: usize = 8;
/// How long a watch may lag behind our own write before we write again.
const LAG: Duration = Duration::from_secs(2);
/// Pauses after failures of one object.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// An object as the watch shows it.
pub(crate) struct Observed {
    /// `metadata.resourceVersion`.
    pub(crate) version: Version,
    /// The whole object, made only when it must be compared.
    pub(crate) body: Box<dyn Fn() -> Value + Send + Sync>,
}

/// Looks an object up in what the watches brought.
pub(crate) trait Look {
    fn look(&self, key: &ObjectKey) -> Option<Observed>;
}

/// A resource version: an ordered number (KEP-5504); 0 if the server uses something else.
pub(crate) type Version = u64;

/// Parses a resource version.
pub(crate) fn version(object: &impl ResourceExt) -> Version {
    object.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Remembers what it wrote, so that nothing is written twice.
pub(crate) struct Applier {
    client: Client,
    metrics: Metrics,
    recorder: Recorder,
    written: BTreeMap<(Part, ObjectKey), Written>,
    failed: BTreeMap<(Part, ObjectKey), Failed>,
}

/// What of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The object shall have these fields (server-side apply).
    Whole,
    /// The object shall exist; it is made once.
    Made,
    /// These fields of somebody else's object shall be so (JSON merge patch).
    Merged,
    /// The object shall not exist.
    Gone,
    /// The whole status.
    Status,
}

struct Written {
    wanted: Value,
    version: Version,
    at: Instant,
}

struct Failed {
    wanted: Value,
    pause: Duration,
    again_at: Instant,
}

/// One request.
struct Step {
    part: Part,
    key: ObjectKey,
    wanted: Value,
}

impl Applier {
    pub(crate) fn new(client: Client, metrics: Metrics, pod_name: &str) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(pod_name.to_owned()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, metrics, recorder, written: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Forgets what was written: after others may have led.
    pub(crate) fn forget(&mut self) {
        self.written.clear();
        self.failed.clear();
    }

    /// Writes what differs. Returns when to come back, if something failed or is not visible yet.
    pub(crate) async fn apply(&mut self, plan: &Plan, observed: &impl Look) -> Option<Instant> {
        let part = |part, wanted: &'_ BTreeMap<ObjectKey, Value>| {
            wanted.iter().map(move |(key, wanted)| (part, key.clone(), wanted.clone())).collect::<Vec<_>>()
        };
        let gone =
            plan.prune.iter().rev().map(|(key, uid)| (Part::Gone, key.clone(), Value::String(uid.clone())));
        let mut objects: Vec<_> = gone.collect();
        objects.extend(part(Part::Whole, &plan.ensure));
        objects.extend(part(Part::Made, &plan.create));
        objects.extend(part(Part::Merged, &plan.merge));
        let mut again = None;
        // What goes, goes first: names disappear before backends do. Then objects: a status or a reference to one that is missing would fail.
        for group in [objects, part(Part::Status, &plan.statuses)] {
            let mut steps = Vec::new();
            for (part, key, wanted) in group {
                match self.due(part, &key, &wanted, observed) {
                    Due::Done => {}
                    Due::Later(at) => again = earliest(again, at),
                    Due::Now => steps.push(Step { part, key, wanted }),
                }
            }
            again = self.carry_out(steps, plan, again).await;
        }
        let planned = |(part, key): &(Part, ObjectKey)| match part {
            Part::Whole => plan.ensure.contains_key(key),
            Part::Made => plan.create.contains_key(key),
            Part::Merged => plan.merge.contains_key(key),
            Part::Gone => plan.prune.contains_key(key),
            Part::Status => plan.statuses.contains_key(key),
        };
        self.written.retain(|slot, _| planned(slot));
        self.failed.retain(|slot, _| planned(slot));
        again
    }

    fn due(&mut self, part: Part, key: &ObjectKey, wanted: &Value, observed: &impl Look) -> Due {
        let slot = (part, key.clone());
        if let Some(failed) = self.failed.get(&slot).filter(|failed| failed.wanted == *wanted) {
            return if failed.again_at > Instant::now() { Due::Later(failed.again_at) } else { Due::Now };
        }
        let last = self.written.get(&slot);
        let visible_at = last.map(|last| last.at + LAG).filter(|at| *at > Instant::now());
        let same = last.is_some_and(|last| last.wanted == *wanted);
        let Some(seen) = observed.look(key) else {
            return match (part, visible_at) {
                (Part::Whole, Some(at)) if same => Due::Later(at),
                (Part::Made, Some(at)) => Due::Later(at),
                (Part::Whole | Part::Made, _) => Due::Now,
                // Gone already; and a status or a field has no place to go.
                (Part::Gone | Part::Status | Part::Merged, _) => Due::Done,
            };
        };
        match part {
            Part::Made => return Due::Done,
            Part::Gone | Part::Merged => return visible_at.map_or(Due::Now, Due::Later),
            Part::Whole | Part::Status => {}
        }
        let behind = last.is_some_and(|last| seen.version < last.version) && visible_at.is_some();
        if same && (behind || last.is_some_and(|last| seen.version <= last.version)) {
            return Due::Done;
        }
        if behind && part == Part::Status {
            // This status was made of an older one; the next plan sees ours and keeps its times.
            return Due::Later(Instant::now() + LAG / 16);
        }
        // An object that was never written here may hold fields that we once wanted and no longer do.
        if (same || part == Part::Status) && holds(part, wanted, &(seen.body)()) {
            self.written
                .insert(slot, Written { wanted: wanted.clone(), version: seen.version, at: Instant::now() });
            return Due::Done;
        }
        Due::Now
    }

    async fn carry_out(
        &mut self,
        steps: Vec<Step>,
        plan: &Plan,
        mut again: Option<Instant>,
    ) -> Option<Instant> {
        let client = &self.client;
        let requests = steps.into_iter().map(|step| async move {
            let result = send(client, &step).await;
            (step, result)
        });
        let results: Vec<_> = futures::stream::iter(requests).buffer_unordered(CONCURRENT).collect().await;
        for (step, result) in results {
            let slot = (step.part, step.key);
            match result {
                Ok(version) => {
                    debug!(part = ?slot.0, key = %slot.1, "written");
                    self.metrics.written();
                    self.failed.remove(&slot);
                    if slot.0 == Part::Status {
                        self.tell(plan, &slot.1).await;
                    }
                    self.written.insert(slot, Written { wanted: step.wanted, version, at: Instant::now() });
                }
                Err(error) => {
                    self.metrics.write_failed();
                    let error = words(&error);
                    warn!(part = ?slot.0, key = %slot.1, error, "not written; trying again");
                    let pause = match self.failed.get(&slot) {
                        Some(failed) if failed.wanted == step.wanted => (failed.pause * 2).min(RETRY_MOST),
                        _ => RETRY_FIRST,
                    };
                    let again_at = Instant::now() + pause;
                    self.failed.insert(slot, Failed { wanted: step.wanted, pause, again_at });
                    again = earliest(again, again_at);
                }
            }
        }
        again
    }
}

impl Applier {
    /// Publishes the events of an object whose status has just changed.
    async fn tell(&self, plan: &Plan, key: &ObjectKey) {
        for event in plan.events.iter().filter(|event| event.about == *key) {
            let resource = key.kind.resource();
            let about = ObjectReference {
                api_version: Some(resource.api_version),
                kind: Some(resource.kind),
                namespace: key.namespace.clone(),
                name: Some(key.name.clone()),
                uid: Some(event.uid.clone()),
                ..ObjectReference::default()
            };
            let event = Event {
                type_: if event.warning { EventType::Warning } else { EventType::Normal },
                reason: event.reason.clone(),
                note: Some(event.note.clone()),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, &about).await {
                debug!(%key, %error, "an event was not published");
            }
        }
    }
}

/// The API server's own words, without the structure around them.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

enum Due {
    Done,
    Now,
    Later(Instant),
}

fn earliest(known: Option<Instant>, at: Instant) -> Option<Instant> {
    Some(known.map_or(at, |known| known.min(at)))
}

/// Whether the observed object has all wanted fields; a status must also have no others.
fn holds(part: Part, wanted: &Value, observed: &Value) -> bool {
    match part {
        Part::Status => observed.get("status").unwrap_or(&Value::Null) == wanted,
        _ => match wanted {
            // Some watches bring only parts of objects, without the words for their kind.
            Value::Object(fields) => fields
                .iter()
                .filter(|(field, _)| !matches!(field.as_str(), "apiVersion" | "kind"))
                .all(|(field, value)| observed.get(field).is_some_and(|found| within(value, found))),
            wanted => within(wanted, observed),
        },
    }
}

/// Whether every field of `wanted` has the same value in `observed`, which may have more of them (defaults).
fn within(wanted: &Value, observed: &Value) -> bool {
    match (wanted, observed) {
        (Value::Object(wanted), Value::Object(observed)) => wanted.iter().all(|(key, value)| {
            let empty = value.as_object().is_some_and(serde_json::Map::is_empty);
            observed.get(key).map_or(empty || value.is_null(), |found| within(value, found))
        }),
        (Value::Array(wanted), Value::Array(observed)) => {
            wanted.len() == observed.len() && wanted.iter().zip(observed).all(|(a, b)| within(a, b))
        }
        (wanted, observed) => wanted == observed,
    }
}

async fn send(client: &Client, step: &Step) -> kube::Result<Version> {
    let resource = step.key.kind.resource();
    let api: Api<DynamicObject> = match &step.key.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = step.key.name.as_str();
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match step.part {
        Part::Whole => Ok(version(&api.patch(name, &params, &Patch::Apply(&step.wanted)).await?)),
        Part::Made => {
            let object: DynamicObject =
                serde_json::from_value(step.wanted.clone()).map_err(kube::Error::SerdeError)?;
            let params =
                PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            match api.create(&params, &object).await {
                Ok(made) => Ok(version(&made)),
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(0),
                Err(error) => Err(error),
            }
        }
        Part::Merged => {
            let params =
                PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            Ok(version(&api.patch(name, &params, &Patch::Merge(&step.wanted)).await?))
        }
        Part::Status => {
            let body = serde_json::json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "status": step.wanted,
            });
            Ok(version(&api.patch_status(name, &params, &Patch::Apply(&body)).await?))
        }
        Part::Gone => {
            let uid = step.wanted.as_str().map(str::to_owned);
            let preconditions = Some(Preconditions { uid, resource_version: None });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            match api.delete(name, &params).await {
                Ok(_) => Ok(0),
                // Gone already, or a namesake: either way it is not there any more.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(0),
                Err(error) => Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_that_the_server_added_are_no_difference() {
        let wanted = json!({"spec": {"ports": [{"port": 80}], "selector": {}}});
        let observed = json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}], "clusterIP": "10.0.0.1"}});
        assert!(within(&wanted, &observed));
    }

    #[test]
    fn a_changed_value_or_a_further_list_item_is_a_difference() {
        let observed = json!({"spec": {"ports": [{"port": 80}]}});
        assert!(!within(&json!({"spec": {"ports": [{"port": 81}]}}), &observed));
        assert!(!within(&json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}), &observed));
        assert!(!within(&json!({"spec": {"ports": [], "type": "ClusterIP"}}), &observed));
    }

    #[test]
    fn a_status_with_a_field_too_many_is_a_difference() {
        let observed = json!({"status": {"blocks": 1, "stale": true}});
        assert!(!holds(Part::Status, &json!({"blocks": 1}), &observed));
        assert!(holds(Part::Status, &json!({"blocks": 1, "stale": true}), &observed));
    }
}
