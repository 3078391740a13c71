// SPDX-License-Identifier: Apache-2.0
//! The connection to the data plane process: a thread that connects, again and again, and carries configurations over.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use isthmus_dataplane::client::{self, Client};
use isthmus_model::dataplane::{DataplaneConfig, Report};
use tokio::sync::mpsc as channel;

const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// What the engine hears.
#[derive(Debug)]
pub enum Heard {
    /// Connected. The socket that owns our nftables table comes along.
    Connected(OwnedFd),
    /// A report.
    Report(Report),
    /// The connection is gone; it is being made again.
    Lost(String),
}

enum Command {
    Configure(DataplaneConfig),
    Closed(String),
}

/// The engine's end.
pub struct DataplaneLink {
    commands: mpsc::Sender<Command>,
    /// Events, in order.
    pub heard: channel::UnboundedReceiver<Heard>,
}

impl DataplaneLink {
    /// Starts connecting to `socket`.
    pub fn start(socket: PathBuf) -> Self {
        let (commands, inbox) = mpsc::channel();
        let (events, heard) = channel::unbounded_channel();
        let back = commands.clone();
        thread::spawn(move || run(&socket, &inbox, &back, &events));
        Self { commands, heard }
    }

    /// Hands a configuration over. While there is no connection it is dropped: the engine configures anew after `Connected`.
    pub fn configure(&self, config: DataplaneConfig) {
        let _ = self.commands.send(Command::Configure(config));
    }
}

fn run(
    socket: &std::path::Path,
    inbox: &mpsc::Receiver<Command>,
    back: &mpsc::Sender<Command>,
    events: &channel::UnboundedSender<Heard>,
) {
    let mut owner: Option<OwnedFd> = None;
    while !events.is_closed() {
        match client::connect(socket, owner.as_ref().map(AsFd::as_fd)) {
            Ok((client, fd)) => {
                let Ok(copy) = fd.try_clone() else { continue };
                owner = Some(fd);
                let _ = events.send(Heard::Connected(copy));
                let reason = serve(client, inbox, back, events);
                let _ = events.send(Heard::Lost(reason));
            }
            Err(error) => {
                tracing::debug!(%error, "the data plane process is not there yet");
                thread::sleep(RECONNECT_PAUSE);
            }
        }
    }
}

/// Serves one connection until it closes; returns why.
fn serve(
    mut client: Client,
    inbox: &mpsc::Receiver<Command>,
    back: &mpsc::Sender<Command>,
    events: &channel::UnboundedSender<Heard>,
) -> String {
    let (events, back) = (events.clone(), back.clone());
    let listening = client.listen(move |event| {
        let _ = match event {
            client::Event::Report(report) => events.send(Heard::Report(report)).map_err(drop),
            client::Event::Closed(reason) => back.send(Command::Closed(reason)).map_err(drop),
        };
    });
    if let Err(error) = listening {
        return error.to_string();
    }
    loop {
        match inbox.recv() {
            Ok(Command::Configure(config)) => {
                if let Err(error) = client.configure(&config) {
                    return error.to_string();
                }
            }
            Ok(Command::Closed(reason)) => return reason,
            Err(_) => return "the agent ends".to_owned(),
        }
    }
}
