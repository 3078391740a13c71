// SPDX-License-Identifier: Apache-2.0
//! Kills a process at one of its system calls.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Before a system call takes effect, or after it did and before the process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    Entry,
    Exit,
}

/// Where to kill: at the entry or exit of the system call of this number, counted over all threads from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) number: usize,
    pub(crate) edge: Edge,
}

/// The system call at which the process was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Killed {
    pub(crate) point: Point,
    call: Option<i64>,
    thread: String,
}

/// What became of a traced process. It is dead.
pub(crate) struct Traced<T> {
    /// None if the work ended before the process came to the point.
    pub(crate) killed: Option<Killed>,
    /// System calls that it entered meanwhile.
    pub(crate) calls: usize,
    /// The work; it may outlive the process.
    pub(crate) work: JoinHandle<T>,
}

/// The process, until somebody kills it: after that its number may become another's.
#[derive(Clone)]
struct Victim(Arc<Mutex<Option<Pid>>>);

impl Victim {
    fn kill(&self) {
        if let Some(pid) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Traces every thread of a process while the work goes on, and kills the process at the point, or when the work has ended.
///
/// The process must have been started by another thread of this one, and nobody else may wait for it.
///
/// # Panics
/// Where it cannot be traced, or ends by itself.
pub(crate) fn kill_at<T: Send + 'static>(
    pid: Pid,
    point: Option<Point>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Traced<T> {
    let victim = Victim(Arc::new(Mutex::new(Some(pid))));
    let mut tracer = Tracer { pid, point: None, victim: victim.clone(), calls: 0, last: None, killed: None };
    let mut unready = seize(pid);
    while !unready.is_empty() {
        let stopped =
            tracer.step().unwrap_or_else(|| panic!("the process ended before it was asked anything"));
        unready.remove(&stopped);
    }
    (tracer.calls, tracer.point) = (0, point);
    let work = thread::spawn(move || {
        let value = work();
        victim.kill();
        value
    });
    while tracer.step().is_some() {}
    Traced { killed: tracer.killed, calls: tracer.calls, work }
}

/// Takes hold of every thread, and interrupts each so that its next system call is seen. Returns them.
fn seize(pid: Pid) -> BTreeSet<Pid> {
    let options = ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_TRACESYSGOOD
        | ptrace::Options::PTRACE_O_EXITKILL;
    let mut seized = BTreeSet::new();
    loop {
        let before = seized.len();
        for thread in threads(pid) {
            if seized.contains(&thread) {
                continue;
            }
            match ptrace::seize(thread, options) {
                Ok(()) => drop(seized.insert(thread)),
                // It ended, or came into being held.
                Err(Errno::ESRCH | Errno::EPERM) => {}
                Err(error) => panic!("thread {thread} cannot be traced: {error}"),
            }
        }
        if seized.len() == before {
            break;
        }
    }
    seized.retain(|thread| ptrace::interrupt(*thread).is_ok());
    seized
}

fn threads(pid: Pid) -> Vec<Pid> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    names.map(Pid::from_raw).collect()
}

struct Tracer {
    pid: Pid,
    point: Option<Point>,
    victim: Victim,
    calls: usize,
    /// The thread that is inside the call of the wanted number.
    last: Option<Pid>,
    killed: Option<Killed>,
}

impl Tracer {
    /// Sees to the next thread that stopped or ended. None once the whole process is gone.
    fn step(&mut self) -> Option<Pid> {
        match next_stop() {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                if !self.at_call(thread) {
                    let _ = ptrace::syscall(thread, None);
                }
                Some(thread)
            }
            Ok(WaitStatus::PtraceEvent(thread, _, _)) => {
                let _ = ptrace::syscall(thread, None);
                Some(thread)
            }
            Ok(WaitStatus::Stopped(thread, signal)) => {
                let _ = ptrace::syscall(thread, signal);
                Some(thread)
            }
            Ok(WaitStatus::Signaled(thread, ..) | WaitStatus::Exited(thread, _)) => {
                (thread != self.pid).then_some(thread)
            }
            Err(Errno::ECHILD) => None,
            other => panic!("while waiting for the traced process: {other:?}"),
        }
    }

    /// Counts a system call, or the end of one. Whether the process was killed there.
    fn at_call(&mut self, thread: Pid) -> bool {
        let Ok(info) = ptrace::syscall_info(thread) else { return false };
        let entry = info.op == libc::PTRACE_SYSCALL_INFO_ENTRY;
        self.calls += usize::from(entry);
        let Some(point) = self.point else { return false };
        if entry && self.calls == point.number {
            self.last = Some(thread);
        }
        let edge = if entry { Edge::Entry } else { Edge::Exit };
        if self.killed.is_some() || self.last != Some(thread) || edge != point.edge {
            return false;
        }
        let task = format!("/proc/{}/task/{thread}", self.pid);
        let read = |name: &str| fs::read_to_string(format!("{task}/{name}")).unwrap_or_default();
        let call = read("syscall").split(' ').next().and_then(|number| number.parse().ok());
        self.killed = Some(Killed { point, call, thread: read("comm").trim().to_owned() });
        self.victim.kill();
        true
    }
}

/// What another thread of this program traces is not this thread's business.
fn next_stop() -> nix::Result<WaitStatus> {
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    loop {
        match waitpid(Pid::from_raw(-1), Some(flags)) {
            Err(Errno::EINTR) => {}
            seen => return seen,
        }
    }
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let edge = match self.point.edge {
            Edge::Entry => "entry",
            Edge::Exit => "exit",
        };
        write!(f, "{edge} of system call {} ", self.point.number)?;
        match self.call.map(|number| (number, name(number))) {
            Some((_, Some(name))) => write!(f, "({name}")?,
            Some((number, None)) => write!(f, "(number {number}")?,
            None => write!(f, "(of unknown kind")?,
        }
        write!(f, ", thread {})", self.thread)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn name(_: i64) -> Option<&'static str> {
    None
}

#[cfg(target_arch = "x86_64")]
macro_rules! names {
    ($number:expr; $($name:ident $call:ident),*) => {
        match $number {
            $(libc::$call => Some(stringify!($name)),)*
            _ => None,
        }
    };
}

/// Those that an agent makes.
#[cfg(target_arch = "x86_64")]
fn name(number: i64) -> Option<&'static str> {
    names!(number; read SYS_read, write SYS_write, close SYS_close, lseek SYS_lseek, mmap SYS_mmap,
        mprotect SYS_mprotect, munmap SYS_munmap, madvise SYS_madvise, brk SYS_brk, mremap SYS_mremap,
        rt_sigaction SYS_rt_sigaction, rt_sigprocmask SYS_rt_sigprocmask, sigaltstack SYS_sigaltstack,
        ioctl SYS_ioctl, writev SYS_writev, sched_yield SYS_sched_yield, sched_getaffinity SYS_sched_getaffinity,
        socket SYS_socket, bind SYS_bind, listen SYS_listen, connect SYS_connect, accept4 SYS_accept4,
        getsockname SYS_getsockname, setsockopt SYS_setsockopt, getsockopt SYS_getsockopt,
        sendto SYS_sendto, recvfrom SYS_recvfrom, sendmsg SYS_sendmsg, recvmsg SYS_recvmsg,
        shutdown SYS_shutdown, clone3 SYS_clone3, clone SYS_clone, exit SYS_exit, fcntl SYS_fcntl,
        fsync SYS_fsync, fdatasync SYS_fdatasync, ftruncate SYS_ftruncate, openat SYS_openat,
        mkdir SYS_mkdir, unlink SYS_unlink, rename SYS_rename, chmod SYS_chmod, fchmod SYS_fchmod,
        statx SYS_statx, fstat SYS_fstat, newfstatat SYS_newfstatat, readlink SYS_readlink,
        getdents64 SYS_getdents64, futex SYS_futex, epoll_wait SYS_epoll_wait, epoll_ctl SYS_epoll_ctl,
        epoll_create1 SYS_epoll_create1, eventfd2 SYS_eventfd2, poll SYS_poll, setns SYS_setns,
        set_robust_list SYS_set_robust_list, rseq SYS_rseq, prctl SYS_prctl, getrandom SYS_getrandom,
        clock_nanosleep SYS_clock_nanosleep, restart_syscall SYS_restart_syscall, getpid SYS_getpid,
        gettid SYS_gettid, set_tid_address SYS_set_tid_address, prlimit64 SYS_prlimit64, socketpair SYS_socketpair,
        dup SYS_dup, access SYS_access, pread64 SYS_pread64, uname SYS_uname)
}
