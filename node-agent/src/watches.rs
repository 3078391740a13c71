// SPDX-License-Identifier: Apache-2.0
//! One task for each kind that is watched. A broken watch starts again and lists; until then the last copy stays.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::StreamExt;
use isthmus_intake::node::NodeObjects;
use isthmus_model::ids::NodeName;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::ExponentialBackoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::objects::{ObjectStore, Watch};

/// Starts all watches. They run as long as the runtime does.
pub fn start(client: &Client, node: &NodeName, store: &Arc<ObjectStore>) {
    let everything = watcher::Config::default;
    spawn(client, everything(), store, Watch::Blocks, |objects| &mut objects.blocks, by_name);
    spawn(client, everything(), store, Watch::Egress, |objects| &mut objects.egress, by_name);
    spawn(client, everything(), store, Watch::Namespaces, |objects| &mut objects.namespaces, by_name);
    spawn(client, everything(), store, Watch::Networks, |objects| &mut objects.networks, by_name);
    spawn(
        client,
        everything(),
        store,
        Watch::Nodes,
        |objects| &mut objects.nodes,
        |mut node| {
            // The list of images is most of a Node.
            if let Some(status) = &mut node.status {
                status.images = None;
            }
            by_name(node)
        },
    );
    spawn(client, everything(), store, Watch::Peerings, |objects| &mut objects.peerings, by_name);
    spawn(client, everything(), store, Watch::Pools, |objects| &mut objects.pools, by_name);
    let on_this_node = everything().fields(&format!("spec.nodeName={node}"));
    spawn(
        client,
        on_this_node,
        store,
        Watch::Pods,
        |objects| &mut objects.pods,
        |pod: Pod| {
            let (metadata, key) = (pod.metadata, |metadata: &kube::core::ObjectMeta| {
                (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
            });
            // Labels are all that selectors need.
            (key(&metadata), Pod { metadata, ..Pod::default() })
        },
    );
}

fn by_name<K: Resource>(object: K) -> (String, K) {
    (object.name_any(), object)
}

fn spawn<K, N>(
    client: &Client,
    config: watcher::Config,
    store: &Arc<ObjectStore>,
    watch: Watch,
    place: fn(&mut NodeObjects) -> &mut BTreeMap<N, K>,
    keyed: fn(K) -> (N, K),
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    N: Ord + Send + 'static,
{
    let (api, store) = (Api::<K>::all(client.clone()), store.clone());
    let keep = move |mut object: K| {
        object.meta_mut().managed_fields = None;
        keyed(object)
    };
    tokio::spawn(async move {
        let mut events = watcher(api, config).backoff(patience()).boxed();
        let mut listing = BTreeMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listing.clear(),
                Ok(watcher::Event::InitApply(object)) => listing.extend([keep(object)]),
                Ok(watcher::Event::InitDone) => {
                    let complete = std::mem::take(&mut listing);
                    store.change(|objects| *place(objects) = complete);
                    store.listed(watch);
                }
                Ok(watcher::Event::Apply(object)) => {
                    let (name, object) = keep(object);
                    store.change(|objects| drop(place(objects).insert(name, object)));
                }
                Ok(watcher::Event::Delete(object)) => {
                    let (name, _) = keep(object);
                    store.change(|objects| drop(place(objects).remove(&name)));
                }
                Err(error) => tracing::warn!(?watch, %error, "watch broken; it starts again"),
            }
        }
    });
}

/// How long a broken watch waits before it asks again. Every node asks, so that the pauses are spread and not too short; after an
/// outage the list comes up to two pauses later.
fn patience() -> ExponentialBackoff {
    let (shortest, longest) = (Duration::from_millis(400), Duration::from_secs(5));
    let builder = ExponentialBuilder::new().with_min_delay(shortest).with_max_delay(longest);
    builder.with_jitter().without_max_times().into()
}
