// SPDX-License-Identifier: Apache-2.0
//! Calls after another plugin's: that one made the pod's link and gave it addresses, ours makes them known to the mesh.

use std::net::IpAddr;

use isthmus_cni_kit::config::net_conf::NetConf;
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::result::AddResult;
use isthmus_cni_kit::version::Version;
use isthmus_kernel::ForeignLink;
use serde_json::Value;

use super::call::Target;
use super::work::{blocking, link_error, seen_from_here};
use super::workshop::Workshop;
use crate::addresses::AttachmentKey;
use crate::chained::Chained;
use crate::engine::concerns_pod;

/// No interface of a pod has more addresses.
const ADDRESSES_MAX: usize = 16;

impl Workshop {
    /// Learns of the pod what the plugins before made of it. Gives their result, as it came.
    pub(super) async fn join(
        &self,
        target: &Target,
        config: &NetConf,
        previous: &Value,
    ) -> Result<Vec<u8>, Error> {
        let addresses = addresses(previous, config.version(), target.ifname.as_str())?;
        let view = self.node().view();
        if let Some(why) = view.blocked {
            return Err(Error::new(code::TRY_AGAIN, why));
        }
        if !view.chained() {
            let msg = "isthmus-cni comes after another plugin, and no IPPool says that another plugin gives addresses out";
            return Err(Error::new(code::TRY_AGAIN, msg)
                .with_details("create an IPPool with the allocation PodCIDRs or External, or put isthmus-cni first in the plugin list"));
        }
        if view.egress() {
            self.wait_for_pod(target).await?;
        }
        let found = self.find(target, &addresses).await?;
        let (namespace, pod) = target.pod_name();
        let pod = Chained {
            network: config.name().to_owned(),
            namespace,
            pod,
            link: found.host_link,
            index: found.host_index,
            bridge: found.bridge,
            addresses,
        };
        let (node, key, joining) = (self.shared_node(), target.key.clone(), pod.clone());
        let joined = blocking(move || node.chained().join(&key, joining)).await?;
        joined.map_err(|error| Error::new(code::IO, error.to_string()))?;
        if let Err(error) = self.let_through(&pod).await {
            self.leave(&target.key).await;
            return Err(error);
        }
        Ok(passed_on(previous, config.version()))
    }

    /// Forgets the pod; returns whether it was known.
    pub(super) async fn leave(&self, key: &AttachmentKey) -> bool {
        let (node, leaving) = (self.shared_node(), key.clone());
        let known = blocking(move || node.chained().leave(&leaving)).await.unwrap_or(false);
        if known {
            // While the engine cannot, the next turn does it.
            let _ = self.node().advance().await;
        }
        known
    }

    /// CHECK of a pod that joined.
    pub(super) async fn check_joined(
        &self,
        target: &Target,
        config: &NetConf,
        pod: &Chained,
    ) -> Result<(), Error> {
        let previous =
            previous(config).ok_or_else(|| Error::new(code::INVALID_CONFIG, "CHECK without prevResult"))?;
        let named = addresses(previous, config.version(), target.ifname.as_str())?;
        if let Some(address) = pod.addresses.iter().find(|address| !named.contains(address)) {
            return Err(Error::new(code::INVALID_CONFIG, format!("{address} is missing in prevResult")));
        }
        let found = self.find(target, &pod.addresses).await?;
        if !pod.is_at(&found) {
            let ports = |link: &str, of: Option<&str>| {
                format!("{link}{}", of.map(|bridge| format!(" in {bridge}")).unwrap_or_default())
            };
            let was = ports(pod.link.as_str(), pod.bridge.as_ref().map(|bridge| bridge.as_str()));
            let is = ports(found.host_link.as_str(), found.bridge.as_ref().map(|bridge| bridge.as_str()));
            let msg = format!(
                "the pod's host end was {was} (index {}) and is {is} (index {})",
                pod.index, found.host_index
            );
            return Err(Error::new(code::FIRST_OWN, msg));
        }
        self.let_through(pod).await
    }

    async fn find(&self, target: &Target, addresses: &[IpAddr]) -> Result<ForeignLink, Error> {
        let (node, addresses) = (self.shared_node(), addresses.to_vec());
        let (netns, ifname) = (seen_from_here(&target.netns), target.ifname.clone());
        blocking(move || node.links.find(&netns, &ifname, &addresses)).await?.map_err(link_error)
    }

    async fn let_through(&self, pod: &Chained) -> Result<(), Error> {
        let failures = self.node().advance().await.map_err(|why| Error::new(code::TRY_AGAIN, why))?;
        let failure = concerns_pod(&failures, pod.entrance(), &pod.addresses);
        failure.map_or(Ok(()), |failure| Err(Error::new(code::FIRST_OWN, failure)))
    }
}

/// The result of the plugins before, as it came.
pub(super) fn previous(config: &NetConf) -> Option<&Value> {
    config.raw().get("prevResult").filter(|previous| !previous.is_null())
}

/// The addresses of the container's interface in a result: those of the interface of that name, and those that name none.
pub(super) fn addresses(previous: &Value, version: Version, ifname: &str) -> Result<Vec<IpAddr>, Error> {
    let undecodable = |why: String| Error::new(code::DECODING, format!("prevResult: {why}"));
    let (_, result) =
        AddResult::from_json(previous, version).map_err(|error| undecodable(error.to_string()))?;
    let own = |index: usize| result.interfaces.get(index).is_some_and(|link| link.name == ifname);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in result.ips.iter().filter(|ip| ip.interface.is_none_or(own)) {
        let address = ip.address.addr();
        if !is_unicast(address) {
            let msg = format!("prevResult gives {ifname} {address}, which is no address of a pod");
            return Err(Error::new(code::INVALID_CONFIG, msg));
        }
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.sort();
    if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
        let msg = format!("prevResult names {} addresses of {ifname}", addresses.len());
        let details = format!("isthmus-cni comes after a plugin that gives 1 to {ADDRESSES_MAX}");
        return Err(Error::new(code::INVALID_CONFIG, msg).with_details(details));
    }
    Ok(addresses)
}

fn is_unicast(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// The result as it came; the specification asks for the version in it, and plugins exist that leave it out.
fn passed_on(previous: &Value, version: Version) -> Vec<u8> {
    let mut result = previous.clone();
    if let Some(object) = result.as_object_mut() {
        object.entry("cniVersion").or_insert_with(|| Value::from(version.as_str()));
    }
    result.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(previous: Value) -> Result<Vec<String>, u32> {
        let found = addresses(&previous, Version::V1_0_0, "eth0").map_err(|error| error.code)?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_are_those_of_the_containers_interface_whatever_else_a_primary_names() {
        let ptp = json!({"interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}], "ips": [
            {"address": "10.244.1.7/24", "gateway": "10.244.1.1", "interface": 1}, {"address": "fd00::7/64", "interface": 1}]});
        assert_eq!(of(ptp).unwrap(), ["10.244.1.7", "fd00::7"]);
        // As azure-vnet prints it: no host end, no sandbox.
        let azure = json!({"cniVersion": "0.3.0", "interfaces": [{"name": "eth0"}], "dns": {},
            "ips": [{"version": "4", "interface": 0, "address": "10.241.0.21/16", "gateway": "10.241.0.1"}]});
        assert_eq!(of(azure).unwrap(), ["10.241.0.21"]);
        let unnamed = json!({"ips": [{"address": "10.244.1.7/32"}, {"address": "10.244.1.7/24"}]});
        assert_eq!(of(unnamed).unwrap(), ["10.244.1.7"]);
        let second = json!({"interfaces": [{"name": "net1"}, {"name": "eth0"}],
            "ips": [{"address": "10.9.0.7/24", "interface": 0}, {"address": "10.244.1.7/24", "interface": 1}]});
        assert_eq!(of(second).unwrap(), ["10.244.1.7"]);
    }

    #[test]
    fn a_result_without_an_address_of_a_pod_or_that_is_none_is_refused() {
        let ips = |addresses: &[&str]| json!({"ips": addresses.iter().map(|ip| json!({"address": ip})).collect::<Vec<_>>()});
        for bad in ["127.0.0.1/8", "0.0.0.0/0", "224.0.0.1/32", "fe80::1/64", "255.255.255.255/32", "::1/128"]
        {
            assert_eq!(of(ips(&[bad])), Err(code::INVALID_CONFIG), "{bad}");
        }
        assert_eq!(of(ips(&[])), Err(code::INVALID_CONFIG));
        let many: Vec<String> = (1..=17).map(|last| format!("10.244.1.{last}/24")).collect();
        assert_eq!(of(ips(&many.iter().map(String::as_str).collect::<Vec<_>>())), Err(code::INVALID_CONFIG));
        assert_eq!(of(json!({"ips": [{"address": "nonsense"}]})), Err(code::DECODING));
        assert_eq!(
            of(json!({"ips": [{"address": "10.0.0.1/8", "interface": 9}]})),
            Err(code::INVALID_CONFIG)
        );
        assert_eq!(of(json!([])), Err(code::DECODING));
    }

    #[test]
    fn what_the_plugins_before_said_is_passed_on_as_it_came() {
        let previous = json!({"cniVersion": "0.3.0", "ips": [{"address": "10.1.0.2/24", "x-own": [1, null]}], "x": {"y": 1.5}});
        assert_eq!(
            serde_json::from_slice::<Value>(&passed_on(&previous, Version::V1_1_0)).unwrap(),
            previous
        );
        let printed: Value =
            serde_json::from_slice(&passed_on(&json!({"ips": []}), Version::V0_4_0)).unwrap();
        assert_eq!(printed["cniVersion"], "0.4.0");
    }
}
