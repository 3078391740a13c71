// SPDX-License-Identifier: Apache-2.0
//! Our copy of the objects of one kind, kept by a watch.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::StreamExt;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::runtime::watcher::{self, Event, ExponentialBackoff};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource, ResourceExt};
use tokio::sync::Notify;
use tracing::{debug, warn};

/// Namespace (empty for kinds without) and name.
pub(crate) type Key = (String, String);
/// All objects of a kind at one moment.
pub(crate) type Objects<K> = Arc<BTreeMap<Key, Arc<K>>>;

/// Our copy of the objects of one kind.
pub(crate) struct Table<K> {
    state: Arc<Mutex<State<K>>>,
}

struct State<K> {
    objects: Objects<K>,
    /// What a list that is under way has brought so far.
    listing: BTreeMap<Key, Arc<K>>,
    listed: bool,
}

impl<K> Clone for Table<K> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state) }
    }
}

impl<K> Table<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Starts to watch; `wake` is told of every change.
    pub(crate) fn follow(api: Api<K>, config: watcher::Config, wake: Arc<Notify>) -> Self {
        let state = State { objects: Arc::default(), listing: BTreeMap::new(), listed: false };
        let table = Self { state: Arc::new(Mutex::new(state)) };
        tokio::spawn(table.clone().run(api, config, wake));
        table
    }

    async fn run(self, api: Api<K>, config: watcher::Config, wake: Arc<Notify>) {
        let kind = K::kind(&());
        let stream = watch(api, config).backoff(patience());
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    if self.take(event) {
                        wake.notify_one();
                    }
                }
                // The stream goes on by itself, with a growing pause.
                Err(error) => warn!(%kind, %error, "the watch broke; trying again"),
            }
        }
    }

    /// Takes an event in; returns whether a reader could see a difference.
    fn take(&self, event: Event<K>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => state.listing = BTreeMap::new(),
            Event::InitApply(object) => {
                let (key, object) = entry(object);
                state.listing.insert(key, object);
            }
            Event::InitDone => {
                let listing = std::mem::take(&mut state.listing);
                debug!(kind = %K::kind(&()), count = listing.len(), "listed");
                state.objects = Arc::new(listing);
                state.listed = true;
            }
            Event::Apply(object) => {
                let (key, object) = entry(object);
                Arc::make_mut(&mut state.objects).insert(key, object);
            }
            Event::Delete(object) => {
                let (key, _) = entry(object);
                Arc::make_mut(&mut state.objects).remove(&key);
            }
        }
        state.listed
    }

    /// All objects now.
    pub(crate) fn read(&self) -> Objects<K> {
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner).objects)
    }

    /// Whether a first list is complete.
    pub(crate) fn listed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).listed
    }
}

/// How long a broken watch waits before it asks again. After a long outage the first answer is often that the version
/// we know is gone, and the list comes one pause later: the longest pause is what users wait for, twice. Few replicas
/// ask, each watch at moments of its own.
fn patience() -> ExponentialBackoff {
    let (shortest, longest) = (Duration::from_millis(200), Duration::from_secs(2));
    let builder = ExponentialBuilder::new().with_min_delay(shortest).with_max_delay(longest);
    builder.with_jitter().without_max_times().into()
}

fn entry<K: Resource<DynamicType = ()>>(mut object: K) -> (Key, Arc<K>) {
    // Half of an object's bytes, and nothing that we decide upon.
    object.managed_fields_mut().clear();
    let key = (object.namespace().unwrap_or_default(), object.name_any());
    (key, Arc::new(object))
}
