// SPDX-License-Identifier: Apache-2.0
//! Where things are: the checkout, the cache of what is slow to build, and the state of the running lab.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folders that everything here works in.
#[derive(Debug, Clone)]
pub struct Places {
    /// The checkout.
    pub repo: PathBuf,
    /// What was built once and is found again by its content: `$ISTHMUS_CACHE`, else the user's cache.
    pub cache: PathBuf,
    /// What belongs to the lab that runs now. Gone after `lab down`.
    pub state: PathBuf,
}

impl Places {
    /// Finds them from the environment.
    pub fn find() -> Result<Self> {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the checkout")?;
        Ok(Self { repo: repo.to_owned(), cache: cache_folder()?, state: "/run/isthmus-lab".into() })
    }

    /// The folder with the go.mod of one group of tools.
    pub fn tool_module(&self, group: &str) -> PathBuf {
        self.repo.join("tests/kind/tools").join(group)
    }

    /// Where a topology is described.
    pub fn topology(&self, name: &str) -> PathBuf {
        self.repo.join("tests/kind/topologies").join(format!("{name}.yaml"))
    }

    /// Where the output of a build step is kept.
    pub fn log(&self, name: &str) -> PathBuf {
        self.cache.join("logs").join(format!("{name}.log"))
    }

    /// The data root of the lab's own Docker daemon. Outlives the lab: it holds the node image.
    pub fn docker_data(&self) -> PathBuf {
        self.cache.join("docker")
    }

    /// The programs that `lab exec` puts first in PATH.
    pub fn lab_bin(&self) -> PathBuf {
        self.state.join("bin")
    }

    /// The one kubeconfig with a context per cluster.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }
}

fn cache_folder() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = from("ISTHMUS_CACHE") {
        return std::path::absolute(folder).context("ISTHMUS_CACHE is not a path");
    }
    if let Some(folder) = from("XDG_CACHE_HOME") {
        return Ok(folder.join("isthmus"));
    }
    let home = from("HOME").context("neither ISTHMUS_CACHE nor HOME is set: set ISTHMUS_CACHE=<folder>")?;
    Ok(home.join(".cache/isthmus"))
}
