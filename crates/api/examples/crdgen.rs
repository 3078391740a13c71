// SPDX-License-Identifier: Apache-2.0
//! Writes `crds/` from the types: `cargo run -p isthmus-api --example crdgen`.

#[path = "../tests/render/mod.rs"]
mod render;

fn main() -> std::io::Result<()> {
    for (path, text) in render::files() {
        std::fs::write(&path, text)?;
        println!("{}", path.display());
    }
    Ok(())
}
