// SPDX-License-Identifier: Apache-2.0
//! A plugin for addresses that is not ours, before our link: our program runs it on the node, where it is, and tells us.

use std::net::IpAddr;
use std::time::Duration;

use isthmus_cni::wire::Delegated;
use isthmus_cni_kit::config::net_conf::NetConf;
use isthmus_cni_kit::error::{Error, code};
use isthmus_cni_kit::names::check_plugin_type;
use isthmus_cni_kit::result::AddResult;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::call::{Call, Target};
use super::chained::addresses;
use super::work::{blocking, given_error, printed_as, result};
use super::workshop::Workshop;

/// The plugin whose name means ours.
const OWN: &str = "isthmus-ipam";
/// A plugin for addresses that asks a server may take its time.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Another plugin is to be run.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) plugin: String,
    pub(super) command: &'static str,
    pub(super) answer: oneshot::Sender<std::io::Result<Delegated>>,
}

/// Runs other plugins where the call came from.
#[derive(Clone, Debug)]
pub(super) struct Runner(pub(super) mpsc::Sender<Wanted>);

/// The plugin for addresses that a configuration names.
pub(super) struct OtherIpam<'a> {
    plugin: &'a str,
    runner: &'a Runner,
}

impl<'a> OtherIpam<'a> {
    /// None where the addresses are ours to give.
    pub(super) fn of(config: &'a NetConf, runner: &'a Runner) -> Result<Option<Self>, Error> {
        let Some(plugin) = config.ipam_type().filter(|plugin| *plugin != OWN) else {
            return Ok(None);
        };
        check_plugin_type(plugin)?;
        Ok(Some(Self { plugin, runner }))
    }

    /// What it printed.
    async fn run(&self, command: &'static str) -> Result<Vec<u8>, Error> {
        let (answer, outcome) = oneshot::channel();
        let wanted = Wanted { plugin: self.plugin.to_owned(), command, answer };
        let lost = || {
            Error::new(
                code::TRY_AGAIN,
                format!("whether {command} of {} went well is not known: the caller is gone", self.plugin),
            )
        };
        self.runner.0.send(wanted).await.map_err(|_| lost())?;
        match outcome.await {
            Ok(Ok(Delegated { exit_code: 0, stdout })) => Ok(stdout),
            Ok(Ok(Delegated { stdout, .. })) => {
                let error = Error::of_output(&stdout, b"");
                Err(Error::new(error.code, format!("{}: {}", self.plugin, error.msg))
                    .with_details(error.details))
            }
            Ok(Err(error)) => Err(lost().with_details(error.to_string())),
            Err(_) => Err(lost()),
        }
    }
}

impl Workshop {
    /// Does what is asked, with another plugin's addresses; the container's lock is held.
    pub(super) async fn with_other_ipam(
        &self,
        call: Call,
        config: &NetConf,
        ipam: &OtherIpam<'_>,
    ) -> Result<Vec<u8>, Error> {
        match call {
            Call::Add(target) => return self.add_with(&target, config, ipam).await,
            Call::Del(key) => {
                self.del(&key).await?;
                ipam.run("DEL").await?;
            }
            Call::Check(target) => {
                ipam.run("CHECK").await?;
                self.check(target, config).await?;
            }
            Call::Gc => {
                let own = self.gc(config).await;
                ipam.run("GC").await?;
                own?;
            }
            Call::Status => {
                let blocked = self.node().view().blocked;
                blocked.map_or(Ok(()), |why| Err(Error::new(code::UNAVAILABLE, why)))?;
                ipam.run("STATUS").await?;
            }
        }
        Ok(Vec::new())
    }

    async fn add_with(
        &self,
        target: &Target,
        config: &NetConf,
        ipam: &OtherIpam<'_>,
    ) -> Result<Vec<u8>, Error> {
        let view = self.node().view();
        if let Some(why) = view.blocked {
            return Err(Error::new(code::TRY_AGAIN, why));
        }
        if self.node().ledger().get(&target.key).is_some() {
            // What the other plugin gave before must not be given back now.
            let msg =
                format!("container {} has an attachment {} already", target.key.container, target.key.ifname);
            return Err(Error::new(code::INVALID_ENVIRONMENT, msg).with_details("DEL it first"));
        }
        if view.egress() {
            self.wait_for_pod(target).await?;
        }
        let made = match ipam.run("ADD").await {
            Ok(printed) => self.make_with(target, config, &printed, view.pod_mtu).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            // The first error is the one to tell.
            if let Err(error) = ipam.run("DEL").await {
                tracing::warn!(container = target.key.container, %error, "an address may be left with its plugin until DEL");
            }
        }
        made
    }

    /// The link for addresses that were given.
    async fn make_with(
        &self,
        target: &Target,
        config: &NetConf,
        printed: &[u8],
        mtu: u32,
    ) -> Result<Vec<u8>, Error> {
        let decode = |error| Error::new(code::DECODING, format!("the result of the ipam plugin: {error}"));
        let given: Value = serde_json::from_slice(printed).map_err(decode)?;
        let addresses = addresses(&given, config.version(), target.ifname.as_str())?;
        one_of_each(&addresses)?;
        let (node, key) = (self.shared_node(), target.key.clone());
        let (namespace, name) = target.pod_name();
        let taken = blocking(move || node.ledger().take(&key, (&namespace, &name), addresses)).await?;
        let attachment = taken.map_err(given_error)?;
        match self.make(target, &attachment, mtu).await {
            Ok(made) => {
                let result = result(target, &attachment, &made, mtu);
                // What the other plugin says of name resolution holds.
                let (_, given) = AddResult::from_json(&given, config.version())?;
                printed_as(&AddResult { dns: given.dns, ..result }, config)
            }
            Err(error) => {
                self.undo(&target.key, &attachment).await;
                Err(error)
            }
        }
    }
}

/// Our links have one address of each family.
fn one_of_each(addresses: &[IpAddr]) -> Result<(), Error> {
    let v6 = addresses.iter().filter(|address| address.is_ipv6()).count();
    if v6 <= 1 && addresses.len() - v6 <= 1 {
        return Ok(());
    }
    let msg = "the ipam plugin gave several addresses of one family, and isthmus-cni takes one of each";
    Err(Error::new(code::INVALID_CONFIG, msg))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use isthmus_kernel::PodLinks;
    use serde_json::json;

    use super::super::call::Role;
    use super::*;
    use crate::addresses::Ledger;
    use crate::chained::Registry;
    use crate::node::Node;

    #[tokio::test]
    async fn while_another_plugins_gc_runs_calls_of_containers_are_served() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&directory.path().join("journal"), &BTreeMap::new());
        let chained = Registry::open(&directory.path().join("chained"), &BTreeMap::new());
        let links = PodLinks::open().unwrap();
        let (node, _advances) = Node::new(Arc::default(), links, ledger, chained, Arc::default());
        let workshop = Workshop::new(node);
        let (runner, mut asked) = mpsc::channel(1);
        let runner = Runner(runner);
        let config = json!({ "cniVersion": "1.1.0", "name": "isthmus", "type": "isthmus-cni",
            "ipam": { "type": "host-local" }, "cni.dev/valid-attachments": [] });
        let config = NetConf::parse(config.to_string().as_bytes()).unwrap();
        let other = async {
            let wanted = asked.recv().await.unwrap();
            assert_eq!(wanted.command, "GC");
            assert!(workshop.all.try_read().is_ok(), "ADD would wait for it");
            wanted.answer.send(Ok(Delegated { exit_code: 0, stdout: Vec::new() })).unwrap();
        };
        let (served, ()) = tokio::join!(workshop.call(Role::Cni, Call::Gc, &config, &runner), other);
        assert!(served.outcome.is_ok());
    }
}
