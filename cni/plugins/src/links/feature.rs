// SPDX-License-Identifier: Apache-2.0
//! Whether the kernel has a kind of link, asked of itself.

use std::thread;

use isthmus_cni_kit::error::{Error, code};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoKind};

use crate::failure::{self, NO_FEATURE};
use crate::net::Net;
use crate::net::link::NewLink;

/// Code 50 with the option's name if the kernel has no such links. Asked in a namespace that nobody else sees: a kind that is known is
/// refused there for want of a parent, or made and gone with the namespace.
pub(crate) fn expect(kind: &InfoKind, option: &str) -> Result<(), Error> {
    match probe(kind, None) {
        Err(error) if error.code == NO_FEATURE => {
            let msg = format!("the kernel has no {kind:?} links: it needs {option}, built in or as a module");
            Err(Error::new(code::UNAVAILABLE, msg))
        }
        other => other,
    }
}

/// The same for a kind with properties. Code 101 if the kernel has no such links.
pub(crate) fn probe(kind: &InfoKind, data: Option<InfoData>) -> Result<(), Error> {
    let asked = thread::scope(|scope| {
        let ask = scope.spawn(move || -> Result<(), Error> {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| failure::io("a network namespace", &errno.into()))?;
            Net::here()?.create(NewLink::named("probe0").kind(kind.clone(), data).message())
        });
        ask.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match asked {
        Err(error) if error.code == NO_FEATURE || error.code == code::IO => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p10_a_kind_of_link_that_no_kernel_has_is_unavailable_and_its_option_is_named() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let error = expect(&InfoKind::Other("nosuchkind".to_owned()), "CONFIG_NOSUCH").unwrap_err();
        assert!(error.code == 50 && error.msg.contains("CONFIG_NOSUCH"), "{error}");
        assert_eq!(expect(&InfoKind::Veth, "CONFIG_VETH"), Ok(()));
    }
}
