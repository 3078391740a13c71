// SPDX-License-Identifier: Apache-2.0
//! `isthmus-ipam`: addresses of this node's blocks for another plugin's interfaces.

use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use isthmus_cni_kit::config::net_conf::NetConf;
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::result::{AddResult, Ip};
use isthmus_compiler::Share;
use isthmus_model::ownership::mesh_address;
use serde_json::Map;

use super::call::{Call, Target};
use super::work::{blocking, default_route, given_error, names_all, printed_as};
use super::workshop::Workshop;
use crate::addresses::{Attachment, AttachmentKey};

impl Workshop {
    /// Does what is asked of the plugin for addresses; the container's lock is held.
    pub(super) async fn ipam(&self, call: Call, config: &NetConf) -> Result<Vec<u8>, Error> {
        match call {
            Call::Add(target) => self.lease(&target, config).await,
            Call::Del(key) => {
                if self.leased(&key).is_some() {
                    self.give_back(&key).await;
                }
                Ok(Vec::new())
            }
            Call::Check(target) => self.check_lease(&target, config).map(|()| Vec::new()),
            Call::Gc => {
                let _alone = self.all.write().await;
                let gone = self.stale_leases(config)?;
                for key in &gone {
                    self.give_back(key).await;
                }
                Ok(Vec::new())
            }
            Call::Status => {
                let unavailable = |why| Error::new(code::UNAVAILABLE, why);
                self.node().readiness().map_err(unavailable).map(|()| Vec::new())
            }
        }
    }

    async fn lease(&self, target: &Target, config: &NetConf) -> Result<Vec<u8>, Error> {
        let view = self.node().view();
        if let Some(why) = view.blocked {
            return Err(Error::new(code::TRY_AGAIN, why));
        }
        let Share { pools, own, mac } = self.share_of(target).await?;
        if !own.is_empty() || mac.is_some() {
            let msg = "the pod asks for an address of its own, which isthmus-ipam does not give";
            return Err(Error::new(code::INVALID_CONFIG, msg)
                .with_details("remove the annotation, or let isthmus-cni make the pod's interface"));
        }
        let (node, key, network) = (self.shared_node(), target.key.clone(), config.name().to_owned());
        let (namespace, name) = target.pod_name();
        let given = blocking(move || {
            node.ledger().lease(&key, (&namespace, &name), &pools, &network, Instant::now())
        });
        let printed = result(&given.await?.map_err(given_error)?, config);
        if printed.is_err() {
            self.give_back(&target.key).await;
        }
        printed
    }

    fn leased(&self, key: &AttachmentKey) -> Option<Attachment> {
        self.node().ledger().get(key).filter(|to| to.lease.is_some()).cloned()
    }

    fn check_lease(&self, target: &Target, config: &NetConf) -> Result<(), Error> {
        let Some(lease) = self.leased(&target.key) else {
            let msg = format!("container {} has no address for {}", target.key.container, target.key.ifname);
            return Err(Error::new(code::UNKNOWN_CONTAINER, msg));
        };
        names_all(config, &lease.addresses)
    }

    fn stale_leases(&self, config: &NetConf) -> Result<Vec<AttachmentKey>, Error> {
        let stays = super::work::stays(config)?;
        let ledger = self.node().ledger();
        let of_network =
            |to: &Attachment| to.lease.as_ref().is_some_and(|lease| lease.network == config.name());
        let gone = ledger.attachments().iter().filter(|(key, to)| of_network(to) && !stays(key));
        Ok(gone.map(|(key, _)| key.clone()).collect())
    }
}

/// Of each block the first address is the node's: the gateway. Routes are the configuration's, else the default ones.
fn result(given: &[(IpAddr, IpNet)], config: &NetConf) -> Result<Vec<u8>, Error> {
    let ip = |(address, block): &(IpAddr, IpNet)| Ip {
        interface: None,
        address: IpNet::new(*address, block.prefix_len()).unwrap_or_else(|_| IpNet::from(*address)),
        gateway: Some(mesh_address(block)),
        extra: Map::new(),
    };
    let default = |(address, _): &(IpAddr, IpNet)| default_route(address.is_ipv6());
    let configured = config.raw().get("ipam").and_then(|ipam| ipam.get("routes")).cloned();
    let routes = match configured {
        None => given.iter().map(default).collect(),
        Some(routes) => serde_json::from_value(routes)
            .map_err(|error| Error::new(code::INVALID_CONFIG, format!("ipam.routes: {error}")))?,
    };
    let result = AddResult { ips: given.iter().map(ip).collect(), routes, ..AddResult::default() };
    printed_as(&result, config)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn printed(ipam: Value) -> Result<Value, u32> {
        let config = json!({ "cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": ipam });
        let config = NetConf::parse(config.to_string().as_bytes()).unwrap();
        let given = [("10.1.0.5".parse().unwrap(), "10.1.0.0/26".parse().unwrap())];
        let bytes = result(&given, &config).map_err(|error| error.code)?;
        Ok(serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn an_address_comes_with_its_blocks_length_and_the_nodes_address_as_gateway() {
        let result = printed(json!({ "type": "isthmus-ipam" })).unwrap();
        let expected = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.0.5/26", "gateway": "10.1.0.0" }],
            "routes": [{ "dst": "0.0.0.0/0" }] });
        assert_eq!(result, expected);
        let routes = json!([{ "dst": "192.0.2.0/24", "gw": "10.1.0.9" }]);
        assert_eq!(printed(json!({ "type": "isthmus-ipam", "routes": routes })).unwrap()["routes"], routes);
        assert_eq!(printed(json!({ "type": "isthmus-ipam", "routes": [7] })), Err(code::INVALID_CONFIG));
    }
}
