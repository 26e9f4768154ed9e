//! A device: `mailbell listen --json` as a process of its own.

use std::{collections::BTreeSet, net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
};

use crate::mailbell::Standalone;

/// What a person sees of an arrival.
#[derive(Debug)]
pub(crate) struct Alert {
    /// On which device.
    pub device: &'static str,
    /// The sender's name.
    pub from: String,
    /// The subject.
    pub subject: String,
    /// The beginning of the text.
    pub preview: String,
    /// From the mail server's notice to the device.
    pub latency_ms: f64,
}

/// A device that listens.
#[derive(Debug)]
pub(crate) struct Device {
    name: &'static str,
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    subjects: Vec<String>,
}

impl Device {
    /// Opens the stream of one account through `gateway`.
    pub(crate) fn start(
        mailbell: &Standalone,
        name: &'static str,
        account: &str,
        gateway: SocketAddr,
    ) -> Result<Self> {
        let mut process = mailbell
            .command(["listen", "--json", "--account", account, "--url"])
            .arg(format!("http://{gateway}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = process.stdout.take().context("no output")?;
        Ok(Self {
            name,
            process,
            lines: BufReader::new(stdout).lines(),
            subjects: Vec::new(),
        })
    }

    async fn next(&mut self, kind: &str, patience: Duration) -> Result<Value> {
        let wait = async {
            loop {
                let Some(line) = self.lines.next_line().await? else {
                    let status = self.process.wait().await?;
                    bail!("{} ended with {status}", self.name);
                };
                let value: Value = serde_json::from_str(&line)?;
                if value.get("kind").and_then(Value::as_str) == Some(kind) {
                    return Ok(value);
                }
            }
        };
        tokio::time::timeout(patience, wait)
            .await
            .with_context(|| format!("{}: no {kind} within {patience:?}", self.name))?
    }

    /// Waits until the stream is live.
    pub(crate) async fn live(&mut self, patience: Duration) -> Result<()> {
        self.next("live", patience).await.map(drop)
    }

    /// Waits until it notices that its connection is gone.
    pub(crate) async fn disconnected(&mut self, patience: Duration) -> Result<()> {
        self.next("disconnected", patience).await.map(drop)
    }

    /// The next arrival.
    pub(crate) async fn alert(&mut self, patience: Duration) -> Result<Alert> {
        let value = self.next("arrived", patience).await?;
        let text = |path: &str| {
            value
                .pointer(path)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let alert = Alert {
            device: self.name,
            from: text("/message/from/0/name"),
            subject: text("/message/subject"),
            preview: text("/message/preview"),
            latency_ms: value
                .pointer("/latency_us")
                .and_then(Value::as_f64)
                .context("an arrival without latency")?
                / 1000.0,
        };
        self.subjects.push(alert.subject.clone());
        Ok(alert)
    }

    /// Fails if a message came twice.
    pub(crate) fn nothing_twice(&self) -> Result<()> {
        let different: BTreeSet<_> = self.subjects.iter().collect();
        if different.len() != self.subjects.len() {
            bail!("{} got a message twice: {:?}", self.name, self.subjects);
        }
        Ok(())
    }

    /// Ends it as Ctrl-C would.
    pub(crate) async fn stop(mut self) -> Result<()> {
        terminate(&mut self.process).await
    }
}

/// Asks a process to end and waits for that.
pub(crate) async fn terminate(process: &mut Child) -> Result<()> {
    let pid = process
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        kill_process(pid, Signal::TERM)?;
    }
    match tokio::time::timeout(Duration::from_secs(60), process.wait()).await {
        Ok(status) => {
            let status = status?;
            if !status.success() {
                bail!("a process ended with {status}");
            }
            Ok(())
        }
        Err(_) => {
            process.kill().await?;
            bail!("a process did not end within a minute");
        }
    }
}
