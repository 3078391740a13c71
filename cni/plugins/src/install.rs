// SPDX-License-Identifier: Apache-2.0
//! What the program does under its own name.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::{names, plugin};

const HELP: &str = "\
The reference plugins of CNI in one program.

Usage:
  isthmus-plugins install [--copy] DIR [NAME…]   link the plugins (all, or those named) into DIR, such as /opt/cni/bin
  isthmus-plugins list                           name the plugins
  isthmus-plugins dhcp daemon [OPTION…]          what the plugin dhcp asks for leases; --help lists the options
  isthmus-plugins --help | --version

Called by a plugin's name, it is that plugin: the runtime does this. A link that points elsewhere is replaced, a file is not.
";

/// Serves a person.
pub(crate) fn command(arguments: &[OsString]) -> ExitCode {
    let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = match words.as_slice() {
        ["list"] => {
            let about = |name| plugin(name).map(|plugin| plugin.about()).unwrap_or_default();
            Ok(names()
                .map(|name| format!("{:16}{}\n", name, about(name).split_once(": ").map_or("", |it| it.1)))
                .collect())
        }
        ["install", "--copy", directory, only @ ..] => install(Path::new(directory), only, true),
        ["install", directory, only @ ..] if !directory.starts_with('-') => {
            install(Path::new(directory), only, false)
        }
        ["-V" | "--version"] => Ok(format!("isthmus-plugins {}\n", env!("CARGO_PKG_VERSION"))),
        ["-h" | "--help" | "help"] => Ok(HELP.to_owned()),
        [] => Err(HELP.to_owned()),
        _ => Err(format!("isthmus-plugins: {words:?} is no command of it\n\n{HELP}")),
    };
    // Whoever asked may have gone.
    match said {
        Ok(text) => {
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(text) => {
            let _ = io::stderr().write_all(text.as_bytes());
            ExitCode::from(2)
        }
    }
}

/// Makes the links, and with `copy` puts the program beside them first, so that they lead nowhere else.
fn install(directory: &Path, only: &[&str], copy: bool) -> Result<String, String> {
    if let Some(unknown) = only.iter().find(|name| plugin(name).is_none()) {
        return Err(format!(
            "isthmus-plugins: there is no plugin {unknown:?}; `isthmus-plugins list` names them\n"
        ));
    }
    let told = |what: &Path, error: io::Error| format!("isthmus-plugins: {}: {error}\n", what.display());
    let own = std::env::current_exe().map_err(|error| told(Path::new("the program"), error))?;
    let target: PathBuf =
        if copy { copied(&own, directory).map_err(|error| told(directory, error))? } else { own };
    let mut done = String::new();
    for name in names().filter(|name| only.is_empty() || only.contains(name)) {
        let link = directory.join(name);
        linked(&target, &link).map_err(|error| told(&link, error))?;
        done.push_str(&format!("{} -> {}\n", link.display(), target.display()));
    }
    Ok(done)
}

fn copied(own: &Path, directory: &Path) -> io::Result<PathBuf> {
    let draft = directory.join(".isthmus-plugins.new");
    fs::copy(own, &draft)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    // A program that runs keeps its old file.
    fs::rename(&draft, directory.join("isthmus-plugins"))?;
    Ok("isthmus-plugins".into())
}

fn linked(target: &Path, link: &Path) -> io::Result<()> {
    match fs::symlink_metadata(link) {
        Ok(there) if !there.is_symlink() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "this is a file of somebody else: remove it first, or name the plugins to link",
            ));
        }
        _ => {}
    }
    let draft = link.with_extension("new-link");
    let _ = fs::remove_file(&draft);
    std::os::unix::fs::symlink(target, &draft)?;
    fs::rename(&draft, link)
}
