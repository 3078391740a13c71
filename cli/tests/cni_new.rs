// SPDX-License-Identifier: Apache-2.0
//! `isthmus cni new`: what it writes is built, tested and held against the conformance check, and the chapter about it is followed to the
//! letter. Offline, with the workspace's versions of everything.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// The Go project's plugins, as Debian packages them.
const PLUGINS: &str = "/usr/lib/cni";
/// Where the template's configuration for the check keeps addresses.
const LEASES: &str = "/tmp/ferry-conformance";
const ISTHMUS: &str = env!("CARGO_BIN_EXE_isthmus");

fn workspace() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap()
}

/// False, with a word, where there is no root or no plugin to delegate to.
fn can_run(test: &str) -> bool {
    let id = Command::new("id").arg("-u").output().map(|output| output.stdout);
    let missing = [
        (!id.is_ok_and(|id| id == b"0\n"), "needs root"),
        (!Path::new(PLUGINS).join("host-local").exists(), "make deps"),
    ];
    if let Some((_, why)) = missing.iter().find(|(missing, _)| *missing) {
        let _ = writeln!(std::io::stderr(), "{test}: skipped: {why}");
        return false;
    }
    true
}

/// Both tests build a program of the same name.
static ALONE: Mutex<()> = Mutex::new(());

/// Cargo, which builds where the test before built, and from what the workspace is built of.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.env("CARGO_TARGET_DIR", built()).env("CARGO_NET_OFFLINE", "true");
    cargo
}

/// Where the written crates are built.
fn built() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugin-template")
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// Names of the checks that failed, with why, and of those that were skipped.
fn conformance(config: &Path, path: &str) -> (Vec<String>, Vec<String>) {
    let mut command = Command::new(ISTHMUS);
    let output =
        command.args(["cni", "conformance", "-o", "json", "--path", path]).arg(config).output().unwrap();
    let rows: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    let failed = rows.iter().filter(|row| row["verdict"]["failed"].is_string());
    let skipped = rows.iter().filter(|row| row["verdict"]["skipped"].is_string());
    let name = |row: &Value| row["check"].as_str().unwrap().to_owned();
    (failed.map(|row| format!("{}: {}", name(row), row["verdict"])).collect(), skipped.map(name).collect())
}

/// Debian's host-local behind a script that speaks 1.1.0 for it: GC and STATUS succeed.
const NEWER: &str = r#"#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
GC|STATUS) cat > /dev/null ;;
*) sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/g' | /usr/lib/cni/host-local ;;
esac
"#;

#[test]
fn what_is_written_builds_passes_its_own_tests_and_the_conformance_check() {
    if !can_run("cni new") {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Outside the workspace, to which it does not belong.
    let (place, kit) = (tempfile::tempdir().unwrap(), workspace().join("cni/kit"));
    let dir = place.path().join("ferry");
    let mut new = Command::new(ISTHMUS);
    let told = succeeds(new.args(["cni", "new", "ferry", "--dir"]).arg(&dir).arg("--kit").arg(kit));
    assert!(told.contains("cargo build --release") && told.contains("cni conformance"), "{told}");
    fs::copy(workspace().join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    let tested = succeeds(cargo().arg("test").current_dir(&dir));
    assert!(tested.contains("6 passed"), "{tested}");
    succeeds(cargo().arg("build").current_dir(&dir));

    let config = fs::read_to_string(dir.join("conformance.conf")).unwrap();
    let config = config.replace(LEASES, place.path().join("leases").to_str().unwrap());
    fs::write(dir.join("conformance.conf"), &config).unwrap();
    let path = format!("{}:{PLUGINS}", built().join("debug").display());
    let (failed, skipped) = conformance(&dir.join("conformance.conf"), &path);
    assert_eq!(failed, [""; 0]);
    let since_1_1_0 = [
        "STATUS succeeds where ADD does, and prints nothing",
        "GC frees what is not valid, keeps what is, and prints nothing",
    ];
    assert_eq!(skipped, since_1_1_0, "Debian's host-local speaks up to 1.0.0");

    let newer = place.path().join("newer-local");
    fs::write(&newer, NEWER).unwrap();
    fs::set_permissions(&newer, fs::Permissions::from_mode(0o755)).unwrap();
    let config = config.replace("\"host-local\"", "\"newer-local\"").replace("/leases", "/newer-leases");
    fs::write(dir.join("newer.conf"), config).unwrap();
    let path = format!("{path}:{}", place.path().display());
    assert_eq!(conformance(&dir.join("newer.conf"), &path), (Vec::new(), Vec::new()));
    succeeds(cargo().args(["clean", "-p", "ferry"]).current_dir(&dir));
}

/// The chapter's blocks of these languages, in order.
fn blocks<'a>(chapter: &'a str, languages: &[&str]) -> Vec<(&'a str, &'a str)> {
    let fenced = chapter.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    fenced.filter(|(language, _)| languages.contains(language)).collect()
}

#[test]
fn every_command_of_the_chapter_for_plugin_authors_works_in_its_order() {
    if !can_run("the chapter") {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| place.path().join(name);
    for dir in ["home", "bin"] {
        fs::create_dir(at(dir)).unwrap();
    }
    symlink(workspace(), at("home/isthmus")).unwrap();
    symlink(ISTHMUS, at("bin/isthmus")).unwrap();
    // Cargo's first call in the crate finds the versions and the builds that are here.
    let shim = "#!/bin/sh\n[ -e Cargo.lock ] || cp ~/isthmus/Cargo.lock .\n[ -e target ] || ln -s \"$BUILT\" target\nexec \"$CARGO\" \"$@\"\n";
    fs::write(at("bin/cargo"), shim).unwrap();
    fs::set_permissions(at("bin/cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(built()).unwrap();

    let chapter = fs::read_to_string(workspace().join("docs/src/write-a-plugin.md")).unwrap();
    let mut script = String::from("set -eux\nip link set lo up\n");
    // No more than what the commands write to: the checkout or cargo's home may lie below /tmp or /var/lib.
    let own = format!(
        "for dir in {LEASES} /run/netns /var/lib/cni; do mkdir -p $dir; mount -t tmpfs none $dir; done\n"
    );
    script.push_str(&own);
    // Below the checkout the new crate would be taken for a part of it.
    let work = tempfile::tempdir().unwrap();
    script.push_str(&format!("cd {}\n", work.path().display()));
    for (number, (language, text)) in blocks(&chapter, &["sh", "diff"]).into_iter().enumerate() {
        if language == "sh" {
            script.push_str(text);
            continue;
        }
        let change = at(&format!("change{number}"));
        fs::write(&change, text).unwrap();
        script.push_str(&format!("patch -p1 < {}\n", change.display()));
    }
    fs::write(at("script"), script).unwrap();

    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap_or_default());
    let real_home = std::env::var("HOME").unwrap_or("/root".to_owned());
    let kept = |name: &str, under: &str| std::env::var(name).unwrap_or(format!("{real_home}/{under}"));
    let mut run = Command::new("unshare");
    run.args(["--net", "--mount", "sh"]).arg(at("script"));
    run.env("CARGO_HOME", kept("CARGO_HOME", ".cargo")).env("RUSTUP_HOME", kept("RUSTUP_HOME", ".rustup"));
    run.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET_DIR");
    run.env("CARGO", std::env::var_os("CARGO").unwrap_or("cargo".into())).env("CARGO_NET_OFFLINE", "true");
    run.env("HOME", at("home")).env("PATH", path).env("BUILT", built());
    let output = run.output().unwrap();
    // The mount point; it is empty, or not ours.
    let _ = fs::remove_dir(LEASES);
    let all = said(&output);
    assert!(output.status.success(), "{all}");
    assert_eq!(all.matches("checks, 0 failed").count(), 2, "{all}");
    assert!(all.contains("mtu 1300"), "the plugin behind bridge: {all}");
    assert!(all.contains("qlen 50"), "the setting that the chapter adds: {all}");
}
