// SPDX-License-Identifier: Apache-2.0
//! `/healthz`, `/readyz` and `/metrics`: three answers over HTTP/1.1, one request a connection.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::debug;

use crate::metrics::Metrics;

/// The longest request line and headers that are read.
const REQUEST_BYTES: usize = 4096;
/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Serves until the process ends.
///
/// # Errors
/// The address cannot be bound.
pub(crate) async fn serve(address: SocketAddr, metrics: Metrics) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}; choose another with --health-address"))?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let metrics = metrics.clone();
            tokio::spawn(async move {
                if !matches!(timeout(DEADLINE, answer(stream, &metrics)).await, Ok(Ok(()))) {
                    debug!("a health request was not answered");
                }
            });
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") && request.len() < REQUEST_BYTES {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next().unwrap_or_default());
    let (status, body) = respond(line.split(' ').nth(1).unwrap_or_default(), metrics);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn respond(path: &str, metrics: &Metrics) -> (&'static str, String) {
    match path {
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        "/readyz" if metrics.listed() => ("200 OK", "ok\n".to_owned()),
        "/readyz" => ("503 Service Unavailable", "not every watch has listed yet\n".to_owned()),
        "/metrics" => ("200 OK", metrics.text()),
        _ => ("404 Not Found", "try /healthz, /readyz or /metrics\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_ready_once_every_watch_has_listed() {
        let metrics = Metrics::default();
        assert!(respond("/readyz", &metrics).0.starts_with("503"));
        metrics.set_listed();
        assert!(respond("/readyz", &metrics).0.starts_with("200"));
        assert!(respond("/metrics", &metrics).1.contains("isthmus_operator_in_sync 1"));
    }
}
