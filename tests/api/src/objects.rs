// SPDX-License-Identifier: Apache-2.0

use std::path::{Path, PathBuf};

use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::core::{GroupVersionKind, Request};
use kube::{Client, Discovery};
use serde_json::Value;

/// One YAML document of a file of the repository.
pub struct Document {
    /// The file's name.
    pub file: String,
    /// The file's text.
    pub text: String,
    /// The object.
    pub object: Value,
}

/// The folder of the checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every document of every YAML file in a folder of the repository, in the order of their names.
///
/// # Panics
/// If a file cannot be read or is not YAML.
pub fn documents(folder: &str) -> Vec<Document> {
    let mut paths: Vec<_> = std::fs::read_dir(repository().join(folder))
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    paths.iter().flat_map(|path| documents_of(path)).collect()
}

fn documents_of(path: &Path) -> Vec<Document> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"));
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
    objects.into_iter().map(|object| Document { file: file.clone(), text: text.clone(), object }).collect()
}

impl Document {
    /// Asks the server what it would do with the object, unknown fields being errors, as kubectl asks.
    ///
    /// # Errors
    /// The server's refusal.
    ///
    /// # Panics
    /// If the object's kind is not installed.
    pub async fn try_create(&self, client: &Client) -> kube::Result<DynamicObject> {
        let text = |field: &str| self.object[field].as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        let url =
            collection(client, &GroupVersionKind::gvk(group, version, &kind), &self.object["metadata"]).await;
        let parameters = PostParams { dry_run: true, ..Default::default() };
        let body = serde_json::to_vec(&self.object).expect("JSON");
        let mut request = Request::new(url).create(&parameters, body).expect("a request");
        *request.uri_mut() = format!("{}&fieldValidation=Strict", request.uri()).parse().expect("a path");
        client.request(request).await
    }
}

async fn collection(client: &Client, gvk: &GroupVersionKind, metadata: &Value) -> String {
    let discovery = Discovery::new(client.clone()).filter(&[&gvk.group]).run().await.expect("discovery");
    let (resource, capabilities) =
        discovery.resolve_gvk(gvk).unwrap_or_else(|| panic!("{gvk:?} is not installed"));
    let namespaced = matches!(capabilities.scope, kube::discovery::Scope::Namespaced);
    let namespace = metadata["namespace"].as_str().filter(|_| namespaced);
    <DynamicObject as kube::Resource>::url_path(&resource as &ApiResource, namespace)
}
