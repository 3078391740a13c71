// SPDX-License-Identifier: Apache-2.0
//! Services reach across by name.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use isthmus_e2e::{Duo, EAST, Pod, WEST, apply, delete, json, within};

const WEB: &str = "http://web.shop.svc.clusterset.local";

#[track_caller]
fn shop() -> Option<(Duo, Pod, Vec<Pod>)> {
    let duo = isthmus_e2e::peered()?;
    let client = Pod::find(EAST, "shop", "client").unwrap_or_else(|error| panic!("{error:#}"));
    let web = Pod::labelled(WEST, "shop", "app=web").unwrap_or_else(|error| panic!("{error:#}"));
    Some((duo, client, web))
}

/// What `kubectl get` finds in namespace shop of east, by name.
fn names(kind: &str, label: &str) -> Vec<String> {
    let list = json(EAST, &["-n", "shop", kind, "-l", label]).unwrap_or_default();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Addresses that east has for a service of west, ready ones only.
fn mirrored(service: &str) -> Result<BTreeSet<String>, String> {
    ready_addresses(EAST, &format!("multicluster.kubernetes.io/service-name={service}"))
}

/// Addresses in a cluster's EndpointSlices with this label, ready ones only.
fn ready_addresses(cluster: &str, label: &str) -> Result<BTreeSet<String>, String> {
    let list = json(cluster, &["-n", "shop", "endpointslices", "-l", label])
        .map_err(|error| format!("{error:#}"))?;
    let slices = list["items"].as_array().cloned().unwrap_or_default();
    let endpoints =
        slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false);
    Ok(ready
        .flat_map(|endpoint| endpoint["addresses"].as_array().cloned().unwrap_or_default())
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect())
}

fn wanted(web: &[Pod]) -> BTreeSet<String> {
    web.iter().flat_map(|pod| [pod.ipv4.clone(), pod.ipv6.clone()]).collect()
}

/// Waits until east has exactly these addresses for a service.
#[track_caller]
fn mirrored_within(deadline: Duration, service: &str, wanted: &BTreeSet<String>) {
    within(deadline, || {
        let seen = mirrored(service)?;
        if seen == *wanted {
            Ok(())
        } else {
            Err(format!("{service} has {seen:?} in east, wanted {wanted:?}"))
        }
    });
}

#[test]
fn a_service_of_west_is_reached_from_east_by_its_clusterset_name() {
    let Some((_duo, client, web)) = shop() else { return };
    let pods: BTreeSet<String> = web.iter().map(|pod| pod.name.clone()).collect();

    let mut answered = BTreeSet::new();
    within(Duration::from_secs(60), || {
        let name = client
            .exec(&["curl", "-sS", "-m", "5", &format!("{WEB}/hostname")])
            .map_err(|error| format!("{error:#}"))?;
        answered.insert(name);
        if answered == pods {
            Ok(())
        } else {
            Err(format!("{answered:?} answered so far, the pods are {pods:?}"))
        }
    });
}

#[test]
fn the_clusterset_name_resolves_to_addresses_of_the_importing_cluster() {
    let Some((_duo, client, _)) = shop() else { return };
    let import = json(EAST, &["-n", "shop", "serviceimport", "web"]).expect("the import");
    let ips = import["spec"]["ips"].as_array().cloned().unwrap_or_default();

    let resolved =
        client.exec(&["dig", "+short", "web.shop.svc.clusterset.local", "A"]).expect("an answer of DNS");

    assert!(
        ips.iter().any(|ip| ip.as_str() == Some(resolved.trim())),
        "DNS says {resolved:?}, the import has {ips:?}"
    );
    assert!(resolved.starts_with("10.101."), "{resolved} is not of east's service CIDR");
}

#[test]
fn a_headless_service_of_west_resolves_in_east_to_its_pods() {
    let Some((_duo, client, web)) = shop() else { return };
    for (record, wanted) in [
        ("A", web.iter().map(|pod| pod.ipv4.clone()).collect::<BTreeSet<_>>()),
        ("AAAA", web.iter().map(|pod| pod.ipv6.clone()).collect()),
    ] {
        within(Duration::from_secs(40), || {
            let answer = client
                .exec(&["dig", "+short", "web-direct.shop.svc.clusterset.local", record])
                .map_err(|e| format!("{e:#}"))?;
            let seen: BTreeSet<String> = answer.lines().map(str::to_owned).collect();
            if seen == wanted {
                Ok(())
            } else {
                Err(format!("{record} is {seen:?}, the pods are {wanted:?}"))
            }
        });
    }
    let address = "http://web-direct.shop.svc.clusterset.local:8080/hostname";
    let answer = client.exec(&["curl", "-sS", "-m", "5", address]).expect("an answer");
    assert!(web.iter().any(|pod| pod.name == answer), "{answer}");
}

#[test]
fn an_export_appears_in_the_other_cluster_within_two_seconds_and_is_gone_after_unexport() {
    let Some((_duo, _, web)) = shop() else { return };
    let label = "multicluster.kubernetes.io/service-name=late";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\nspec: {ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}";
    let export = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: late, namespace: shop}";
    apply(WEST, service).expect("the service");

    apply(WEST, export).expect("the export");
    let exported = Instant::now();
    mirrored_within(Duration::from_secs(5), "late", &wanted(&web));
    let took = exported.elapsed();
    eprintln!("import after {took:?}");
    assert!(took < Duration::from_secs(2), "the import took {took:?}");

    delete(WEST, &["-n", "shop", "serviceexport", "late"]).expect("unexport");
    within(Duration::from_secs(10), || {
        let left =
            [names("serviceimports", ""), names("endpointslices", label), names("services", "")].concat();
        let left: Vec<String> = left
            .into_iter()
            .filter(|name| name == "late" || name.starts_with("late-") || name.starts_with("derived-"))
            .collect();
        let imports = ["web", "web-direct"];
        // Derived Services of the other imports stay; there is one for each ClusterSetIP import.
        let derived = left.iter().filter(|name| name.starts_with("derived-")).count();
        let own: Vec<&String> = left.iter().filter(|name| !name.starts_with("derived-")).collect();
        if own.is_empty() && derived <= imports.len() {
            Ok(())
        } else {
            Err(format!("still in east: {left:?}"))
        }
    });
    delete(WEST, &["-n", "shop", "service", "late"]).expect("the service");
}

#[test]
fn an_endpoint_that_becomes_unready_in_west_leaves_east_within_two_seconds() {
    let Some((_duo, _, web)) = shop() else { return };
    let (closing, staying): (Vec<Pod>, Vec<Pod>) =
        web.iter().cloned().partition(|pod| pod.name == web[web.len() - 1].name);
    let closing = &closing[0];
    mirrored_within(Duration::from_secs(10), "web", &wanted(&web));

    closing.exec(&["touch", "/tmp/closed"]).expect("the pod closes its door");
    // Kubernetes' own controller says it first, after seconds where it has just been elected anew.
    within(Duration::from_secs(30), || {
        let seen = ready_addresses(WEST, "kubernetes.io/service-name=web")?;
        if seen == wanted(&staying) { Ok(()) } else { Err(format!("web has {seen:?} in west")) }
    });
    let unready = Instant::now();
    mirrored_within(Duration::from_secs(10), "web", &wanted(&staying));
    let took = unready.elapsed();

    closing.exec(&["rm", "/tmp/closed"]).expect("the pod opens again");
    mirrored_within(Duration::from_secs(15), "web", &wanted(&web));
    eprintln!("left after {took:?}");
    assert!(took < Duration::from_secs(2), "it took {took:?}");
}

#[test]
fn an_export_without_a_service_says_so_and_disturbs_nothing() {
    let Some((_duo, _, web)) = shop() else { return };
    apply(WEST, "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: nothing, namespace: shop}").expect("the export");

    let message = within(Duration::from_secs(10), || {
        let export =
            json(WEST, &["-n", "shop", "serviceexport", "nothing"]).map_err(|error| format!("{error:#}"))?;
        let conditions = export["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let valid = conditions
            .iter()
            .find(|condition| condition["type"] == "Valid" && condition["status"] == "False");
        valid.map(|condition| condition["message"].to_string()).ok_or(format!("{conditions:?}"))
    });
    delete(WEST, &["-n", "shop", "serviceexport", "nothing"]).expect("unexport");

    assert!(message.to_lowercase().contains("service"), "{message}");
    mirrored_within(Duration::from_secs(5), "web", &wanted(&web));
}
