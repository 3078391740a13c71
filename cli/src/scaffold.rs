// SPDX-License-Identifier: Apache-2.0
//! `isthmus cni new`: a crate with a CNI plugin, out of the files in `cli/template`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use isthmus_cni_kit::names::check_plugin_type;

/// Where each file goes, and what is in it: `{{name}}` and `{{kit}}` are replaced.
const FILES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../template/Cargo.toml.in")),
    (".gitignore", include_str!("../template/gitignore.in")),
    ("rustfmt.toml", include_str!("../template/rustfmt.toml")),
    ("README.md", include_str!("../template/README.md")),
    ("conformance.conf", include_str!("../template/conformance.conf")),
    ("example.conflist", include_str!("../template/example.conflist")),
    ("src/main.rs", include_str!("../template/src/main.rs")),
    ("src/plugin.rs", include_str!("../template/src/plugin.rs")),
    ("src/ip.rs", include_str!("../template/src/ip.rs")),
    ("src/tests.rs", include_str!("../template/src/tests.rs")),
];

/// Names that Cargo or rustc keep for themselves, and those of the crate's own dependencies.
const TAKEN: &str = "abstract alloc as async await become box break build const continue core crate deps do dyn else enum \
    examples extern false final fn for gen if impl in incremental isthmus-cni-kit let loop macro match \
    mod move mut override priv proc-macro proc_macro pub ref return self serde serde_json static std \
    struct super test trait true try type typeof unsafe unsized use virtual where while yield";

/// Writes the crate. Returns what to tell about it.
pub(crate) fn write(name: &str, dir: Option<&Path>, kit: Option<&str>) -> Result<String> {
    check_name(name)?;
    let dir = dir.map_or_else(|| PathBuf::from(name), Path::to_path_buf);
    let (dependency, hint) = match kit {
        Some(kit) => (dependency(kit)?, ""),
        None => default_kit(env!("CARGO_PKG_REPOSITORY"), env!("CARGO_PKG_VERSION")),
    };
    check_empty(&dir)?;
    for (path, text) in FILES {
        let file = dir.join(path);
        let text = text.replace("{{name}}", name).replace("{{kit}}", &dependency);
        let parent = file.parent().unwrap_or(&dir);
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        fs::write(&file, text).with_context(|| file.display().to_string())?;
    }
    let dir = dir.display();
    Ok(format!(
        "{dir} is a crate with a CNI plugin that works; its README.md says what it does. Build it, try it, install it:
  cd {dir} && cargo build --release
  sudo isthmus cni conformance conformance.conf --path \"$PWD/target/release:/opt/cni/bin\"
  sudo install target/release/{name} /opt/cni/bin/
{hint}"
    ))
}

fn check_name(name: &str) -> Result<()> {
    check_plugin_type(name)?;
    let mut letters = name.bytes();
    let fits = letters.next().is_some_and(|first| first.is_ascii_lowercase())
        && letters
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || b"-_".contains(&letter));
    if !fits || name.len() > 64 {
        bail!(
            "{name:?} cannot name a crate: give a lower-case letter, then lower-case letters, digits, '-' and '_', at most 64"
        );
    }
    if TAKEN.split(' ').any(|taken| taken == name) {
        bail!(
            "{name:?} cannot name a crate: it is taken by Rust, by Cargo or by a dependency; give another name"
        );
    }
    Ok(())
}

fn check_empty(dir: &Path) -> Result<()> {
    let first = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next(),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("{} cannot be written to", dir.display())),
    };
    if first.is_some() {
        bail!(
            "{} is not empty, and nothing in it was touched: give --dir a directory that is new or empty",
            dir.display()
        );
    }
    Ok(())
}

/// A text in TOML. JSON's escapes are among TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The right side of the dependency for what the user gave.
fn dependency(kit: &str) -> Result<String> {
    if kit.contains("://") || kit.starts_with("git@") {
        return Ok(format!("{{ git = {} }}", quoted(kit)));
    }
    let is_version = kit
        .trim_start_matches(['^', '~', '=', '<', '>', ' '])
        .starts_with(|first: char| first.is_ascii_digit())
        || kit == "*";
    if is_version && !Path::new(kit).exists() {
        return Ok(quoted(kit));
    }
    let path = fs::canonicalize(kit).with_context(|| {
        format!("--kit {kit:?} is neither a directory nor a URL nor a version requirement")
    })?;
    let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap_or_default();
    if !manifest.contains("name = \"isthmus-cni-kit\"") {
        bail!(
            "--kit: {} is not the crate isthmus-cni-kit, which lies in cni/kit of Isthmus's repository",
            path.display()
        );
    }
    let path = path.to_str().with_context(|| format!("--kit: {} is not UTF-8", path.display()))?;
    Ok(format!("{{ path = {} }}", quoted(path)))
}

/// The repository that this program is from, where it is known, else its version.
fn default_kit(repository: &str, version: &str) -> (String, &'static str) {
    match repository {
        "" => (
            quoted(version),
            "The crate asks the registry for isthmus-cni-kit. If cargo does not find it there, begin again with --kit and the path of \
             cni/kit in a copy of Isthmus's repository.\n",
        ),
        url => (format!("{{ git = {} }}", quoted(url)), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_a_program_and_of_a_crate() {
        for good in ["ferry", "my-plugin_2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a/b", "2fast", "Ferry", "-x", "a b", "test", "serde", "über", &"a".repeat(65)]
        {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_kit_is_a_directory_a_repository_or_a_version() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cni/kit");
        let path = dependency(own.to_str().unwrap()).unwrap();
        assert!(path.starts_with("{ path = \"/") && path.ends_with("/cni/kit\" }"), "{path}");
        assert_eq!(
            dependency("https://example.com/i.git").unwrap(),
            "{ git = \"https://example.com/i.git\" }"
        );
        assert_eq!(dependency("^0.1").unwrap(), "\"^0.1\"");
        let nowhere = dependency("../no/such").unwrap_err().to_string();
        assert!(nowhere.contains("neither a directory"), "{nowhere}");
        assert!(dependency(env!("CARGO_MANIFEST_DIR")).unwrap_err().to_string().contains("is not the crate"));
    }

    #[test]
    fn without_kit_the_repository_is_asked_or_else_the_registry() {
        assert_eq!(default_kit("https://example.com/i", "0.1.0").0, "{ git = \"https://example.com/i\" }");
        let (dependency, hint) = default_kit("", "0.1.0");
        assert!(dependency == "\"0.1.0\"" && hint.contains("--kit"));
    }

    #[test]
    fn a_directory_with_something_in_it_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "").unwrap();
        let refused = write("ferry", Some(dir.path()), Some("0.1")).unwrap_err().to_string();
        assert!(refused.contains("is not empty") && refused.contains("--dir"), "{refused}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_placeholder_is_left_in_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let told = write("ferry", Some(&dir.path().join("new")), Some("0.1")).unwrap();
        assert!(told.contains("cargo build") && told.contains("/opt/cni/bin/"), "{told}");
        for (path, _) in FILES {
            let text = fs::read_to_string(dir.path().join("new").join(path)).unwrap();
            assert!(!text.contains("{{"), "{path}");
        }
    }
}
