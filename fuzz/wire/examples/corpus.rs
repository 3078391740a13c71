// SPDX-License-Identifier: Apache-2.0
//! Writes the inputs to begin with into `fuzz/corpus/wg-wire`. What lies there beside them stays: it was found once.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/wg-wire");
    std::fs::create_dir_all(&folder)?;
    for (name, bytes) in isthmus_fuzz_wire::target::seeds() {
        std::fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}
