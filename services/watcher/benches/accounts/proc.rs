//! What processes use, and what goes through a nats-server.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use mailbell_test_servers::NatsServer;
use tokio::time::sleep;

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
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Traffic {
    /// On all connections that there ever were.
    pub(crate) async fn of_all(nats: &NatsServer) -> anyhow::Result<Self> {
        let mut all = Self::default();
        all.add(&nats.monitor("/varz").await?)?;
        Ok(all)
    }

    /// On the connections that are there of one that was connected by this name.
    pub(crate) async fn of(nats: &NatsServer, name: &str) -> anyhow::Result<Self> {
        let mut traffic = Self::default();
        for connection in nats.connections("open", |word| word == name).await? {
            traffic.add(&connection)?;
        }
        Ok(traffic)
    }

    fn add(&mut self, counted: &serde_json::Value) -> anyhow::Result<()> {
        let count = |name| counted.get(name).and_then(|count| count.as_u64());
        self.received += count("in_msgs").context("no in_msgs")?;
        self.sent += count("out_msgs").context("no out_msgs")?;
        Ok(())
    }

    /// Waits until there is little traffic for five seconds: whatever began has come to rest.
    pub(crate) async fn until_quiet(nats: &NatsServer, limit: Duration) -> anyhow::Result<()> {
        const LITTLE: u64 = 500;
        let begun = Instant::now();
        let mut quiet = 0;
        let mut before = Self::of_all(nats).await?;
        while quiet < 5 {
            if begun.elapsed() > limit {
                bail!("it does not come to rest");
            }
            sleep(Duration::from_secs(1)).await;
            let now = Self::of_all(nats).await?;
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
