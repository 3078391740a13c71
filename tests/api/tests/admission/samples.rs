// SPDX-License-Identifier: Apache-2.0

use isthmus_api::mcs::ServiceExport;
use isthmus_api::v1alpha1::{ClusterPeering, EgressPolicy, IPPool, PeeringInvitation};
use isthmus_api_tests::{ADMIN, ApiServer, Document, documents};
use serde::de::DeserializeOwned;

#[tokio::test]
async fn every_sample_is_admitted() {
    let server = ApiServer::shared();
    // Two tests may ask for it.
    let _ = server.kubectl(&["create", "namespace", "shop"]);
    let client = server.client(ADMIN);

    let mut refused = Vec::new();
    for sample in documents("config/samples") {
        if let Err(error) = sample.try_create(&client).await {
            refused.push(format!("{}: {error}", sample.file));
        }
    }

    assert_eq!(refused, [""; 0]);
}

#[tokio::test]
async fn every_wrong_sample_is_refused_with_a_message_that_says_what_to_do() {
    let server = ApiServer::shared();
    let client = server.client(ADMIN);

    let mut surprises = Vec::new();
    for wrong in documents("tests/api/wrong") {
        let expected = expected_refusal(&wrong);
        match wrong.try_create(&client).await {
            Ok(_) => surprises.push(format!("{} was admitted; expected: {expected}", wrong.file)),
            Err(error) if error.to_string().contains(expected) => {}
            Err(error) => surprises.push(format!("{}: expected: {expected}; got: {error}", wrong.file)),
        }
    }

    assert_eq!(surprises, [""; 0]);
}

#[test]
fn every_sample_is_read_by_the_type_of_its_kind() {
    for sample in documents("config/samples") {
        match sample.object["kind"].as_str().unwrap_or_default() {
            "IPPool" => read::<IPPool>(&sample),
            "ClusterPeering" => read::<ClusterPeering>(&sample),
            "PeeringInvitation" => read::<PeeringInvitation>(&sample),
            "EgressPolicy" => read::<EgressPolicy>(&sample),
            "ServiceExport" => read::<ServiceExport>(&sample),
            other => panic!("{}: kind {other} needs a line here", sample.file),
        }
    }
}

/// The line `# refused: …` of a wrong sample.
fn expected_refusal(wrong: &Document) -> &str {
    let line = wrong.text.lines().find_map(|line| line.strip_prefix("# refused: "));
    line.unwrap_or_else(|| panic!("{} has no line `# refused: …`", wrong.file))
}

fn read<T: DeserializeOwned>(sample: &Document) {
    serde_json::from_value::<T>(sample.object.clone())
        .unwrap_or_else(|error| panic!("{}: {error}", sample.file));
}
