// SPDX-License-Identifier: Apache-2.0
//! The init step: puts the plugin binary on the node.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::conflist::{Conflist, write_atomically};

const PLUGIN: &str = "isthmus-cni";
/// The same program: it goes by the name that it is called as.
const NAMES: [&str; 2] = [PLUGIN, "isthmus-ipam"];

/// Copies the plugin from `source` into the directory `target`, atomically. A runtime that executes it meanwhile runs the old one.
pub fn install(source: &Path, target: &Path) -> anyhow::Result<()> {
    let content = fs::read(source).with_context(|| format!("cannot read the plugin {}", source.display()))?;
    fs::create_dir_all(target)
        .with_context(|| format!("cannot create {}; mount the host's CNI directory", target.display()))?;
    NAMES.iter().try_for_each(|name| install_as(&target.join(name), &content))
}

fn install_as(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            bail!("{} is no regular file; remove it, then the plugin can be installed", path.display())
        }
        Ok(_) if fs::read(path).is_ok_and(|installed| installed == content) => {
            tracing::info!(path = %path.display(), "the plugin is installed already");
            return Ok(());
        }
        _ => {}
    }
    write_atomically(path, content, 0o755).with_context(|| format!("cannot write {}", path.display()))?;
    tracing::info!(path = %path.display(), bytes = content.len(), "the plugin is installed");
    Ok(())
}

/// Has the program of the reference plugins put itself and links of these names into `target`; with `all` those of every plugin. What is
/// there from somebody else stays. Without a name nothing is done.
pub fn install_plugins(source: &Path, names: &[String], target: &Path) -> anyhow::Result<()> {
    let Some(words) = words(names) else { return Ok(()) };
    let output = Command::new(source)
        .args(["install", "--copy", "--missing"])
        .arg(target)
        .args(words)
        .output()
        .with_context(|| format!("cannot run {}", source.display()))?;
    let said = String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
    if !output.status.success() {
        bail!("the plugins {names:?} cannot be installed ({}): {}", output.status, said.trim());
    }
    said.lines().for_each(|line| tracing::info!("{line}"));
    Ok(())
}

/// The names as the program takes them: of all none. None if there is nothing to do.
fn words(names: &[String]) -> Option<Vec<&str>> {
    let names: Vec<&str> = names.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    match names.contains(&"all") {
        true => Some(Vec::new()),
        false => Some(names).filter(|names| !names.is_empty()),
    }
}

/// Takes away the configuration first, so that no runtime is told of a plugin that is gone.
pub fn uninstall(cni_config: &Path, target: &Path) -> anyhow::Result<()> {
    Conflist::remove(cni_config).with_context(|| format!("cannot write {}", cni_config.display()))?;
    NAMES.iter().map(|name| target.join(name)).try_for_each(|path| match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    })
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
            for path in NAMES.map(|name| target.join(name)) {
                assert_eq!(fs::read_to_string(&path).unwrap(), content);
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
            }
        }
        assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
    }

    #[test]
    fn plugins_are_installed_only_where_they_are_asked_for_and_a_refusal_is_told() {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for nothing in [&[][..], &[""], &[" ", ""]] {
            assert_eq!(words(&owned(nothing)), None);
            install_plugins(Path::new("/nonesuch"), &owned(nothing), Path::new("/")).unwrap();
        }
        assert_eq!(words(&owned(&["dhcp", " bridge"])), Some(vec!["dhcp", "bridge"]));
        assert_eq!(words(&owned(&["all", "bridge"])), Some(Vec::new()));
        install_plugins(Path::new("/bin/true"), &owned(&["all"]), Path::new("/")).unwrap();
        let refused =
            install_plugins(Path::new("/bin/false"), &owned(&["dhcp"]), Path::new("/")).unwrap_err();
        assert!(refused.to_string().contains("dhcp"), "{refused}");
    }

    #[test]
    fn what_was_installed_is_taken_away_and_what_others_have_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        for name in
            [PLUGIN, NAMES[1], "05-isthmus.conflist", "00-isthmus.conflist", "ptp", "10-pods.conflist"]
        {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        for _ in 0..2 {
            uninstall(directory.path(), directory.path()).unwrap();
        }
        let left = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, ["10-pods.conflist", "ptp"]);
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
