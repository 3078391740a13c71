// SPDX-License-Identifier: Apache-2.0
//! What a worker has its parent keep, and the records in which the two speak of it: a letter, then a name, with a descriptor attached.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use isthmus_model::ids::LinkName;
use isthmus_packet_io::{receive_record, send_record};

/// Longest record.
const MAX_RECORD_BYTES: usize = 65;
/// Descriptors that are kept at most: more tunnels than this open their devices anew after a crash.
const MAX_KEPT: usize = 8192;

/// Begins the names of relays.
const RELAY: &str = "relay";

/// What a descriptor is kept as.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeptName(String);

impl KeptName {
    /// The netlink socket that owns our nftables table.
    pub(crate) fn owner() -> Self {
        Self("owner".into())
    }

    /// The socket that agents connect to.
    pub(crate) fn agents() -> Self {
        Self("agents".into())
    }

    /// What the worker acts on ([`crate::memory`]).
    pub(crate) fn memory() -> Self {
        Self("memory".into())
    }

    /// The connection between two engines that share the port of a lane.
    pub(crate) fn relay(lane: u8) -> Self {
        Self(if lane == 0 { RELAY.into() } else { format!("{RELAY}/{lane}") })
    }

    fn is_relay(&self) -> bool {
        self.0.strip_prefix(RELAY).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// A WireGuard port.
    pub(crate) fn port(number: u16) -> Self {
        Self(format!("udp/{number}"))
    }

    /// A tunnel device.
    pub(crate) fn tun(name: &LinkName) -> Self {
        Self(format!("tun/{name}"))
    }

    /// Which tunnel device, if it is one.
    pub(crate) fn as_tun(&self) -> Option<&str> {
        self.0.strip_prefix("tun/")
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let name = str::from_utf8(bytes).ok()?;
        let fits = (1..MAX_RECORD_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(name.to_owned()))
    }
}

/// What is said in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Keep the descriptor that is attached, in place of one of that name.
    Keep(KeptName),
    /// It is needed no more.
    Forget(KeptName),
    /// There is no more to come of what was kept.
    ThatIsAll,
    /// This worker carries.
    Carrying,
    /// This worker has handed over to another one, and carries no more.
    HandedOver,
    /// From a worker that takes over: what it speaks.
    Hello(u8),
    /// To it: agents and probes are its own from now on.
    SteppedBack,
}

impl Word {
    /// Anything else than a word is none.
    pub(crate) fn parse(record: &[u8]) -> Option<Self> {
        match record.split_first()? {
            (b'K', name) => KeptName::parse(name).map(Self::Keep),
            (b'F', name) => KeptName::parse(name).map(Self::Forget),
            (b'.', []) => Some(Self::ThatIsAll),
            (b'C', []) => Some(Self::Carrying),
            (b'O', []) => Some(Self::HandedOver),
            (b'H', [version]) => Some(Self::Hello(*version)),
            (b'B', []) => Some(Self::SteppedBack),
            _ => None,
        }
    }

    pub(crate) fn record(&self) -> Vec<u8> {
        let (letter, name) = match self {
            Self::Keep(name) => (b'K', name.0.as_bytes()),
            Self::Forget(name) => (b'F', name.0.as_bytes()),
            Self::ThatIsAll => (b'.', &[][..]),
            Self::Carrying => (b'C', &[][..]),
            Self::HandedOver => (b'O', &[][..]),
            Self::Hello(version) => (b'H', std::slice::from_ref(version)),
            Self::SteppedBack => (b'B', &[][..]),
        };
        [&[letter], name].concat()
    }

    pub(crate) fn send(&self, socket: &impl AsFd, attached: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send_record(socket, &self.record(), attached)
    }

    /// The next record: a word and what is attached to it, or none if it is something else.
    ///
    /// # Errors
    /// The other end is gone, or has said nothing for as long as the socket's timeout.
    pub(crate) fn receive(socket: &impl AsFd) -> io::Result<(Option<Self>, Option<OwnedFd>)> {
        // One byte more than the longest: what is longer is seen to be.
        let mut record = [0; MAX_RECORD_BYTES + 1];
        let (length, attached) = receive_record(socket, &mut record)?;
        Ok((Self::parse(&record[..length]), attached))
    }
}

/// Descriptors, each under its name.
#[derive(Default)]
pub(crate) struct Kept(BTreeMap<KeptName, OwnedFd>);

impl Kept {
    /// Receives what was kept, until that was all.
    pub(crate) fn receive(socket: &impl AsFd) -> io::Result<Self> {
        let mut kept = Self::default();
        loop {
            match Word::receive(socket)? {
                (Some(Word::ThatIsAll), _) => return Ok(kept),
                (Some(Word::Keep(name)), Some(descriptor)) => _ = kept.put(name, descriptor),
                _ => {}
            }
        }
    }

    /// Sends all, and that it is all.
    pub(crate) fn send(&self, socket: &impl AsFd) -> io::Result<()> {
        for (name, descriptor) in &self.0 {
            Word::Keep(name.clone()).send(socket, Some(descriptor.as_fd()))?;
        }
        Word::ThatIsAll.send(socket, None)
    }

    /// False when there are too many already.
    pub(crate) fn put(&mut self, name: KeptName, descriptor: OwnedFd) -> bool {
        let room = self.0.len() < MAX_KEPT || self.0.contains_key(&name);
        if room {
            self.0.insert(name, descriptor);
        }
        room
    }

    /// Those that a worker's parent keeps: all but what is between two workers.
    pub(crate) fn lasting(&self) -> impl Iterator<Item = (&KeptName, &OwnedFd)> {
        self.0.iter().filter(|(name, _)| !name.is_relay())
    }

    pub(crate) fn take(&mut self, name: &KeptName) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Takes all of the other, as far as there is room.
    pub(crate) fn extend(&mut self, other: Self) {
        for (name, descriptor) in other.0 {
            self.put(name, descriptor);
        }
    }

    /// Takes what no one has taken.
    pub(crate) fn take_rest(&mut self) -> BTreeMap<KeptName, OwnedFd> {
        std::mem::take(&mut self.0)
    }
}

/// A worker's parent, for the worker.
#[derive(Clone)]
pub(crate) struct Parent(Arc<OwnedFd>);

impl Parent {
    pub(crate) fn new(channel: OwnedFd) -> Self {
        Self(Arc::new(channel))
    }

    /// Has it keep a copy. Without one a crash costs more time, and nothing else.
    pub(crate) fn keep(&self, name: KeptName, descriptor: &impl AsFd) {
        self.say(&Word::Keep(name), Some(descriptor.as_fd()));
    }

    pub(crate) fn forget(&self, name: KeptName) {
        self.say(&Word::Forget(name), None);
    }

    pub(crate) fn carries(&self) {
        self.say(&Word::Carrying, None);
    }

    pub(crate) fn hands_over(&self) {
        self.say(&Word::HandedOver, None);
    }

    fn say(&self, word: &Word, attached: Option<BorrowedFd<'_>>) {
        if let Err(error) = word.send(&*self.0, attached) {
            tracing::warn!(%error, ?word, "the parent process does not listen");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_packet_io::record_pair;
    use proptest::prelude::*;

    #[test]
    fn what_is_kept_comes_back_under_its_name() {
        let (parent, worker) = record_pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let said = Parent::new(worker.try_clone().unwrap());
        said.keep(KeptName::port(51820), &null);
        said.keep(KeptName::owner(), &null);
        said.forget(KeptName::owner());
        let mut kept = Kept::default();
        for _ in 0..3 {
            match Word::receive(&parent).unwrap() {
                (Some(Word::Keep(name)), Some(descriptor)) => assert!(kept.put(name, descriptor)),
                (Some(Word::Forget(name)), None) => assert!(kept.take(&name).is_some()),
                other => panic!("{other:?}"),
            }
        }
        kept.send(&parent).unwrap();
        let mut back = Kept::receive(&worker).unwrap();
        assert!(back.take(&KeptName::port(51820)).is_some() && back.take(&KeptName::owner()).is_none());
        assert!(back.take_rest().is_empty());
    }

    #[test]
    fn what_is_no_word_is_passed_over_with_whatever_is_attached() {
        let (here, there) = record_pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let long = [b'K'; MAX_RECORD_BYTES + 9];
        for record in [&b"K"[..], b"K \n", b"?", b".x", b"K\xff\xfe", &long] {
            send_record(&here, record, Some(null.as_fd())).unwrap();
        }
        Word::Keep(KeptName::owner()).send(&here, None).unwrap();
        Word::ThatIsAll.send(&here, None).unwrap();
        assert!(Kept::receive(&there).unwrap().take_rest().is_empty());
    }

    #[test]
    fn what_is_between_two_workers_does_not_last() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut kept = Kept::default();
        for name in [KeptName::relay(0), KeptName::relay(1), KeptName::port(51820), KeptName::memory()] {
            kept.put(name, null.try_clone().unwrap().into());
        }
        let lasting: Vec<_> = kept.lasting().map(|(name, _)| name.clone()).collect();
        assert_eq!(lasting, [KeptName::memory(), KeptName::port(51820)]);
    }

    #[test]
    fn no_more_is_kept_than_fits() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut kept = Kept(BTreeMap::new());
        let open = || OwnedFd::from(null.try_clone().unwrap());
        let room =
            (0..=MAX_KEPT).take_while(|n| *n < 16 && kept.put(KeptName(format!("tun/{n}")), open())).count();
        assert_eq!(room, 16);
        assert!(kept.put(KeptName("tun/3".into()), open()), "in place of one");
    }

    proptest! {
        #[test]
        fn any_record_at_all_is_read_without_a_panic_and_a_word_is_read_as_it_was_said(
            record in proptest::collection::vec(any::<u8>(), 0..80)
        ) {
            if let Some(word) = Word::parse(&record) {
                prop_assert_eq!(word.record(), record);
            }
        }
    }
}
