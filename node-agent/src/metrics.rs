// SPDX-License-Identifier: Apache-2.0
//! Counters of the agent, and the small HTTP server that shows them (Prometheus text format 0.0.4).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const REQUEST_PATIENCE: Duration = Duration::from_secs(2);

/// Numbers by name and labels. Names that end in `_total` only grow.
#[derive(Debug, Default)]
pub struct Metrics {
    values: Mutex<BTreeMap<String, f64>>,
    readiness: Mutex<Option<String>>,
}

impl Metrics {
    /// Nothing counted, not ready.
    pub fn new() -> Self {
        let metrics = Self::default();
        metrics.set_readiness(Err("starting".to_owned()));
        metrics
    }

    /// Adds to a counter.
    pub fn add(&self, name: &str, amount: f64) {
        *self.values.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default() +=
            amount;
    }

    /// Sets a gauge.
    pub fn set(&self, name: &str, value: f64) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), value);
    }

    /// Says that these are so, one label value each, and no others of the name.
    pub fn set_info(&self, name: &str, label: &str, values: &BTreeSet<String>) {
        let mut all = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known, _| known.split_once('{').is_none_or(|(before, _)| before != name));
        all.extend(values.iter().map(|value| (format!("{name}{{{label}=\"{value}\"}}"), 1.0)));
    }

    /// A number as it is now; zero, if it was never counted.
    pub fn get(&self, name: &str) -> f64 {
        *self.values.lock().unwrap_or_else(PoisonError::into_inner).get(name).unwrap_or(&0.0)
    }

    /// What `/readyz` says.
    pub fn set_readiness(&self, ready: Result<(), String>) {
        *self.readiness.lock().unwrap_or_else(PoisonError::into_inner) = ready.err();
    }

    fn text(&self) -> String {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, value) in &*values {
            let _ = writeln!(text, "isthmus_agent_{name} {value}");
        }
        text
    }

    fn response(&self, path: &str) -> (&'static str, String) {
        match path {
            "/healthz" => ("200 OK", "ok\n".to_owned()),
            "/readyz" => match &*self.readiness.lock().unwrap_or_else(PoisonError::into_inner) {
                None => ("200 OK", "ok\n".to_owned()),
                Some(reason) => ("503 Service Unavailable", format!("{reason}\n")),
            },
            "/metrics" => ("200 OK", self.text()),
            _ => ("404 Not Found", "try /healthz, /readyz or /metrics\n".to_owned()),
        }
    }
}

/// Serves `/healthz`, `/readyz` and `/metrics` for ever.
pub async fn serve(metrics: Arc<Metrics>, address: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let metrics = metrics.clone();
        tokio::spawn(async move { tokio::time::timeout(REQUEST_PATIENCE, answer(stream, &metrics)).await });
    }
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut request = [0; 1024];
    let length = stream.read(&mut request).await?;
    let text = String::from_utf8_lossy(&request[..length]);
    let path = text.split_whitespace().nth(1).unwrap_or_default();
    let (status, body) = metrics.response(path);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_missing() {
        let metrics = Metrics::new();
        metrics.set_readiness(Err("no block yet".to_owned()));
        assert_eq!(metrics.response("/readyz"), ("503 Service Unavailable", "no block yet\n".to_owned()));
        metrics.set_readiness(Ok(()));
        assert_eq!(metrics.response("/readyz").0, "200 OK");
    }

    #[test]
    fn counters_are_shown_with_their_labels() {
        let metrics = Metrics::new();
        metrics.add("cni_calls_total{command=\"ADD\",code=\"0\"}", 1.0);
        metrics.add("cni_calls_total{command=\"ADD\",code=\"0\"}", 1.0);
        assert_eq!(metrics.text(), "isthmus_agent_cni_calls_total{command=\"ADD\",code=\"0\"} 2\n");
    }

    #[test]
    fn what_is_so_is_shown_and_what_is_so_no_more_is_not() {
        let metrics = Metrics::new();
        metrics.set("offload_infos", 2.0);
        for features in [&["uso", "tso"][..], &["tso"]] {
            let features = features.iter().map(|name| (*name).to_owned()).collect();
            metrics.set_info("offload_info", "feature", &features);
        }
        let text = "isthmus_agent_offload_infos 2\nisthmus_agent_offload_info{feature=\"tso\"} 1\n";
        assert_eq!(metrics.text(), text);
    }
}
