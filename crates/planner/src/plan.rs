// SPDX-License-Identifier: Apache-2.0
//! What a plan consists of. Whoever applies it has no choices left.

use std::collections::BTreeMap;
use std::fmt;

use isthmus_api::{about, mcs, v1alpha1};
use isthmus_mesh::record::Announcement;
use jiff::Timestamp;
use k8s_openapi::api::{core::v1, discovery};
use kube::core::Resource;
use kube::discovery::ApiResource;
use serde::Serialize;
use serde_json::Value;

use crate::snapshot::Peering;

/// What shall be true of the cluster after it is applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Objects that shall exist with these fields, and no others of ours.
    pub ensure: BTreeMap<ObjectKey, Value>,
    /// Objects that shall go, with the UID that was seen: a namesake made meanwhile stays.
    pub prune: BTreeMap<ObjectKey, String>,
    /// Objects that shall exist once, made if they are missing and never changed by this.
    pub create: BTreeMap<ObjectKey, Value>,
    /// Fields to change of objects that are not ours as a whole, as JSON merge patches (RFC 7396).
    pub merge: BTreeMap<ObjectKey, Value>,
    /// Statuses, whole.
    pub statuses: BTreeMap<ObjectKey, Value>,
    /// What happened, for people.
    pub events: Vec<Event>,
    /// When to plan again even if nothing happens.
    pub wake: Option<Timestamp>,
    /// What every peer is told.
    pub announcement: Announcement,
    /// Peers to talk to, by peering.
    pub peers: BTreeMap<String, Peering>,
    /// How much of what each peer announces is refused, by peering and code.
    pub refused: BTreeMap<(String, String), u64>,
}

impl Plan {
    /// Adds an object that shall exist.
    pub fn ensure<K: Written>(&mut self, object: &K) {
        self.ensure.insert(ObjectKey::of(object), serde_json::to_value(object).unwrap_or_default());
    }

    /// Adds an object to be made once.
    pub fn create<K: Written>(&mut self, object: &K) {
        self.create.insert(ObjectKey::of(object), serde_json::to_value(object).unwrap_or_default());
    }

    /// Adds a status.
    pub fn status<S: Serialize>(&mut self, key: ObjectKey, status: &S) {
        self.statuses.insert(key, serde_json::to_value(status).unwrap_or_default());
    }

    /// Asks for another plan at `time` at the latest.
    pub fn wake_at(&mut self, time: Timestamp) {
        self.wake = Some(self.wake.map_or(time, |known| known.min(time)));
    }
}

/// Something that happened to an object. Only transitions: the same state twice gives no second event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The object.
    pub about: ObjectKey,
    /// `metadata.uid` of the object.
    pub uid: String,
    /// Whether somebody should look at it.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: String,
    /// For people.
    pub note: String,
}

/// Kinds that the operator writes, in the order in which objects are written: what others lead to comes first.
/// They are taken away the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `about.k8s.io` ClusterProperty.
    ClusterProperty,
    /// NodeNetwork.
    NodeNetwork,
    /// IPPool (status).
    IpPool,
    /// IPBlock.
    IpBlock,
    /// ClusterPeering.
    ClusterPeering,
    /// PeeringInvitation (status).
    PeeringInvitation,
    /// EgressPolicy (status).
    EgressPolicy,
    /// `multicluster.x-k8s.io` ServiceExport (status).
    ServiceExport,
    /// EndpointSlice.
    EndpointSlice,
    /// Service.
    Service,
    /// `multicluster.x-k8s.io` ServiceImport.
    ServiceImport,
    /// ConfigMap.
    ConfigMap,
    /// Secret.
    Secret,
}

impl Kind {
    /// Group, version, kind and plural, as the API server knows them.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::ClusterProperty => ApiResource::erase::<about::ClusterProperty>(&()),
            Self::NodeNetwork => ApiResource::erase::<v1alpha1::NodeNetwork>(&()),
            Self::IpPool => ApiResource::erase::<v1alpha1::IPPool>(&()),
            Self::IpBlock => ApiResource::erase::<v1alpha1::IPBlock>(&()),
            Self::ClusterPeering => ApiResource::erase::<v1alpha1::ClusterPeering>(&()),
            Self::PeeringInvitation => ApiResource::erase::<v1alpha1::PeeringInvitation>(&()),
            Self::EgressPolicy => ApiResource::erase::<v1alpha1::EgressPolicy>(&()),
            Self::ServiceExport => ApiResource::erase::<mcs::ServiceExport>(&()),
            Self::ServiceImport => ApiResource::erase::<mcs::ServiceImport>(&()),
            Self::Service => ApiResource::erase::<v1::Service>(&()),
            Self::EndpointSlice => ApiResource::erase::<discovery::v1::EndpointSlice>(&()),
            Self::ConfigMap => ApiResource::erase::<v1::ConfigMap>(&()),
            Self::Secret => ApiResource::erase::<v1::Secret>(&()),
        }
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, if its kind has namespaces.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// Key of an object without namespace.
    pub fn cluster(kind: Kind, name: &str) -> Self {
        Self { kind, namespace: None, name: name.to_owned() }
    }

    /// Key of an object in a namespace.
    pub fn namespaced(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: Some(namespace.to_owned()), name: name.to_owned() }
    }

    /// Key of this object.
    pub fn of<K: Written>(object: &K) -> Self {
        let meta = object.meta();
        Self { kind: K::KIND, namespace: meta.namespace.clone(), name: meta.name.clone().unwrap_or_default() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{:?} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{:?} {}", self.kind, self.name),
        }
    }
}

/// A type whose objects the operator writes.
pub trait Written: Resource<DynamicType = ()> + Serialize {
    /// Its kind.
    const KIND: Kind;
}

macro_rules! written {
    ($($type:ty => $kind:ident),* $(,)?) => { $(impl Written for $type { const KIND: Kind = Kind::$kind; })* };
}

written! {
    about::ClusterProperty => ClusterProperty,
    v1alpha1::NodeNetwork => NodeNetwork,
    v1alpha1::IPPool => IpPool,
    v1alpha1::IPBlock => IpBlock,
    v1alpha1::ClusterPeering => ClusterPeering,
    v1alpha1::PeeringInvitation => PeeringInvitation,
    v1alpha1::EgressPolicy => EgressPolicy,
    mcs::ServiceExport => ServiceExport,
    mcs::ServiceImport => ServiceImport,
    v1::Service => Service,
    v1::ConfigMap => ConfigMap,
    v1::Secret => Secret,
    discovery::v1::EndpointSlice => EndpointSlice,
}
