// SPDX-License-Identifier: Apache-2.0

mod render;

#[test]
fn the_files_in_crds_are_what_the_types_say() {
    for (path, wanted) in render::files() {
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some((at, (is, shall))) =
            found.lines().zip(wanted.lines()).enumerate().find(|(_, (is, shall))| is != shall)
        {
            panic!(
                "{}:{} is stale:\n-{is}\n+{shall}\nrun cargo run -p isthmus-api --example crdgen",
                path.display(),
                at + 1
            );
        }
        assert!(
            found == wanted,
            "{} is stale; run cargo run -p isthmus-api --example crdgen",
            path.display()
        );
    }
}
