// SPDX-License-Identifier: Apache-2.0
//! The netlink socket that owns our nftables table (`owner` flag). The kernel lets only this socket change the table, and counts the
//! open file description, not the process: held here, it outlives an agent; offered back by the agent, it outlives this process.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, socket,
};

/// Holds the socket; opened when the first agent asks and offers none.
#[derive(Default)]
pub(crate) struct OwnerSocket(Mutex<Option<OwnedFd>>);

impl OwnerSocket {
    /// With the one that is kept, if that is one.
    pub(crate) fn new(kept: Option<OwnedFd>) -> Self {
        Self(Mutex::new(kept.filter(is_netlink)))
    }

    /// A copy, if it is open.
    pub(crate) fn held(&self) -> Option<OwnedFd> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().and_then(|socket| socket.try_clone().ok())
    }

    /// The socket for an agent, which may have brought the one that it uses already.
    ///
    /// # Errors
    /// No netlink socket can be opened.
    pub(crate) fn agree(&self, offered: Option<OwnedFd>) -> io::Result<OwnedFd> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match offered {
            Some(offered) if is_netlink(&offered) => offered,
            Some(_) => return Err(io::Error::other("the agent offered something that is no netlink socket")),
            None => match held.take() {
                Some(socket) => socket,
                None => open()?,
            },
        };
        held.insert(socket).try_clone()
    }
}

fn is_netlink(socket: &OwnedFd) -> bool {
    getsockname::<NetlinkAddr>(socket.as_raw_fd()).is_ok()
}

fn open() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    // The kernel chooses the port number, which is the owner's name from now on.
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(socket: &OwnedFd) -> u32 {
        getsockname::<NetlinkAddr>(socket.as_raw_fd()).unwrap().pid()
    }

    #[test]
    fn every_agent_gets_the_same_socket_and_one_that_an_agent_brings_is_kept() {
        let owner = OwnerSocket::default();
        let first = owner.agree(None).unwrap();
        assert_ne!(port(&first), 0);
        assert_eq!(port(&owner.agree(None).unwrap()), port(&first));
        let brought = open().unwrap();
        let kept = port(&brought);
        assert_eq!(port(&owner.agree(Some(brought)).unwrap()), kept);
        assert_eq!(port(&owner.agree(None).unwrap()), kept);
    }

    #[test]
    fn something_else_than_a_netlink_socket_is_refused() {
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(OwnerSocket::default().agree(Some(other.try_clone().unwrap().into())).is_err());
        assert_ne!(port(&OwnerSocket::new(Some(other.into())).agree(None).unwrap()), 0, "a new one");
    }
}
