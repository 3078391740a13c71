// SPDX-License-Identifier: Apache-2.0
//! The thread that has the tunnels, for those who command it.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use isthmus_model::dataplane::DataplaneConfig;
use isthmus_wg_device::Bell;

use crate::kept::Kept;

/// To the thread, with where to answer.
pub(crate) enum Command {
    Configure(Box<DataplaneConfig>, Sender<Vec<String>>),
    RotateKey(Sender<Vec<String>>),
    Retire(Sender<io::Result<Kept>>),
    Resume,
    StepBack(Sender<()>),
}

/// What a request is answered with while another worker takes over.
pub(crate) const BEING_REPLACED: &str = "another worker takes over; ask again";

const THREAD_ENDED: &str = "the thread of the tunnels has ended";

/// The thread, for those who command it.
pub(crate) struct PacketThread {
    commands: Sender<Command>,
    bell: Bell,
}

impl PacketThread {
    pub(crate) fn new(commands: Sender<Command>, bell: Bell) -> Self {
        Self { commands, bell }
    }

    /// Runs the tunnels of this configuration. Returns what could not be done, when the rest is.
    pub(crate) fn configure(&self, config: &DataplaneConfig) -> Vec<String> {
        self.command(|answer| Command::Configure(Box::new(config.clone()), answer))
    }

    /// Brings in a new key. Returns why not, if not.
    pub(crate) fn rotate_key(&self) -> Vec<String> {
        self.command(Command::RotateKey)
    }

    /// Begins nothing new, since another worker takes over: it gets what is returned. Packets are carried as before.
    pub(crate) fn retire(&self) -> io::Result<Kept> {
        let (answer, answered) = channel();
        self.send(Command::Retire(answer));
        answered.recv().unwrap_or_else(|_| Err(io::Error::other(THREAD_ENDED)))
    }

    /// The other worker is gone: goes on as before.
    pub(crate) fn resume(&self) {
        self.send(Command::Resume);
    }

    /// The other worker carries. Receiving fails when nothing is on its way to this one any more.
    pub(crate) fn step_back(&self) -> Receiver<()> {
        let (drained, is_drained) = channel();
        self.send(Command::StepBack(drained));
        is_drained
    }

    fn command(&self, command: impl FnOnce(Sender<Vec<String>>) -> Command) -> Vec<String> {
        let (answer, answered) = channel();
        self.send(command(answer));
        answered.recv().unwrap_or_else(|_| vec![THREAD_ENDED.into()])
    }

    fn send(&self, command: Command) {
        // Of a thread that has ended the answer never comes.
        let _ = self.commands.send(command);
        self.bell.ring();
    }
}
