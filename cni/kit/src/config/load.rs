// SPDX-License-Identifier: Apache-2.0
//! Networks from the files of a directory, such as `/etc/cni/net.d`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::list::{NetworkList, plugin};
use super::{object, read_bounded};
use crate::error::{Error, code};
use crate::version::Version;

/// A file, and the network in it or why there is none.
pub type Loaded = (PathBuf, Result<NetworkList, Error>);

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::new(code::IO, format!("{} cannot be read", path.display())).with_details(error.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut file = File::open(path).map_err(|error| failed(path, &error))?;
    read_bounded(&mut file, &path.display().to_string())
}

/// Files of `dir` with one of these extensions, by name. A directory that is not there has none.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(dir, &error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(dir, &error))?.path();
        let fits = path.extension().is_some_and(|own| extensions.iter().any(|wanted| own == *wanted));
        if fits && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads one file: a list if its name ends in `.conflist`, else a single configuration. A list that allows it gets
/// the plugins of `<directory>/<network>/*.conf` appended, by name. Code 7 if there is no plugin in the end.
pub fn load_file(path: &Path, own: Version) -> Result<NetworkList, Error> {
    let bytes = read(path)?;
    if path.extension().is_none_or(|extension| extension != "conflist") {
        return NetworkList::of_single(&bytes, own);
    }
    let mut list = NetworkList::parse(&bytes, own)?;
    if let Some(dir) = path.parent().filter(|_| !list.only_inlined) {
        for file in files(&dir.join(&list.name), &["conf"])? {
            let conf = object(&read(&file)?, &file.display().to_string())?;
            list.plugins.push(plugin(Value::Object(conf))?);
        }
    }
    if list.plugins.is_empty() {
        return Err(Error::new(code::INVALID_CONFIG, format!("network {} has no plugins", list.name)));
    }
    let plugins = list.plugins.iter().cloned().map(Value::Object).collect();
    list.raw.insert("plugins".to_owned(), Value::Array(plugins));
    Ok(list)
}

/// Every network of a directory: first the `.conflist` files by name, then `.conf` and `.json` by name, as the Go
/// library looks for them. A file that cannot be used is in the answer with its error. Code 5 if the directory
/// cannot be read.
pub fn load_dir(dir: &Path, own: Version) -> Result<Vec<Loaded>, Error> {
    let mut paths = files(dir, &["conflist"])?;
    paths.extend(files(dir, &["conf", "json"])?);
    Ok(paths.into_iter().map(|path| (path.clone(), load_file(&path, own))).collect())
}

/// The first network with this name. Code 7 if there is none; files that cannot be used are named in its details.
pub fn find(dir: &Path, name: &str, own: Version) -> Result<NetworkList, Error> {
    let mut broken = Vec::new();
    for (path, loaded) in load_dir(dir, own)? {
        match loaded {
            Ok(list) if list.name == name => return Ok(list),
            Ok(_) => {}
            Err(error) => broken.push(format!("{}: {error}", path.display())),
        }
    }
    let msg = format!("no network {name:?} in {}", dir.display());
    Err(Error::new(code::INVALID_CONFIG, msg).with_details(broken.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, name: &str, text: &str) {
        fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn r9_lists_come_before_single_files_each_sorted_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let single = r#"{"name":"s","type":"x"}"#;
        put(dir.path(), "00-a.conf", single);
        put(dir.path(), "01-b.json", single);
        put(dir.path(), "99-c.conflist", r#"{"name":"l","plugins":[{"type":"x"}]}"#);
        put(dir.path(), "50-d.conflist", "broken");
        put(dir.path(), "README", "no network");
        let loaded = load_dir(dir.path(), Version::NEWEST).unwrap();
        let names: Vec<_> =
            loaded.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["50-d.conflist", "99-c.conflist", "00-a.conf", "01-b.json"]);
        assert!(loaded[0].1.is_err() && loaded[1].1.is_ok());
        assert_eq!(find(dir.path(), "l", Version::NEWEST).unwrap().name, "l");
        assert!(find(dir.path(), "z", Version::NEWEST).unwrap_err().details.contains("50-d.conflist"));
    }

    #[test]
    fn r9_plugins_of_the_folder_are_appended_unless_only_inlined_ones_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("l")).unwrap();
        put(dir.path(), "l/2.conf", r#"{"type":"two"}"#);
        put(dir.path(), "l/1.conf", r#"{"type":"one"}"#);
        put(dir.path(), "l.conflist", r#"{"name":"l","plugins":[{"type":"x"}]}"#);
        let types = || {
            let list = load_file(&dir.path().join("l.conflist"), Version::NEWEST).unwrap();
            list.plugins.iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(types(), ["x", "one", "two"]);
        put(
            dir.path(),
            "l.conflist",
            r#"{"name":"l","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}"#,
        );
        assert_eq!(types(), ["x"]);
    }
}
