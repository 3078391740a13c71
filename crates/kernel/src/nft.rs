// SPDX-License-Identifier: Apache-2.0
//! Our nftables table, spoken over netlink.
//!
//! The table belongs to the port of one netlink socket (`owner`) and outlives it (`persist`): no other process can
//! change it, and it keeps closing what it closed when its owner dies. Whoever holds a duplicate of that socket is
//! the owner; so the data plane process keeps it open and hands it to each agent.

mod attributes;
mod expression;
mod set;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use isthmus_model::nft::{Chain, Ruleset, Set};
use isthmus_model::ownership::NFT_TABLE;
use rtnetlink::sys::{Socket, protocols::NETLINK_NETFILTER};

use crate::wire::{Refusal, Wire, attributes_of};
use attributes::Attributes;
use set::{Element, elements, shape};
use transaction::{GET_CHAIN, GET_SET, GET_TABLE, Transaction, changes, hook_number, kind_name, request};

const FLAG_OWNER: u32 = 2;
const FLAG_PERSIST: u32 = 4;

/// Why our nftables table could not be brought to what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// Another socket owns the table.
    #[error(
        "another process owns the nftables table 'inet isthmus': take over its socket, or end that process"
    )]
    Held,
    /// The kernel refused the transaction; nothing of it took effect.
    #[error("the kernel refused the nftables transaction: {0}")]
    Refused(String),
    /// The netlink socket failed.
    #[error("the nftables socket failed")]
    Socket(#[from] io::Error),
}

/// The owner of our table.
pub struct Nft {
    wire: Wire,
    /// What our last transaction left in the table; none before the first one of this process.
    applied: Option<Applied>,
}

struct Applied {
    ruleset: Ruleset,
    elements: BTreeMap<String, BTreeSet<Element>>,
    table_handle: u64,
    owned: bool,
}

impl Nft {
    /// Opens a socket in the calling thread's network namespace. The table itself is made or taken over by the
    /// first transaction.
    pub fn open() -> Result<Self, NftError> {
        Ok(Self { wire: Wire::open(NETLINK_NETFILTER)?, applied: None })
    }

    /// Uses a socket that another process opened and passed on: the same port, hence the same owner.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NftError> {
        #[expect(unsafe_code, reason = "the socket type has no safe way in for a descriptor")]
        // SAFETY: into_raw_fd gives up ownership of a live descriptor, which Socket takes over.
        let socket = unsafe { Socket::from_raw_fd(fd.into_raw_fd()) };
        let mut wire = Wire::over(socket)?;
        wire.drain();
        Ok(Self { wire, applied: None })
    }

    /// The socket, to be passed on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wire.socket().as_fd()
    }

    /// Makes the table from `base` unless there is one already: one that outlived its owner is taken over as it is.
    pub(crate) fn arm(&mut self, base: &Ruleset) -> Result<(), NftError> {
        match self.table()? {
            None => self.rebuild(base),
            Some(_) => self.adopt(),
        }
    }

    /// Brings the table to the ruleset in one transaction. Returns whether anything had to change.
    pub(crate) fn apply(&mut self, wanted: &Ruleset) -> Result<bool, NftError> {
        let Some(applied) = &self.applied else {
            return self.rebuild(wanted).map(|()| true);
        };
        if applied.ruleset == *wanted {
            return Ok(false);
        }
        let contents = contents(wanted);
        let change = change(applied, wanted, &contents);
        if change.is_empty() {
            return Ok(false);
        }
        match change.commit(&mut self.wire)? {
            Ok(()) => {
                let applied = self.applied.take().expect("checked above");
                self.applied = Some(Applied { ruleset: wanted.clone(), elements: contents, ..applied });
                Ok(true)
            }
            Err(refusal) => {
                tracing::warn!(%refusal, "nftables change refused; rebuilding the table in one transaction");
                self.rebuild(wanted).map(|()| true)
            }
        }
    }

    /// Forgets what was applied if the table is no longer the one that we left. With an owner this cannot happen
    /// short of `ip netns del`; without one (Linux before 6.9) any process may have changed it.
    pub(crate) fn observe(&mut self) -> Result<(), NftError> {
        let Some(applied) = &self.applied else { return Ok(()) };
        let (handle, owned) = (applied.table_handle, applied.owned);
        let same = self.table()?.is_some_and(|table| table.handle == handle && table.flags & FLAG_OWNER != 0);
        if !(owned && same) {
            self.applied = None;
        }
        Ok(())
    }

    /// Replaces everything in the table in one transaction: there is no moment without rules. Chains that hang where
    /// they shall stay, so that no hook is taken out of the path.
    fn rebuild(&mut self, wanted: &Ruleset) -> Result<(), NftError> {
        let (mut chains, mut sets) = (BTreeMap::new(), Vec::new());
        if self.table()?.is_some() {
            // By itself: the kernel makes no base chain in the transaction that changes a table's owner.
            self.adopt()?;
            chains = self.objects(GET_CHAIN)?.iter().filter_map(chain_place).collect();
            sets = self.objects(GET_SET)?.iter().filter_map(set_name).collect();
        }
        let contents = contents(wanted);
        let stays =
            |name: &str| wanted.chains.get(name).is_some_and(|chain| chains.get(name) == Some(&place(chain)));
        let build = |flags: u32| {
            let mut build = Transaction::default();
            build.table(flags);
            chains.keys().for_each(|chain| build.delete_rules(chain));
            chains.keys().filter(|chain| !stays(chain)).for_each(|chain| build.delete_chain(chain));
            sets.iter().for_each(|set| build.delete_set(set));
            for (name, set) in &wanted.sets {
                build.new_set(name, set);
                build.add_elements(name, &contents[name]);
            }
            for (name, chain) in &wanted.chains {
                if !stays(name) {
                    build.new_chain(name, chain);
                }
                build.new_rules(name, chain);
            }
            build
        };
        self.commit_owned(build)?;
        self.remember(wanted.clone(), contents)
    }

    /// Takes over the table as it is.
    fn adopt(&mut self) -> Result<(), NftError> {
        self.commit_owned(|flags| {
            let mut build = Transaction::default();
            build.table(flags);
            build
        })
    }

    /// Commits with ownership; a kernel that has no such flags (before Linux 6.9) gets a table without owner.
    fn commit_owned(&mut self, build: impl Fn(u32) -> Transaction) -> Result<(), NftError> {
        let refusal = match build(FLAG_OWNER | FLAG_PERSIST).commit(&mut self.wire)? {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        if refusal.errno == libc::EPERM {
            return Err(NftError::Held);
        }
        if !matches!(refusal.errno, libc::EOPNOTSUPP | libc::EINVAL) {
            return Err(NftError::Refused(refusal.to_string()));
        }
        build(0).commit(&mut self.wire)?.map_err(|_| NftError::Refused(refusal.to_string()))
    }

    fn remember(
        &mut self,
        ruleset: Ruleset,
        elements: BTreeMap<String, BTreeSet<Element>>,
    ) -> Result<(), NftError> {
        let table = self.table()?.unwrap_or_default();
        let owned = table.flags & FLAG_OWNER != 0;
        self.applied = Some(Applied { ruleset, elements, table_handle: table.handle, owned });
        Ok(())
    }

    fn table(&mut self) -> Result<Option<TableSeen>, NftError> {
        let ask = request(GET_TABLE, 0, Attributes::default().text(1, NFT_TABLE));
        match self.wire.ask(&ask)? {
            Ok(answer) => Ok(Some(TableSeen::read(&transaction::attributes(&answer)))),
            Err(Refusal { errno: libc::ENOENT, .. }) => Ok(None),
            Err(Refusal { errno: libc::EPERM, .. }) => Err(NftError::Held),
            Err(refusal) => Err(NftError::Refused(refusal.to_string())),
        }
    }

    /// The attributes of all objects of one kind in our table.
    fn objects(&mut self, kind: u16) -> Result<Vec<Object>, NftError> {
        let ask = request(kind, 0, Attributes::default().text(1, NFT_TABLE));
        let objects = self.wire.dump(&ask)?;
        let objects =
            objects.iter().map(|answer| transaction::attributes(answer).into_iter().collect::<Object>());
        Ok(objects.filter(|object| text(object, 1).as_deref() == Some(NFT_TABLE)).collect())
    }

    /// Removes the table (uninstall). Absent is fine.
    pub fn remove_table(&mut self) -> Result<(), NftError> {
        self.applied = None;
        if self.table()?.is_none() {
            return Ok(());
        }
        self.adopt()?;
        let mut removal = Transaction::default();
        removal.delete_table();
        removal.commit(&mut self.wire)?.map_err(|refusal| NftError::Refused(refusal.to_string()))
    }
}

/// Attributes by number.
type Object = BTreeMap<u16, Vec<u8>>;

fn text(object: &Object, number: u16) -> Option<String> {
    let bytes = object.get(&number)?;
    Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
}

fn set_name(set: &Object) -> Option<String> {
    text(set, 2)
}

/// A chain's name and where it hangs.
fn chain_place(chain: &Object) -> Option<(String, Place)> {
    let hook: Object = chain.get(&4).map(|hook| owned_attributes(hook)).unwrap_or_default();
    let number = |number: u16| hook.get(&number).and_then(|b| <[u8; 4]>::try_from(b.as_slice()).ok());
    let kind = text(chain, 7).unwrap_or_default();
    let place = (number(1).map(u32::from_be_bytes), number(2).map(i32::from_be_bytes), kind);
    Some((text(chain, 3)?, place))
}

fn owned_attributes(bytes: &[u8]) -> Object {
    attributes_of(bytes).map(|(kind, value)| (kind, value.to_vec())).collect()
}

/// Hook number, priority, type.
type Place = (Option<u32>, Option<i32>, String);

fn place(chain: &Chain) -> Place {
    (Some(hook_number(chain.hook)), Some(chain.priority), kind_name(chain.kind).to_owned())
}

#[derive(Clone, Copy, Default)]
struct TableSeen {
    flags: u32,
    handle: u64,
}

impl TableSeen {
    fn read(attributes: &[(u16, Vec<u8>)]) -> Self {
        let mut table = Self::default();
        for (kind, value) in attributes {
            match (kind, value.len()) {
                (2, 4) => table.flags = u32::from_be_bytes([value[0], value[1], value[2], value[3]]),
                (4, 8) => table.handle = value.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
                _ => {}
            }
        }
        table
    }
}

fn contents(ruleset: &Ruleset) -> BTreeMap<String, BTreeSet<Element>> {
    ruleset.sets.iter().map(|(name, set)| (name.clone(), elements(set))).collect()
}

/// The transaction from what is applied to what is wanted: rules that stay are not touched, sets change by element.
fn change(
    applied: &Applied,
    wanted: &Ruleset,
    contents: &BTreeMap<String, BTreeSet<Element>>,
) -> Transaction {
    let mut change = Transaction::default();
    let old = &applied.ruleset;
    let same_shape =
        |name: &str, set: &Set| old.sets.get(name).is_some_and(|known| shape(known) == shape(set));
    let stale_sets: Vec<&String> = old
        .sets
        .keys()
        .filter(|name| wanted.sets.get(*name).is_none_or(|set| !same_shape(name, set)))
        .collect();
    // A set can only go when no rule looks into it: then all rules are written anew.
    let rewrite = !stale_sets.is_empty();
    let stays =
        |name: &str, chain: &Chain| wanted.chains.get(name).is_some_and(|other| place(other) == place(chain));
    let changed = |name: &String| rewrite || wanted.chains.get(name) != old.chains.get(name);
    for (name, chain) in old.chains.iter().filter(|(name, _)| changed(name)) {
        change.delete_rules(name);
        if !stays(name, chain) {
            change.delete_chain(name);
        }
    }
    stale_sets.iter().for_each(|name| change.delete_set(name));
    for (name, set) in &wanted.sets {
        let empty = BTreeSet::new();
        let known = if same_shape(name, set) { &applied.elements[name] } else { &empty };
        if !same_shape(name, set) {
            change.new_set(name, set);
        }
        let (add, delete) = changes(known, &contents[name]);
        change.delete_elements(name, delete);
        change.add_elements(name, add);
    }
    for (name, chain) in wanted.chains.iter().filter(|(name, _)| changed(name)) {
        if !old.chains.get(name).is_some_and(|known| stays(name, known)) {
            change.new_chain(name, chain);
        }
        change.new_rules(name, chain);
    }
    change
}
