// SPDX-License-Identifier: Apache-2.0
//! The alias of an interface that the host lent to a pod. A pod that may change its interfaces may write another.

use isthmus_cni_kit::names::check_ifname;

/// Before the name that the interface had on the host.
const ALIAS: &str = "cni-host:";

/// The alias of an interface of this name.
pub(crate) fn write(name: &str) -> String {
    format!("{ALIAS}{name}")
}

/// The name in an alias; none in another's, and none that no interface can have.
pub(crate) fn read(alias: &str) -> Option<&str> {
    alias.strip_prefix(ALIAS).filter(|name| check_ifname(name).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_that_an_interface_can_have_is_read_back() {
        assert_eq!(read(&write("nic0")), Some("nic0"));
        for bad in ["nic0", "cni-host:", "cni-host:../x", "cni-host:a b", "cni-host:sixteen-letters-"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
