// SPDX-License-Identifier: Apache-2.0
//! What the program does under its own name.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::{names, plugin};

/// The program's own name beside its links.
const PROGRAM: &str = "isthmus-plugins";
const HELP: &str = "\
The reference plugins of CNI in one program.

Usage:
  isthmus-plugins install [OPTION…] DIR [NAME…]  link the plugins (all, or those named) into DIR, such as /opt/cni/bin
      --copy                                     put the program there, too, so that the links lead nowhere else
      --missing                                  pass over those that DIR has from somebody else
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
        ["install", rest @ ..] => Install::of(rest).and_then(|install| install.run()),
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

/// What is to be linked where.
#[derive(Debug, PartialEq, Eq)]
struct Install<'a> {
    directory: &'a Path,
    /// All, if it is empty.
    only: &'a [&'a str],
    copy: bool,
    missing: bool,
}

impl<'a> Install<'a> {
    fn of(mut words: &'a [&'a str]) -> Result<Self, String> {
        let (mut copy, mut missing) = (false, false);
        loop {
            match words {
                ["--copy", rest @ ..] => (copy, words) = (true, rest),
                ["--missing", rest @ ..] => (missing, words) = (true, rest),
                [directory, only @ ..] if !directory.starts_with('-') => {
                    return Ok(Self { directory: Path::new(*directory), only, copy, missing });
                }
                _ => return Err(format!("isthmus-plugins: install {words:?}: where to?\n\n{HELP}")),
            }
        }
    }

    /// Makes the links, and with `copy` puts the program beside them first, so that they lead nowhere else.
    fn run(&self) -> Result<String, String> {
        if let Some(unknown) = self.only.iter().find(|name| plugin(name).is_none()) {
            return Err(format!(
                "isthmus-plugins: there is no plugin {unknown:?}; `isthmus-plugins list` names them\n"
            ));
        }
        let told = |what: &Path, error: io::Error| format!("isthmus-plugins: {}: {error}\n", what.display());
        let own = std::env::current_exe().map_err(|error| told(Path::new("the program"), error))?;
        let target: PathBuf = if self.copy { PROGRAM.into() } else { own.clone() };
        let mut done = String::new();
        let (mut links, mut copied) = (Vec::new(), !self.copy);
        for name in names().filter(|name| self.only.is_empty() || self.only.contains(name)) {
            let link = self.directory.join(name);
            match self.missing && of_somebody_else(&link, &target) {
                true => done.push_str(&format!("{} is of somebody else, and stays\n", link.display())),
                false => links.push(link),
            }
        }
        for link in links {
            if !copied {
                copy(&own, self.directory).map_err(|error| told(self.directory, error))?;
                copied = true;
            }
            linked(&target, &link).map_err(|error| told(&link, error))?;
            done.push_str(&format!("{} -> {}\n", link.display(), target.display()));
        }
        Ok(done)
    }
}

/// Whether something is there that is no link of ours.
fn of_somebody_else(path: &Path, target: &Path) -> bool {
    match fs::read_link(path) {
        Ok(leads) => leads != target,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn copy(own: &Path, directory: &Path) -> io::Result<()> {
    let draft = directory.join(".isthmus-plugins.new");
    fs::copy(own, &draft)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    // A program that runs keeps its old file.
    fs::rename(&draft, directory.join(PROGRAM))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_put_there_stays_and_our_own_links_are_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("bridge"), "theirs").unwrap();
        std::os::unix::fs::symlink("elsewhere", at("ptp")).unwrap();
        std::os::unix::fs::symlink(PROGRAM, at("vlan")).unwrap();
        let words = ["--missing", "--copy", dir.path().to_str().unwrap()];
        let said = Install::of(&words).unwrap().run().unwrap();
        assert_eq!(said.matches("stays").count(), 2, "{said}");
        assert_eq!(fs::read_to_string(at("bridge")).unwrap(), "theirs");
        assert_eq!(fs::read_link(at("ptp")).unwrap(), Path::new("elsewhere"));
        for name in ["vlan", "dhcp", "portmap"] {
            assert_eq!(fs::read_link(at(name)).unwrap(), Path::new(PROGRAM), "{name}");
        }
        assert!(fs::metadata(at("portmap")).unwrap().permissions().mode() & 0o111 != 0);
        let named = ["--copy", dir.path().to_str().unwrap(), "bridge"];
        assert!(Install::of(&named).unwrap().run().unwrap_err().contains("somebody else"));
        assert!(Install::of(&["--copy"]).is_err() && Install::of(&["--x", "/tmp"]).is_err());
    }

    #[test]
    fn where_everything_is_of_somebody_else_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        names().for_each(|name| fs::write(dir.path().join(name), "theirs").unwrap());
        let words = ["--copy", "--missing", dir.path().to_str().unwrap()];
        Install::of(&words).unwrap().run().unwrap();
        assert!(!dir.path().join(PROGRAM).exists());
    }
}
