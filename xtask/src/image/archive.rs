// SPDX-License-Identifier: Apache-2.0
//! The docker-archive: `manifest.json`, one configuration, one layer (Docker image specification v1.2).

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::files::Files;

/// What an image is called and how it starts.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Name and tag, for example `isthmus.dev/isthmus:dev`.
    pub reference: String,
    /// The program that runs, and its first arguments. May be empty.
    pub entrypoint: Vec<String>,
    /// The arguments that a pod may replace.
    pub arguments: Vec<String>,
    /// Environment, `NAME=value` each.
    pub environment: Vec<String>,
    /// The signal that asks it to end, where it is not SIGTERM.
    pub stop_signal: Option<String>,
}

/// Writes `image` with the tree `files` as a docker-archive to `out`. Returns its ID, the hash of its
/// configuration; equal inputs give equal bytes.
pub fn write_archive(image: &Image, files: &Files, out: &Path) -> Result<String> {
    let mut layer = tempfile::tempfile_in(out.parent().context("an archive lies in a folder")?)?;
    files.write_tar(BufWriter::new(&mut layer)).with_context(|| format!("writing {}", image.reference))?;
    layer.seek(SeekFrom::Start(0))?;
    write_archive_of_tar(image, layer, out)
}

/// As [`write_archive`], for a layer that is a tar already, read from where `layer` stands.
pub fn write_archive_of_tar(image: &Image, mut layer: File, out: &Path) -> Result<String> {
    let start = layer.stream_position()?;
    let layer_id = hash_of(&mut layer)?;
    let layer_bytes = layer.stream_position()? - start;
    layer.seek(SeekFrom::Start(start))?;

    let config = serde_json::to_vec(&configuration(image, &layer_id))?;
    let id = hex::encode(Sha256::digest(&config));
    let layer_name = format!("{layer_id}/layer.tar");
    let manifest = json!([{
        "Config": format!("{id}.json"),
        "RepoTags": [image.reference],
        "Layers": [layer_name],
    }]);

    let file = File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    append(&mut tar, &format!("{id}.json"), config.len() as u64, config.as_slice())?;
    append(&mut tar, &layer_name, layer_bytes, layer)?;
    let manifest = serde_json::to_vec(&manifest)?;
    append(&mut tar, "manifest.json", manifest.len() as u64, manifest.as_slice())?;
    tar.into_inner()?.flush()?;
    Ok(id)
}

fn configuration(image: &Image, layer_id: &str) -> serde_json::Value {
    let mut run = json!({ "Env": image.environment });
    if !image.entrypoint.is_empty() {
        run["Entrypoint"] = json!(image.entrypoint);
    }
    if !image.arguments.is_empty() {
        run["Cmd"] = json!(image.arguments);
    }
    if let Some(signal) = &image.stop_signal {
        run["StopSignal"] = json!(signal);
    }
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_id}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "isthmus xtask" }],
    })
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, bytes: u64, content: impl Read) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(bytes);
    tar.append_data(&mut header, name, content).with_context(|| format!("cannot add {name} to the archive"))
}

fn hash_of(content: &mut impl Read) -> Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(content, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sample() -> (Image, Files) {
        let image = Image {
            reference: "example.test/a:1".into(),
            entrypoint: vec!["/a".into()],
            environment: vec!["PATH=/".into()],
            ..Image::default()
        };
        let mut files = Files::default();
        files.text("/etc/hosts", "127.0.0.1 localhost\n");
        files.symlink("/bin/b", "/a");
        files.folder("/tmp", 0o1777);
        (image, files)
    }

    fn content(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            entries.insert(name, bytes);
        }
        entries
    }

    #[test]
    fn the_same_image_written_twice_is_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (image, files) = sample();
        let [one, two] = ["one.tar", "two.tar"].map(|name| folder.path().join(name));
        assert_eq!(
            write_archive(&image, &files, &one).unwrap(),
            write_archive(&image, &files, &two).unwrap()
        );
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    }

    #[test]
    fn the_manifest_names_a_configuration_whose_layer_hash_is_that_of_the_layer() {
        let folder = tempfile::tempdir().unwrap();
        let (image, files) = sample();
        let path = folder.path().join("a.tar");
        let id = write_archive(&image, &files, &path).unwrap();
        let entries = content(&std::fs::read(path).unwrap());
        let manifest: serde_json::Value = serde_json::from_slice(&entries["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "example.test/a:1");
        assert_eq!(manifest[0]["Config"], format!("{id}.json"));
        let layer = &entries[manifest[0]["Layers"][0].as_str().unwrap()];
        let config: serde_json::Value = serde_json::from_slice(&entries[&format!("{id}.json")]).unwrap();
        let expected = format!("sha256:{}", hex::encode(Sha256::digest(layer)));
        assert_eq!(config["rootfs"]["diff_ids"][0], expected);
        assert_eq!(config["config"]["Entrypoint"][0], "/a");
    }

    #[test]
    fn a_layer_holds_the_folders_that_lead_to_its_files_before_them() {
        let (_, files) = sample();
        let mut layer = Vec::new();
        files.write_tar(&mut layer).unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["bin", "bin/b", "etc", "etc/hosts", "tmp"]);
    }
}
