// SPDX-License-Identifier: Apache-2.0
//! The machine's file system: our init, the tests, a few programs of this machine with their libraries, some kernel modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run::{command, output};

const INIT: &[u8] = include_bytes!("../../../tests/vm/init");
/// Modules that are loaded; what they depend on is found.
const MODULES: &[&str] =
    &["wireguard", "tun", "veth", "nfnetlink", "bridge", "ipvlan", "8021q", "dummy", "bonding", "vrf"];
/// Programs that the tests start. The shell is not busybox: that would run its own `ip` in place of this one.
const PROGRAMS: &[(&str, &str)] = &[
    ("/bin/busybox", "bin/busybox"),
    ("/bin/dash", "bin/sh"),
    ("/sbin/bridge", "usr/bin/bridge"),
    ("/sbin/ip", "usr/bin/ip"),
    ("/bin/ping", "usr/bin/ping"),
    ("/usr/bin/nsenter", "usr/bin/nsenter"),
    ("/usr/bin/setpriv", "usr/bin/setpriv"),
    ("/usr/bin/unshare", "usr/bin/unshare"),
    ("/usr/bin/wg", "usr/bin/wg"),
];
const FOLDERS: &[&str] = &["dev", "proc", "run", "sys", "tmp", "etc"];

/// Writes it. `kernel` holds `modules/<version>`, `programs` the tests and what they start.
pub(super) fn write(out: &Path, kernel: &Path, programs: &[(PathBuf, String)]) -> Result<()> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    files.insert("init".into(), INIT.to_vec());
    let ours = programs.iter().map(|(from, to)| (from.as_path(), to.as_str()));
    let theirs = PROGRAMS.iter().map(|(from, to)| (Path::new(from), *to));
    for (from, to) in ours.chain(theirs) {
        let content = fs::read(from).with_context(|| {
            format!(
                "{} is missing: apt-get install busybox-static iproute2 iputils-ping util-linux wireguard-tools",
                from.display()
            )
        })?;
        files.insert(to.into(), content);
        for library in libraries(from)? {
            let content = fs::read(&library).with_context(|| format!("cannot read {library}"))?;
            files.insert(library.trim_start_matches('/').to_owned(), content);
        }
    }
    add_modules(&kernel.join("modules"), &mut files)?;
    let file = fs::File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    archive(&mut BufWriter::new(file), &files).context("cannot write the machine's file system")
}

/// Absolute paths out of ldd(1); none for a static program.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let Ok(text) = output(command("ldd", [] as [&str; 0]).arg(program)) else { return Ok(Vec::new()) };
    let paths = text.split_whitespace().filter(|word| word.starts_with('/') && Path::new(word).is_file());
    Ok(paths.map(str::to_owned).collect())
}

fn add_modules(folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let version = fs::read_dir(folder)?.next().context("a kernel without modules")??.path();
    let name = version.file_name().context("a kernel has a version")?.to_string_lossy().into_owned();
    let mut known = BTreeMap::new();
    collect_modules(&version, &mut known)?;
    let mut wanted: BTreeSet<String> = MODULES.iter().map(|module| (*module).to_owned()).collect();
    while let Some(module) = wanted.pop_first() {
        let to = format!("lib/modules/{name}/{module}.ko");
        if files.contains_key(&to) {
            continue;
        }
        let Some(path) = known.get(&module) else { bail!("the kernel {name} has no module {module}") };
        let content = fs::read(path)?;
        wanted.extend(depends(&content));
        files.insert(to, content);
    }
    for list in ["modules.builtin", "modules.order"] {
        files.insert(format!("lib/modules/{name}/{list}"), fs::read(version.join(list))?);
    }
    Ok(())
}

/// Every module below the folder, by its name with underscores.
fn collect_modules(folder: &Path, known: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_modules(&path, known)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
            known.insert(stem, path);
        }
    }
    Ok(())
}

/// What a module says of itself in its section `.modinfo`: `depends=a,b`, between zero bytes.
fn depends(module: &[u8]) -> Vec<String> {
    let entry = module.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let text = String::from_utf8_lossy(entry.unwrap_or_default()).replace('-', "_");
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The form "newc" of cpio(5), which the kernel unpacks.
fn archive(out: &mut impl Write, files: &BTreeMap<String, Vec<u8>>) -> std::io::Result<()> {
    let mut folders: BTreeSet<String> = FOLDERS.iter().map(|folder| (*folder).to_owned()).collect();
    for name in files.keys() {
        folders.extend(name.match_indices('/').map(|(at, _)| name[..at].to_owned()));
    }
    for folder in folders {
        entry(out, &folder, 0o040_755, &[])?;
    }
    for (name, content) in files {
        entry(out, name, 0o100_755, content)?;
    }
    entry(out, "TRAILER!!!", 0, &[])?;
    out.flush()
}

fn entry(out: &mut impl Write, name: &str, mode: u32, content: &[u8]) -> std::io::Result<()> {
    let padding = |length: usize| &[0_u8; 3][..length.next_multiple_of(4) - length];
    let (size, name_size) = (content.len(), name.len() + 1);
    let header = format!(
        "070701{0:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
        0, 1
    );
    out.write_all(header.as_bytes())?;
    out.write_all(name.as_bytes())?;
    out.write_all(&[0])?;
    out.write_all(padding(header.len() + name_size))?;
    out.write_all(content)?;
    out.write_all(padding(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_depends_on() {
        assert_eq!(
            depends(b"\x7fELF\0license=GPL\0depends=udp_tunnel,libchacha20poly1305\0x"),
            ["udp_tunnel", "libchacha20poly1305"]
        );
        assert!(depends(b"depends=\0").is_empty());
    }

    #[test]
    fn the_archive_has_every_folder_before_its_files_and_all_is_aligned() {
        let files = [("a/b/c".to_owned(), b"hello".to_vec())].into();
        let mut out = Vec::new();
        archive(&mut out, &files).unwrap();
        let text = String::from_utf8_lossy(&out);
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("no {needle:?} in {text:?}"));
        assert!(at("a/b\0") < at("a/b/c\0") && at("a/b/c\0") < at("hello") && at("hello") < at("TRAILER!!!"));
        assert!(out.len().is_multiple_of(4) && at("hello").is_multiple_of(4));
    }
}
