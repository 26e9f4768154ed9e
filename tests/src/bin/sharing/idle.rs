//! What watchers cost that have nothing to do: it must not grow with their accounts.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mailbell_test_servers::{NatsOptions, NatsServer};
use mailbell_tests::{
    crowd::Crowd,
    installation::Part,
    process::{cpu, resident},
};
use tokio::time::sleep;

use crate::{
    LIMIT, crowd, moves, progress,
    report::{head, row},
};

/// Few enough to share out evenly, and more than one, so that they watch one another.
const WATCHERS: usize = 2;
/// Fewer messages a second than this are what goes on for ever.
const LITTLE: u64 = 150;
/// So many seconds with little traffic: whatever began has come to rest.
const QUIET: usize = 5;

/// So many times in a row each is measured.
const TIMES: usize = 2;

/// What went on over a time, of all watchers together.
pub(crate) struct Idle {
    accounts: usize,
    time: Duration,
    to_nats: u64,
    from_nats: u64,
    server: Duration,
    watchers: Duration,
    resident: u64,
}

/// Messages on the connections of watchers since their start.
#[derive(Debug, Default, Clone, Copy)]
struct Traffic {
    to_nats: u64,
    from_nats: u64,
}

/// Leaves watchers with so many accounts idle for a while, twice: what comes seldom may come in one of the two. Nobody else is there then.
pub(crate) async fn measure(accounts: usize, time: Duration) -> anyhow::Result<Vec<Idle>> {
    let begun = Instant::now();
    let nats = NatsServer::start(NatsOptions::default()).await?;
    let server = nats.pid().context("no nats-server")?;
    progress(
        begun,
        &format!("{accounts} accounts that will idle are added"),
    );
    let mut crowd = Crowd::start(crowd(accounts, false, &nats.url())).await?;
    crowd.watched(LIMIT).await?;
    for _ in 1..WATCHERS {
        crowd.add_watcher().await?;
    }
    moves::at_rest(&crowd).await?;
    for part in [Part::Gateway, Part::Admin] {
        crowd.installation.terminate(part).await?;
    }
    until_quiet(&nats).await?;
    let pids: Vec<u32> = crowd
        .installation
        .watchers()
        .into_iter()
        .map(|part| crowd.installation.pid(part))
        .collect();
    let used = || (cpu(server), pids.iter().map(|pid| cpu(*pid)).sum());
    progress(begun, "they are watched, and nothing more goes on");
    let mut idle = Vec::new();
    for _ in 0..TIMES {
        let (before, (server_before, watchers_before)): (_, (_, Duration)) =
            (traffic(&nats).await?, used());
        // This is the measurement itself: what goes on meanwhile.
        sleep(time).await;
        let (after, (server_after, watchers_after)) = (traffic(&nats).await?, used());
        idle.push(Idle {
            accounts,
            time,
            to_nats: after.to_nats - before.to_nats,
            from_nats: after.from_nats - before.from_nats,
            server: server_after.saturating_sub(server_before),
            watchers: watchers_after.saturating_sub(watchers_before),
            resident: pids.iter().map(|pid| resident(*pid)).sum(),
        });
    }
    Ok(idle)
}

async fn until_quiet(nats: &NatsServer) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut quiet = 0;
    let mut before = traffic(nats).await?;
    while quiet < QUIET {
        if begun.elapsed() > LIMIT {
            bail!("it doesn't come to rest");
        }
        sleep(Duration::from_secs(1)).await;
        let now = traffic(nats).await?;
        let little = now.to_nats - before.to_nats < LITTLE;
        quiet = if little { quiet + 1 } else { 0 };
        before = now;
    }
    Ok(())
}

/// By the server's own count of each connection.
async fn traffic(nats: &NatsServer) -> anyhow::Result<Traffic> {
    let is_watcher = |word: &str| word.contains("watcher");
    let mut traffic = Traffic::default();
    for connection in nats.connections("open", is_watcher).await? {
        let count = |field| connection.get(field).and_then(|count| count.as_u64());
        traffic.to_nats += count("in_msgs").context("no in_msgs")?;
        traffic.from_nats += count("out_msgs").context("no out_msgs")?;
    }
    Ok(traffic)
}

/// A row for each number of accounts, for one watcher and a minute.
pub(crate) fn print(idle: &[Idle]) {
    if idle.is_empty() {
        return;
    }
    head(
        &format!("{WATCHERS} idle watchers, for each of them, a minute"),
        [
            "accounts of both",
            "messages to NATS",
            "messages from NATS",
            "CPU of nats-server",
            "CPU of the watcher",
            "resident",
        ],
    );
    for run in idle {
        let parts = run.time.as_secs_f64() / 60.0 * WATCHERS as f64;
        let messages = |count: u64| format!("{:.0}", count as f64 / parts);
        let millis = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3 / parts);
        row([
            run.accounts.to_string(),
            messages(run.to_nats),
            messages(run.from_nats),
            millis(run.server),
            millis(run.watchers),
            format!(
                "{:.1} MiB",
                run.resident as f64 / WATCHERS as f64 / f64::from(1 << 20)
            ),
        ]);
    }
}
