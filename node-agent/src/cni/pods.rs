// SPDX-License-Identifier: Apache-2.0
//! What has to be known of a pod before it is added. Nobody is asked: the watch may lag behind the kubelet, and is waited for.

use std::time::Duration;

use isthmus_cni_kit::error::{Error, code};
use isthmus_compiler::{PodName, Share, Unserved};

use super::call::Target;
use super::workshop::Workshop;

/// How far the watch may lag behind the kubelet.
const POD_PATIENCE: Duration = Duration::from_secs(2);

impl Workshop {
    /// What the pod gets. Waits for what decides and is not known yet; where nothing does, not at all.
    pub(super) async fn share_of(&self, target: &Target) -> Result<Share, Error> {
        let mut views = self.node().views();
        let decided = async {
            loop {
                let decision = views.borrow_and_update().intent.share_of(target.pod.as_ref());
                let unknown = matches!(decision, Err(Unserved::Unknown { .. }));
                if !unknown || views.changed().await.is_err() {
                    return decision;
                }
            }
        };
        let decision = tokio::time::timeout(POD_PATIENCE, decided).await;
        let decision = decision.unwrap_or_else(|_| self.node().view().intent.share_of(target.pod.as_ref()));
        decision.map_err(unserved)
    }

    /// With egress policies, a pod has to be known before its first packet.
    pub(super) async fn wait_for_pod(&self, target: &Target) -> Result<(), Error> {
        let Some(pod) = &target.pod else {
            let msg = "CNI_ARGS names no K8S_POD_NAMESPACE and K8S_POD_NAME, and egress policies have to hold from a pod's first packet";
            return Err(Error::new(code::INVALID_ENVIRONMENT, msg).with_details(
                "put both into CNI_ARGS, as runtimes of Kubernetes do, or delete all EgressPolicies",
            ));
        };
        let key = target.pod_name();
        let mut version = self.node.store.subscribe();
        let known = async {
            while !self.node.store.read(|objects| objects.pods.contains_key(&key)) {
                if version.changed().await.is_err() {
                    return;
                }
            }
        };
        let PodName { namespace, name, .. } = pod;
        tokio::time::timeout(POD_PATIENCE, known).await.map_err(|_| {
            let msg = format!("pod {namespace}/{name} is not known yet, and egress policies have to hold from its first packet");
            Error::new(code::TRY_AGAIN, msg).with_details("is the API server reachable from this node?")
        })
    }
}

fn unserved(why: Unserved) -> Error {
    match why {
        Unserved::Unknown { what } => Error::new(code::TRY_AGAIN, what)
            .with_details("is the API server reachable from this node, and does the operator run?"),
        Unserved::Refused { why, remedy } => Error::new(code::TRY_AGAIN, why).with_details(remedy),
    }
}
