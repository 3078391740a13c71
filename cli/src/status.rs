// SPDX-License-Identifier: Apache-2.0
//! `isthmus status`: asks the API for everything once, then prints the report.

use std::fmt::Debug;

use anyhow::Result;
use isthmus_api::about::{CLUSTER_ID, ClusterProperty};
use isthmus_model::ownership::SYSTEM_NAMESPACE;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use crate::args::Output;
use crate::out::{put, say};
use crate::report::{Facts, Report};
use crate::{failure, yaml};

/// Prints how the cluster's network is; returns the exit code.
pub(crate) async fn run(client: Client, context: String, output: Output) -> Result<u8> {
    let report = Report::of(&facts(client, context).await?, jiff::Timestamp::now());
    match output {
        Output::Json => say!("{}", serde_json::to_string_pretty(&report)?),
        Output::Yaml => put!("{}", yaml::print(&report)?),
        Output::Table => put!("{}", report.text()),
    }
    Ok(if report.problems.is_empty() { crate::OK } else { crate::NOT_READY })
}

async fn facts(client: Client, context: String) -> Result<Facts> {
    let (nodes, networks, pools, peerings) = futures::try_join!(
        every(client.clone(), "nodes"),
        every(client.clone(), "node networks"),
        every(client.clone(), "pools"),
        every(client.clone(), "peerings"),
    )?;
    let (invitations, policies, exports, imports) = futures::try_join!(
        every(client.clone(), "invitations"),
        every(client.clone(), "egress policies"),
        every(client.clone(), "service exports"),
        every(client.clone(), "service imports"),
    )?;
    let properties: Vec<ClusterProperty> = every(client.clone(), "cluster properties").await?;
    let is_id = |property: &ClusterProperty| property.metadata.name.as_deref() == Some(CLUSTER_ID);
    let cluster_id = properties.into_iter().find(is_id).map(|property| property.spec.value);
    let operator =
        Api::<Deployment>::namespaced(client.clone(), SYSTEM_NAMESPACE).get_opt("isthmus-operator").await;
    let operator = operator.map_err(|error| failure::explain(error, "look for the operator"))?;
    let agent = Api::<DaemonSet>::namespaced(client, SYSTEM_NAMESPACE).get_opt("isthmus-agent").await;
    let agent = agent.map_err(|error| failure::explain(error, "look for the agent"))?;
    Ok(Facts {
        context,
        cluster_id,
        operator,
        agent,
        nodes,
        networks,
        pools,
        peerings,
        invitations,
        policies,
        exports,
        imports,
    })
}

/// All objects of a kind.
pub(crate) async fn every<K>(client: Client, what: &str) -> Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let found = Api::<K>::all(client).list(&ListParams::default()).await;
    found.map(|list| list.items).map_err(|error| failure::explain(error, &format!("list the {what}")))
}
