// SPDX-License-Identifier: Apache-2.0
//! Programs together with the shared libraries that they need.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::files::Files;
use crate::run::{command, output};

/// The root of an installed system that programs are taken from: this machine's, or one in a folder.
#[derive(Debug, Clone)]
pub struct SystemRoot(PathBuf);

impl SystemRoot {
    /// This machine.
    pub fn host() -> Self {
        Self("/".into())
    }

    /// A system installed into a folder. Needs root, for it is entered with chroot.
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Adds the program or library at `path` of this system under the same path, and every library it needs.
    pub fn add(&self, files: &mut Files, path: &str) -> Result<()> {
        self.add_as(files, path, path)
    }

    /// As [`SystemRoot::add`], under another path in the image.
    pub fn add_as(&self, files: &mut Files, path: &str, image_path: &str) -> Result<()> {
        files.copy(image_path, self.inside(path)?, 0o755);
        for library in self.libraries(path)? {
            files.copy(&library, self.inside(&library)?, 0o755);
        }
        Ok(())
    }

    /// Adds every file of a folder of plug-in libraries, and what they need.
    pub fn add_library_folder(&self, files: &mut Files, folder: &str) -> Result<()> {
        let inside = self.inside(folder)?;
        let entries =
            std::fs::read_dir(&inside).with_context(|| format!("cannot list {}", inside.display()))?;
        let mut names: Vec<String> = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        names.sort();
        names.iter().try_for_each(|name| self.add(files, &format!("{folder}/{name}")))
    }

    fn libraries(&self, path: &str) -> Result<Vec<String>> {
        let mut ldd = if self.0 == Path::new("/") {
            command("ldd", [path])
        } else {
            let mut chroot = command("chroot", [&self.0]);
            chroot.args(["/usr/bin/ldd", path]);
            chroot
        };
        // A static program makes ldd fail: it needs nothing.
        match output(&mut ldd) {
            Ok(text) => parse_ldd(path, &text),
            Err(error) if error.to_string().contains("not a dynamic executable") => Ok(Vec::new()),
            Err(error) => Err(error.context(format!("cannot tell the libraries of {path}"))),
        }
    }

    fn inside(&self, path: &str) -> Result<PathBuf> {
        let inside = self.0.join(path.trim_start_matches('/'));
        if inside.exists() {
            return Ok(inside);
        }
        bail!("{} is missing", inside.display())
    }
}

/// The paths in the output of ldd: `name => /path (address)` or `/path (address)`.
fn parse_ldd(path: &str, text: &str) -> Result<Vec<String>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        let target = line.split_once(" => ").map_or(line, |(_, target)| target);
        if target.starts_with("not found") {
            bail!("{path} needs a library that is not installed: {line}");
        }
        if let Some((file, _)) = target.split_once(" (").filter(|(file, _)| file.starts_with('/')) {
            libraries.push(file.to_owned());
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output_gives_the_paths_and_leaves_out_what_the_kernel_maps() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc8b9f2000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3c5e000000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f3c5e3f2000)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd("/bin/a", text).unwrap(), expected);
        assert!(parse_ldd("/bin/a", "\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse_ldd("/bin/a", "\tlibfoo.so.1 => not found\n").unwrap_err().to_string();
        assert!(error.contains("libfoo.so.1"), "{error}");
    }
}
