// SPDX-License-Identifier: Apache-2.0
//! From the kubeconfig to a client.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::args::Target;

/// Longest that one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A client for the cluster that the command line names, and the context's name.
pub(crate) async fn client(target: &Target) -> Result<(Client, String)> {
    let kubeconfig = match &target.kubeconfig {
        Some(path) => {
            Kubeconfig::read_from(path).with_context(|| format!("read the kubeconfig {}", path.display()))?
        }
        None => Kubeconfig::read().context("read the kubeconfig; set $KUBECONFIG or give --kubeconfig")?,
    };
    let known: Vec<String> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
    let context = target.context.clone().or_else(|| kubeconfig.current_context.clone());
    let context = context.filter(|name| known.contains(name)).with_context(|| match &target.context {
        Some(name) => format!("the kubeconfig has no context {name:?}; it has: {}", known.join(", ")),
        None => {
            format!("the kubeconfig has no current context; give --context, one of: {}", known.join(", "))
        }
    })?;
    let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .with_context(|| format!("use the context {context:?} of the kubeconfig"))?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(REQUEST_TIMEOUT);
    let client =
        Client::try_from(config).with_context(|| format!("make a client for the context {context:?}"))?;
    Ok((client, context))
}
