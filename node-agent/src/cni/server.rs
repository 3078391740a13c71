// SPDX-License-Identifier: Apache-2.0
//! The socket: who may call, frames, one task for each call.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_cni::wire::{Answer, Delegated, MAX_FRAME_BYTES, PRINTED, Request};
use isthmus_cni_kit::error::code;
use isthmus_cni_kit::version::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::call::{Call, Role};
use super::delegated::{PATIENCE, Runner, Wanted};
use super::workshop::{Added, Workshop};
use crate::node::Node;

/// A plugin that does not send its request in this time is given up.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// The plugin has only to print what it was told; until then the next call of the container waits.
const PRINT_PATIENCE: Duration = Duration::from_secs(1);
/// A call that lasts longer is told to the plugin, which does not take the agent for a hung one then. Most end long before, and telling
/// costs both sides a turn.
const TELL_AFTER: Duration = Duration::from_millis(200);
/// The plugin waits so long for the end of a call that was taken in.
const WORK_S: u8 = 20;

/// Binds the socket: its directory and itself for root only; a socket that a dead agent left is replaced.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    }
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves calls for ever.
pub async fn serve(listener: UnixListener, node: Arc<Node>) -> io::Result<()> {
    let workshop = Arc::new(Workshop::new(node));
    loop {
        let (stream, _) = listener.accept().await?;
        let workshop = workshop.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_call(stream, &workshop).await {
                tracing::warn!(%error, "a CNI call broke off");
            }
        });
    }
}

async fn serve_call(mut stream: UnixStream, workshop: &Arc<Workshop>) -> io::Result<()> {
    let caller = stream.peer_cred()?;
    if caller.uid() != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {} is not root", caller.uid()),
        ));
    }
    let payload = tokio::time::timeout(REQUEST_PATIENCE, read_payload(&mut stream)).await??;
    let request = Request::parse(&payload).map_err(io::Error::other)?;
    // A task of its own: a plugin that is killed must not leave a call half done.
    let (runner, mut wanted) = mpsc::channel(1);
    let shop = workshop.clone();
    let mut working = tokio::spawn(async move { answer(&request, &shop, &Runner(runner)).await });
    let mut lasts = pin!(sleep(TELL_AFTER));
    let mut told = false;
    let (answer, added) = loop {
        tokio::select! {
            biased;
            served = &mut working => break served.map_err(io::Error::other)?,
            Some(wanted) = wanted.recv() => delegate(&mut stream, wanted).await,
            () = &mut lasts, if !told => {
                stream.write_all(&Answer::Wait { seconds: WORK_S }.to_frame()).await?;
                told = true;
            }
        }
    };
    stream.write_all(&answer.to_frame()).await?;
    let Some(added) = added else { return Ok(()) };
    match tokio::time::timeout(PRINT_PATIENCE, stream.read_u8()).await {
        Ok(Ok(PRINTED)) => workshop.told(added),
        _ => tracing::debug!("whether the runtime has the result of ADD is not known"),
    }
    Ok(())
}

/// Has the plugin run another one.
async fn delegate(stream: &mut UnixStream, wanted: Wanted) {
    let ask = Answer::Delegate { plugin: wanted.plugin, command: wanted.command.to_owned() };
    let exchange = async {
        stream.write_all(&ask.to_frame()).await?;
        Delegated::parse(&read_payload(stream).await?).map_err(io::Error::other)
    };
    let outcome = tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|late| Err(late.into()));
    // Who asked waits for this.
    let _ = wanted.answer.send(outcome);
}

async fn read_payload(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a request longer than the limit"));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

async fn answer(request: &Request, workshop: &Workshop, runner: &Runner) -> (Answer, Option<Added>) {
    let began = Instant::now();
    let command = request.var("CNI_COMMAND").unwrap_or_default().to_owned();
    let (result, added) = match Call::parse(request) {
        Ok((call, config)) => {
            let version = config.version();
            let served = workshop.call(Role::of(request), call, &config, runner).await;
            (served.outcome.map_err(|error| (error, version)), served.added)
        }
        Err(error) => (Err((error, Version::NEWEST)), None),
    };
    let code = result.as_ref().err().map_or(0, |(error, _)| error.code);
    let seconds = began.elapsed().as_secs_f64();
    let known = ["ADD", "CHECK", "DEL", "GC", "STATUS"].contains(&command.as_str());
    let label = if known { command.as_str() } else { "other" };
    let metrics = &workshop.node().metrics;
    metrics.add(&format!("cni_calls_total{{command=\"{label}\",code=\"{code}\"}}"), 1.0);
    metrics.add(&format!("cni_seconds_total{{command=\"{label}\"}}"), seconds);
    let container = request.var("CNI_CONTAINERID").unwrap_or_default();
    let answer = match result {
        Ok(stdout) => {
            tracing::debug!(command, container, seconds, "CNI call served");
            Answer::Done { exit_code: 0, stdout }
        }
        Err((error, version)) => {
            if code != code::UNAVAILABLE {
                tracing::warn!(command, container, %error, "CNI call failed");
            }
            Answer::Done { exit_code: 1, stdout: error.to_json(version).to_string().into_bytes() }
        }
    };
    (answer, added)
}
