// SPDX-License-Identifier: Apache-2.0
//! Settings below `/proc/sys`, in the calling thread's network namespace or in a pod's.

use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use isthmus_cni_kit::error::Error;
use isthmus_netlink::netns;

use crate::failure;

/// The file of a setting: `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.5/forwarding`. The first separator that is there counts.
/// None for what leads elsewhere.
pub(crate) fn file(key: &str) -> Option<PathBuf> {
    let relative = match key.find(['.', '/']).map(|at| key.as_bytes()[at]) {
        Some(b'.') => key
            .chars()
            .map(|letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    };
    let inside = Path::new(&relative).components().all(|part| matches!(part, Component::Normal(_)));
    (inside && !relative.is_empty()).then(|| Path::new("/proc/sys").join(relative))
}

pub(crate) fn read(key: &str) -> io::Result<String> {
    let file = file(key).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

pub(crate) fn write(key: &str, value: &str) -> io::Result<()> {
    let file = file(key).ok_or(io::ErrorKind::InvalidInput)?;
    fs::write(file, value)
}

/// Writes what is set to something else. A kernel without the setting (IPv6 left out) is passed over.
pub(crate) fn ensure(key: &str, value: &str) -> Result<(), Error> {
    let written = match read(key) {
        Ok(set) if set == value => return Ok(()),
        Ok(_) => write(key, value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    written.map_err(|error| failure::io(&format!("the setting {key} cannot be {value}"), &error))
}

/// The same in another network namespace.
pub(crate) fn ensure_in(netns: &Path, settings: &[(String, &str)]) -> Result<(), Error> {
    netns::run(netns, || settings.iter().try_for_each(|(key, value)| ensure(key, value)))
        .map_err(|error| failure::io(&format!("the namespace {}", netns.display()), &error))?
}

/// Packets of the families may pass through this node.
pub(crate) fn forward(v4: bool, v6: bool) -> Result<(), Error> {
    let wanted = [(v4, "net/ipv4/ip_forward"), (v6, "net/ipv6/conf/all/forwarding")];
    wanted.iter().filter(|(wanted, _)| *wanted).try_for_each(|(_, key)| ensure(key, "1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_written_with_dots_or_with_slashes_and_leads_nowhere_else() {
        let shown = |key: &str| file(key).map(|path| path.display().to_string());
        assert_eq!(shown("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            shown("net/ipv4/conf/eth0.5/forwarding").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.5/forwarding")
        );
        assert_eq!(
            shown("net.ipv4.conf.eth0/5.forwarding").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.5/forwarding")
        );
        for bad in ["", "../kernel", "net/../../etc/passwd", "/etc/passwd"] {
            assert_eq!(shown(bad), None, "{bad:?}");
        }
    }
}
