// SPDX-License-Identifier: Apache-2.0
//! Writes the inputs to begin with into `corpus`. What lies there beside them stays: it was found once.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    isthmus_fuzz::fixture::make_once()?;
    for (target, seeds) in isthmus_fuzz::SEEDS {
        let folder = isthmus_fuzz::corpus::folder(target);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in seeds() {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
