// SPDX-License-Identifier: Apache-2.0
//! `dhcp daemon`: gets leases for pods, and prolongs them for as long as the pods are there.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isthmus_cni_kit::error::{Error, code};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};

use super::calls::{Ask, Call, Key, Reply, hear, say};
use super::client::{Client, Event, Identity, Patience};
use super::exchange;
use super::flags::{Flags, HELP};
use super::record::{Now, Record};
use super::store::Store;
use super::tenancy::{Hand, Tenancy, Tenant};
use super::wire::Mac;
use crate::failure;

/// Questions at the same time; who comes then is turned away and may ask again.
const CALLS: usize = 128;
/// After a question that could not be taken, or a thread that could not be started: something that ends makes room.
const PAUSE: Duration = Duration::from_millis(100);
/// A plugin says its question at once.
const QUESTION_PATIENCE: Duration = Duration::from_secs(10);
/// Of the first message; the pause grows from there.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// What systemd hands on (sd_listen_fds).
const HANDED_ON: i32 = 3;

fn log(text: &str) {
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(io::stderr(), "dhcp: {text}");
}

fn named(key: &Key) -> String {
    format!("{} of {} in {}", key.ifname, key.container_id, key.network)
}

struct Daemon {
    flags: Flags,
    tenancy: Tenancy,
    store: Store,
    calls: AtomicUsize,
}

/// Runs until it is told to end.
pub(crate) fn main(words: &[OsString]) -> ExitCode {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if words.iter().any(|word| matches!(word.as_str(), "-h" | "-help" | "--help")) {
        let _ = write!(io::stdout(), "{HELP}");
        return ExitCode::SUCCESS;
    }
    let flags = match Flags::parse(&words) {
        Ok(flags) => flags,
        Err(fault) => {
            let _ = write!(io::stderr(), "dhcp: {fault}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match serve(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: Flags) -> Result<(), Error> {
    // Before any thread is started, so that all have the mask.
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    let signals = ending.thread_block().and_then(|()| SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC));
    let signals = signals.map_err(|errno| failure::io("signals", &errno.into()))?;
    let socket = flags.on_host(&flags.socket);
    let (listener, own) = listen(&socket)?;
    if let Some(file) = &flags.pid_file {
        std::fs::write(file, std::process::id().to_string())
            .map_err(|error| failure::io(&format!("-pidfile {}", file.display()), &error))?;
    }
    let pid_file = flags.pid_file.clone();
    let store = Store::beside(&socket);
    let daemon = Arc::new(Daemon { flags, tenancy: Tenancy::default(), store, calls: AtomicUsize::new(0) });
    daemon.resume();
    let keeper = Arc::clone(&daemon);
    std::thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || keeper.keep())
        .map_err(|error| failure::io("the thread that prolongs leases", &error))?;
    let ended = accept(&daemon, &listener, &signals);
    if own {
        let _ = std::fs::remove_file(&socket);
    }
    if let Some(file) = pid_file {
        let _ = std::fs::remove_file(file);
    }
    ended.map_err(|error| failure::io(&socket.display().to_string(), &error))
}

/// The socket, and whether it is ours to remove: systemd's that it handed on, or a new one. One that nobody answers is replaced.
fn listen(path: &Path) -> Result<(UnixListener, bool), Error> {
    let failed = |error: io::Error| failure::io(&path.display().to_string(), &error);
    if let Some(listener) = handed_on().map_err(failed)? {
        return Ok((listener, false));
    }
    if UnixStream::connect(path).is_ok() {
        let msg = format!("a daemon answers at {} already", path.display());
        return Err(Error::new(failure::EXISTS, msg));
    }
    if let Some(directory) = path.parent() {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Nobody else may connect in the moment between bind and chmod.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    Ok((listener.map_err(failed)?, true))
}

#[expect(unsafe_code, reason = "a descriptor that came by its number")]
fn handed_on() -> io::Result<Option<UnixListener>> {
    use std::os::fd::FromRawFd;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        // SAFETY: whoever started the program handed this descriptor on for it to own, and nothing else here has it.
        Some(1) => Ok(Some(unsafe { UnixListener::from_raw_fd(HANDED_ON) })),
        count => Err(io::Error::other(format!("{} sockets were handed on, not one", count.unwrap_or(0)))),
    }
}

fn accept(daemon: &Arc<Daemon>, listener: &UnixListener, signals: &SignalFd) -> io::Result<()> {
    loop {
        let mut ready = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        if ready[1].any() == Some(true) {
            return Ok(());
        }
        match listener.accept() {
            Ok((stream, _)) if daemon.calls.load(Ordering::Relaxed) < CALLS => {
                if let Err(error) = daemon.take_question(stream) {
                    log(&format!("a question was turned away: {error}"));
                }
            }
            Ok(_) => log("too many questions at once: one is turned away"),
            Err(error) => {
                log(&format!("a question was lost: {error}"));
                std::thread::sleep(PAUSE);
            }
        }
    }
}

impl Daemon {
    /// Answers in a thread of its own.
    fn take_question(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let daemon = Arc::clone(self);
        let answer = move || {
            daemon.converse(stream);
            daemon.calls.fetch_sub(1, Ordering::Relaxed);
        };
        let started = std::thread::Builder::new().name("question".to_owned()).spawn(answer).map(drop);
        if started.is_err() {
            self.calls.fetch_sub(1, Ordering::Relaxed);
        }
        started
    }

    /// Leases of the daemon before this one, where their pods are still there.
    fn resume(&self) {
        let (records, bad) = match self.store.read() {
            Ok(read) => read,
            Err(error) => return log(&format!("leases of before cannot be read: {error}")),
        };
        for file in bad {
            log(&format!("{} holds no lease: it is passed over", file.display()));
        }
        for record in records {
            if exchange::place(&record.place.netns).is_ok_and(|place| place == record.place) {
                let client = record.client(self.patience(), random(), Now::read());
                log(&format!("{}: goes on with {}", named(&record.key), record.lease.address));
                self.tenancy.settle(record.key, Tenant { client, place: record.place });
            } else {
                self.forget(&record.key);
            }
        }
    }

    fn patience(&self) -> Patience {
        Patience { first: FIRST_PAUSE.min(self.flags.timeout), most: self.flags.resend_max }
    }

    fn converse(&self, mut stream: UnixStream) {
        let question = stream.set_read_timeout(Some(QUESTION_PATIENCE)).and_then(|()| hear(&stream));
        let call = question.map_err(|error| failure::io("the question", &error)).and_then(|line| {
            serde_json::from_slice(&line).map_err(|error| {
                Error::new(code::DECODING, format!("this is no question of the plugin dhcp: {error}"))
            })
        });
        let reply = Reply::from(call.and_then(|call| self.answer(&call)));
        // Who asked may have gone: DEL comes then.
        let _ = say(&mut stream, &reply);
    }

    fn answer(&self, call: &Call) -> Result<Reply, Error> {
        match call {
            Call::Allocate(ask) => self.allocate(ask),
            Call::Check(key) => self.check(key),
            Call::Release(key) => {
                self.release(key);
                Ok(Reply::Done)
            }
            Call::Collect { network, valid } => {
                let kept = |key: &Key| {
                    valid
                        .iter()
                        .any(|(container, ifname)| *container == key.container_id && *ifname == key.ifname)
                };
                let stale = self.tenancy.keys(|key| key.network == *network && !kept(key));
                stale.iter().for_each(|key| self.release(key));
                Ok(Reply::Done)
            }
            Call::Status => Ok(Reply::Done),
        }
    }

    fn allocate(&self, ask: &Ask) -> Result<Reply, Error> {
        ask.key.check()?;
        let place = exchange::place(&self.flags.on_host(&ask.netns))?;
        let mut hand = self.tenancy.take(&ask.key, false);
        let same = hand.tenant.as_ref().filter(|tenant| tenant.place == place);
        if let Some((lease, _)) = same.and_then(|tenant| tenant.client.lease()) {
            return Ok(Reply::Lease(lease.clone()));
        }
        hand.tenant = None;
        let identity = Identity {
            mac: Mac::default(),
            client_id: ask.key.client_id(),
            provide: ask.provide.clone(),
            request: ask.request.clone(),
            broadcast: self.flags.broadcast,
        };
        let now = Instant::now();
        let mut client = Client::new(identity, self.patience(), random(), now);
        let deadline = now + self.flags.resend_timeout;
        exchange::acquire(&place, &ask.key.ifname, &mut client, deadline, &hand.off)?;
        let lease = client.lease().map(|(lease, _)| lease.clone());
        hand.tenant = Some(Tenant { client, place });
        self.remember(&hand);
        lease.map(Reply::Lease).ok_or_else(|| Error::new(code::TRY_AGAIN, "the lease ended at once"))
    }

    fn check(&self, key: &Key) -> Result<Reply, Error> {
        let (tenant, prolonging) = self.tenancy.look(key);
        let client = match &tenant {
            Some(tenant) => &tenant.client,
            None if prolonging => return Ok(Reply::Done),
            None => return Err(failure::changed(format!("the daemon has no lease for {}", named(key)))),
        };
        let lost = || failure::changed(client.reason().unwrap_or("there is no lease").to_owned());
        client.lease().map(|(lease, _)| Reply::Lease(lease.clone())).ok_or_else(lost)
    }

    /// The lease is given back where that can be; otherwise it ends by itself.
    fn release(&self, key: &Key) {
        let mut hand = self.tenancy.take(key, true);
        if let Some(mut tenant) = hand.tenant.take() {
            match exchange::release(&tenant.place, &key.ifname, &mut tenant.client) {
                Ok(()) => log(&format!("{}: released", named(key))),
                Err(error) => log(&format!("{}: ends unreleased: {error}", named(key))),
            }
        }
        self.forget(key);
    }

    fn remember(&self, hand: &Hand<'_>) {
        let Some(tenant) = &hand.tenant else { return };
        let Some(record) = Record::of(&hand.key, &tenant.place, &tenant.client, Now::read()) else { return };
        if let Err(error) = self.store.write(&record) {
            log(&format!("{}: another daemon will not know of the lease: {error}", named(&hand.key)));
        }
    }

    fn forget(&self, key: &Key) {
        if let Err(error) = self.store.remove(key) {
            log(&format!("{}: {error}", named(key)));
        }
    }

    /// Prolongs leases as they are due, for ever.
    fn keep(&self) {
        std::thread::scope(|scope| {
            loop {
                let hand = self.tenancy.next_due();
                let thread = std::thread::Builder::new().name("lease".to_owned());
                // The lease goes back, and is due still.
                if let Err(error) = thread.spawn_scoped(scope, || self.prolong(hand)) {
                    log(&format!("a lease waits to be prolonged: {error}"));
                    std::thread::sleep(PAUSE);
                }
            }
        });
    }

    fn prolong(&self, mut hand: Hand<'_>) {
        let Some(tenant) = hand.tenant.as_mut() else { return };
        let (key, listen) = (&hand.key, self.flags.timeout);
        match exchange::prolong(&tenant.place, &key.ifname, &mut tenant.client, listen, &hand.off) {
            Ok(None) => {}
            Ok(Some(Event::Bound)) => self.remember(&hand),
            Ok(Some(Event::Lost(reason))) => {
                log(&format!("{}: the interface is down: {reason}", named(key)));
                self.forget(key);
            }
            Err(error) if error.code == code::UNKNOWN_CONTAINER => {
                log(&format!("{}: gone: {error}", named(key)));
                self.forget(key);
                hand.tenant = None;
            }
            Err(error) => {
                log(&format!("{}: {error}", named(key)));
                tenant.client.postpone(Instant::now());
            }
        }
    }
}

/// Without the system's randomness clients are told apart by address only.
fn random() -> u32 {
    getrandom::u32().unwrap_or_else(|_| std::process::id())
}
