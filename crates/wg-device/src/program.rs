// SPDX-License-Identifier: Apache-2.0
//! `isthmus-wg [-f] INTERFACE`: makes the TUN device and serves it until SIGTERM, until the device is deleted or until its socket's
//! file is, as wireguard-go does; so `wg-quick` takes it by `WG_QUICK_USERSPACE_IMPLEMENTATION=isthmus-wg`.

mod interface;
mod options;
mod socket;

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use isthmus_packet_io::{Lifetime, Tun};
use isthmus_wg::Engine;
use nix::sys::signal::{SigSet, Signal};

use crate::{Carrier, bell};
use interface::Served;
use options::{Asked, Options};
use socket::{Asking, Socket};

/// MTU of the device until somebody sets another: what IPv6 over 1500-byte Ethernet leaves of a packet (1500 - 40 - 8 - 32).
const MTU_BYTES: u16 = 1420;
/// How often it is looked whether the socket's file is still there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What a process in the background tells the one that started it.
const READY: &str = "ready";

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let done = match options::parse(std::env::args().skip(1)) {
        Ok(Asked::Text(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Run(options)) if options.foreground => run(&options),
        Ok(Asked::Run(options)) => detach(&options),
        Err(error) => {
            eprintln!("isthmus-wg: {error}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isthmus-wg: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why the program cannot run.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Device(io::Error),
    #[error("cannot serve {path}: {error}")]
    Socket { path: String, error: io::Error },
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    #[error("the process in the background did not get ready; with --foreground it says why")]
    NotReady,
}

/// Starts itself once more, in the background, and returns when that is ready: `wg` can be run then.
fn detach(options: &Options) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::System("find this program", error))?;
    let mut child = Command::new(program)
        .args(["--foreground", "--tell-ready", &options.interface])
        .args(options::without(&options.features))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(|error| Failure::System("start in the background", error))?;
    let told = child.stdout.take().and_then(|stdout| BufReader::new(stdout).lines().next());
    match told {
        Some(Ok(line)) if line == READY => Ok(()),
        _ => {
            // It has said why on the standard error that it shares with us.
            let _ = child.wait();
            Err(Failure::NotReady)
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    ending.thread_block().map_err(|errno| Failure::System("block signals", errno.into()))?;
    let mut first_index = [0; 4];
    getrandom::fill(&mut first_index)
        .map_err(|error| Failure::System("get random bytes", io::Error::other(error.to_string())))?;
    let engine = Engine::new(u32::from_le_bytes(first_index), Instant::now());
    let (bell, ear) = bell().map_err(|error| Failure::System("make a pipe", error))?;
    let mut carrier =
        Carrier::new(engine, ear).map_err(|error| Failure::System("wait for packets", error))?;
    let features = &options.features;
    let tun = Tun::open_with(&options.interface, MTU_BYTES, Lifetime::Process, features)
        .map_err(Failure::Device)?;
    let mut served = Served::new(&mut carrier, tun, features.clone())
        .map_err(|error| Failure::System("serve the device", error))?;
    let (ask, asked) = channel();
    let path = socket::path_of(&options.interface);
    let told_path = path.display().to_string();
    let ringer = std::sync::Arc::new(bell);
    let socket = Socket::serve(path, ask.clone(), std::sync::Arc::clone(&ringer))
        .map_err(|error| Failure::Socket { path: told_path, error })?;
    let waiting = move || {
        let _ = ending.wait();
        let _ = ask.send(Asking::End);
        ringer.ring();
    };
    std::thread::Builder::new()
        .name("signals".into())
        .stack_size(64 << 10)
        .spawn(waiting)
        .map_err(|error| Failure::System("start a thread", error))?;
    if options.tell_ready {
        println!("{READY}");
        detach_output();
    }
    let mut next_look = Instant::now() + LOOK_EVERY;
    loop {
        let heard = carrier.turn(next_look);
        if heard.bell {
            carrier.hush();
            while let Ok(asking) = asked.try_recv() {
                match asking {
                    Asking::Get(answer) => drop(answer.send(served.answer_to_get(&carrier))),
                    Asking::Set(request, answer) => drop(answer.send(served.set(&mut carrier, &request))),
                    Asking::End => return Ok(()),
                }
            }
        }
        if !heard.deleted.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        if now >= next_look {
            next_look = now + LOOK_EVERY;
            if !socket.is_there() {
                return Ok(());
            }
        }
    }
}

/// Lets go of the outputs: whoever reads them waits for their end.
fn detach_output() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}
