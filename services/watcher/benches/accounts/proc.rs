//! What processes use, and what goes through a nats-server.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

/// CPU time that a process has used so far, in ticks of 10 ms; zero if there is none.
pub(crate) fn cpu(pid: u32) -> Duration {
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace().skip(11);
        let user: u64 = fields.next()?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        Some(user + system)
    };
    Duration::from_millis(ticks().unwrap_or_default() * 10)
}

/// Resident memory in KiB.
pub(crate) fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Messages that a server has seen since its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Traffic {
    pub(crate) async fn of(monitor: u16) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", monitor)).await?;
        stream
            .write_all(b"GET /varz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let number = |name: &str| {
            let (_, rest) = text.split_once(name)?;
            let rest = rest.trim_start_matches([' ', ':', '"']);
            let end = rest.find(|c: char| !c.is_ascii_digit())?;
            rest.get(..end)?.parse().ok()
        };
        Ok(Self {
            received: number("\"in_msgs\"").context("no in_msgs")?,
            sent: number("\"out_msgs\"").context("no out_msgs")?,
        })
    }

    /// Waits until there is little traffic for five seconds: whatever began has come to rest.
    pub(crate) async fn until_quiet(monitor: u16, limit: Duration) -> anyhow::Result<()> {
        const LITTLE: u64 = 500;
        let begun = Instant::now();
        let mut quiet = 0;
        let mut before = Self::of(monitor).await?;
        while quiet < 5 {
            if begun.elapsed() > limit {
                bail!("it does not come to rest");
            }
            sleep(Duration::from_secs(1)).await;
            let now = Self::of(monitor).await?;
            quiet = if now.received - before.received < LITTLE {
                quiet + 1
            } else {
                0
            };
            before = now;
        }
        Ok(())
    }
}
