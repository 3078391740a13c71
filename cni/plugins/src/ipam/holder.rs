// SPDX-License-Identifier: Apache-2.0
//! Whose a reserved address is, as the Go project's files have it: the container's ID, a line break, the interface's name.

/// Between the two lines of a file.
const LINE_BREAK: &str = "\r\n";

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

impl Holder {
    /// What a file says. One that is empty names nobody, one of the Go plugin's first versions no interface.
    pub(crate) fn parse(text: &str) -> Self {
        let mut lines = text.trim().lines().map(str::trim);
        let mut next = || lines.next().unwrap_or_default().to_owned();
        Self { container_id: next(), ifname: next() }
    }

    /// The file's content.
    pub(crate) fn text(&self) -> String {
        format!("{}{LINE_BREAK}{}", self.container_id, self.ifname)
    }
}
