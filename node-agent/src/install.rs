// SPDX-License-Identifier: Apache-2.0
//! The init step: puts the plugin binary on the node.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::conflist::write_atomically;

const PLUGIN: &str = "isthmus-cni";

/// Copies the plugin from `source` into the directory `target`, atomically. A runtime that executes it meanwhile runs the old one.
pub fn install(source: &Path, target: &Path) -> anyhow::Result<()> {
    let content = fs::read(source).with_context(|| format!("cannot read the plugin {}", source.display()))?;
    fs::create_dir_all(target)
        .with_context(|| format!("cannot create {}; mount the host's CNI directory", target.display()))?;
    let path = target.join(PLUGIN);
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.is_file() => {
            bail!("{} is no regular file; remove it, then the plugin can be installed", path.display())
        }
        Ok(_) if fs::read(&path).is_ok_and(|installed| installed == content) => {
            tracing::info!(path = %path.display(), "the plugin is installed already");
            return Ok(());
        }
        _ => {}
    }
    write_atomically(&path, &content, 0o755).with_context(|| format!("cannot write {}", path.display()))?;
    tracing::info!(path = %path.display(), bytes = content.len(), "the plugin is installed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_plugin_is_installed_executable_and_again_when_it_changed() {
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (directory.path().join("source"), directory.path().join("bin"));
        for content in ["one", "two", "two"] {
            fs::write(&source, content).unwrap();
            install(&source, &target).unwrap();
            let path = target.join(PLUGIN);
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
        }
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    }

    #[test]
    fn a_symbolic_link_in_its_place_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, "plugin").unwrap();
        symlink("/etc/passwd", directory.path().join(PLUGIN)).unwrap();
        let error = install(&source, directory.path()).unwrap_err().to_string();
        assert!(error.contains("is no regular file"), "{error}");
    }
}
